//! Data sets of the catalogue, read into memory.
//!
//! A reader says how many items it wants and takes nothing less, so that a file that was cut short anywhere is refused,
//! and it never reserves memory by what a file claims.

use std::path::Path;

use crate::error::{PipelineError, Result};

/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

/// What a file of images must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Images.
    pub items: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// The largest value of a pixel.
    pub white: u16,
    /// Classes.
    pub classes: usize,
}

/// Handwritten digits of 8 by 8 pixels.
pub const DIGITS: ImageFile = ImageFile { items: 1797, pixels: 64, white: 16, classes: 10 };
/// Part of MNIST.
pub const MNIST_5K: ImageFile = ImageFile { items: 5000, pixels: 784, white: 255, classes: 10 };
/// Messages of the training and of the test split of 20 newsgroups.
pub const NEWSGROUPS: [usize; 2] = [11_293, 7_528];

/// Images with their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// `items x pixels`, row by row, from 0 to 1.
    pub pixels: Vec<f64>,
    /// The class of each.
    pub classes: Vec<usize>,
}

/// Reads lines of whole numbers with commas: the pixels of an image, then its class.
///
/// ```
/// use pilotfish_pipeline::datasets::{ImageFile, read_images};
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "0,8,1\n16,4,0\n")?;
/// let images = read_images(file.path(), ImageFile { items: 2, pixels: 2, white: 16, classes: 2 })?;
/// assert_eq!((images.pixels, images.classes), (vec![0.0, 0.5, 1.0, 0.25], vec![1, 0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A file that cannot be read or is too large; another number of lines or of numbers on a line; a number that is none or too
/// large; no line break at the end.
pub fn read_images(path: &Path, want: ImageFile) -> Result<Images> {
    let text = read(path)?;
    let mut out = Images { pixels: Vec::new(), classes: Vec::new() };
    for (at, line) in lines(path, &text, want.items)?.enumerate() {
        let refuse = |why: String| PipelineError::malformed(path, format!("line {}: {why}", at + 1));
        let mut count = 0;
        for field in line.split(',') {
            let number: u16 =
                field.parse().map_err(|_| refuse(format!("{:?} is no number", shortened(field))))?;
            let limit = if count < want.pixels { want.white } else { want.classes.saturating_sub(1) as u16 };
            if number > limit {
                return Err(refuse(format!("{number} is above {limit}")));
            }
            match count {
                pixel if pixel < want.pixels => out.pixels.push(f64::from(number) / f64::from(want.white)),
                class if class == want.pixels => out.classes.push(number.into()),
                _ => {}
            }
            count += 1;
        }
        if count != want.pixels + 1 {
            return Err(refuse(format!("{count} numbers, not {}", want.pixels + 1)));
        }
    }
    Ok(out)
}

/// A text with the name of its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Name of the class.
    pub group: String,
    /// The text.
    pub text: String,
}

/// Reads a tab file of Orange: three lines about the columns, an empty one, then a class and a text on every line.
///
/// ```
/// use pilotfish_pipeline::datasets::read_messages;
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "Category\tText\nd\tstring\nclass\t\n\nsci.space\tthe moon\n")?;
/// assert_eq!(read_messages(file.path(), 1)?[0].group, "sci.space");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A file that cannot be read or is too large; other columns; another number of lines; a line that is not a class and a text;
/// no line break at the end.
pub fn read_messages(path: &Path, items: usize) -> Result<Vec<Message>> {
    let text = read(path)?;
    let head = "Category\tText\nd\tstring\nclass\t\n\n";
    let body = text.strip_prefix(head).ok_or_else(|| {
        PipelineError::malformed(path, "it does not begin with the columns Category and Text")
    })?;
    let mut out = Vec::new();
    for (at, line) in lines(path, body, items)?.enumerate() {
        let refuse = |why: &str| PipelineError::malformed(path, format!("line {}: {why}", at + 5));
        let (group, text) = line.split_once('\t').ok_or_else(|| refuse("no tab between class and text"))?;
        let name = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '-');
        if group.is_empty() || !group.chars().all(name) {
            return Err(refuse("no class"));
        }
        if text.contains('\t') || text.chars().any(char::is_control) {
            return Err(refuse("a text with control characters"));
        }
        out.push(Message { group: group.to_owned(), text: text.to_owned() });
    }
    Ok(out)
}

fn read(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|source| PipelineError::io(path, source))?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(PipelineError::malformed(path, "not a regular file of at most 64 MB"));
    }
    let bytes = std::fs::read(path).map_err(|source| PipelineError::io(path, source))?;
    String::from_utf8(bytes).map_err(|_| PipelineError::malformed(path, "it is not UTF-8"))
}

/// The lines of a text that ends with one, as many as are wanted.
fn lines<'a>(path: &Path, text: &'a str, want: usize) -> Result<impl Iterator<Item = &'a str>> {
    let Some(whole) = text.strip_suffix('\n') else {
        return Err(PipelineError::malformed(path, "it is cut off: no line break at the end"));
    };
    let got = whole.split('\n').count();
    if got != want {
        return Err(PipelineError::malformed(path, format!("{got} items, not {want}")));
    }
    Ok(whole.split('\n'))
}

fn shortened(text: &str) -> String {
    text.chars().take(20).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: ImageFile = ImageFile { items: 3, pixels: 4, white: 16, classes: 3 };
    const IMAGES: &[u8] = b"0,16,3,4,2\n1,0,10,9,0\n5,5,5,5,1\n";
    const MESSAGES: &[u8] =
        b"Category\tText\nd\tstring\nclass\t\n\nalt.atheism\tone two\nrec.autos\t\ncomp.os.ms-windows.misc\tthree\n";

    /// Feeds bytes to a reader; all it may do is refuse with an error that names the file.
    fn feed<T>(bytes: &[u8], read: impl Fn(&Path) -> Result<T>) -> Option<T> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        match read(file.path()) {
            Ok(value) => Some(value),
            Err(PipelineError::Malformed { path, .. }) => {
                assert!(path.ends_with(file.path().file_name().unwrap().to_str().unwrap()));
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn images(bytes: &[u8]) -> Option<Images> {
        feed(bytes, |path| read_images(path, SMALL))
    }

    fn messages(bytes: &[u8]) -> Option<Vec<Message>> {
        feed(bytes, |path| read_messages(path, 3))
    }

    #[test]
    fn whole_files_are_read() {
        let found = images(IMAGES).unwrap();
        assert_eq!(found.classes, [2, 0, 1]);
        assert_eq!(found.pixels[..5], [0.0, 1.0, 0.1875, 0.25, 0.0625]);
        let found = messages(MESSAGES).unwrap();
        assert_eq!((found[0].text.as_str(), found[1].text.as_str()), ("one two", ""));
        assert_eq!(found[2].group, "comp.os.ms-windows.misc");
    }

    #[test]
    fn files_cut_anywhere_are_refused() {
        for cut in 0..IMAGES.len() {
            assert!(images(&IMAGES[..cut]).is_none(), "cut at {cut}");
        }
        for cut in 0..MESSAGES.len() {
            assert!(messages(&MESSAGES[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn flipped_bits_are_refused_or_give_a_file_of_the_same_form() {
        for at in 0..IMAGES.len() {
            for bit in 0..8 {
                let mut spoilt = IMAGES.to_vec();
                spoilt[at] ^= 1 << bit;
                if let Some(found) = images(&spoilt) {
                    assert_eq!((found.pixels.len(), found.classes.len()), (12, 3));
                    assert!(found.pixels.iter().all(|p| (0.0..=1.0).contains(p)));
                    assert!(found.classes.iter().all(|class| *class < 3));
                }
            }
        }
        for at in 0..MESSAGES.len() {
            for bit in 0..8 {
                let mut spoilt = MESSAGES.to_vec();
                spoilt[at] ^= 1 << bit;
                if let Some(found) = messages(&spoilt) {
                    assert_eq!(found.len(), 3);
                    assert!(found.iter().all(|message| !message.group.is_empty()));
                }
            }
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in
            ["", "\n", "\n\n\n", "1,2,3,4,0\n1,2,3,4,0\n1,2,3,4,5\n", "1,2,3,4,0\n1,2,3,4\n1,2,3,4,0\n"]
        {
            assert!(images(bad.as_bytes()).is_none(), "{bad:?}");
        }
        for bad in ["-1", "17", "1e0", " 1", "99999999999999999999", "NaN", ""] {
            let text = format!("1,2,3,{bad},0\n1,2,3,4,0\n1,2,3,4,0\n");
            assert!(images(text.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(images("1,2,3,4,0\r\n1,2,3,4,0\r\n1,2,3,4,0\r\n".as_bytes()).is_none());
        assert!(images(b"1,2,3,4,0,0\n1,2,3,4,0\n1,2,3,4,0\n").is_none());
        let text = std::str::from_utf8(MESSAGES).unwrap();
        assert!(messages(text.replace("alt.atheism", "").as_bytes()).is_none());
        assert!(messages(text.replace("one two", "one\ttwo").as_bytes()).is_none());
        assert!(messages(text.replace("rec.autos\t", "rec.autos").as_bytes()).is_none());
        assert!(messages(text.replace("Category", "Label").as_bytes()).is_none());
        assert!(messages(&[0xff; 100]).is_none());
        let missing = read_images(Path::new("/nowhere/digits.csv"), SMALL).unwrap_err().to_string();
        assert!(missing.contains("digits.csv"), "{missing}");
        assert!(read_messages(Path::new("/"), 3).is_err());
    }
}
