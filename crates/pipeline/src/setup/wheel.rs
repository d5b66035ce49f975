//! Reading files out of a wheel, which is a zip with a list of digests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::{Result, SetupError};

/// Most members a wheel may have.
const MEMBERS: usize = 100_000;
/// Longest list of digests read, in bytes.
const RECORD_BYTES: u64 = 32 << 20;

/// A wheel file whose member names are known to stay inside the folder they are unpacked to.
pub(crate) struct Wheel {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    /// Member to sha256 (as the list writes it) and size.
    record: BTreeMap<String, (String, u64)>,
}

impl Wheel {
    /// Opens a wheel and reads its list of digests.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let refuse = |why: String| SetupError::Wheel { wheel: path.to_owned(), why };
        let file = File::open(path).map_err(|error| SetupError::io(path, error))?;
        let mut zip = ZipArchive::new(BufReader::new(file))
            .map_err(|error| refuse(format!("not a readable wheel ({error})")))?;
        if zip.len() > MEMBERS {
            return Err(refuse(format!("{} members; at most {MEMBERS} are allowed", zip.len())));
        }
        let mut list = None;
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(|error| refuse(error.to_string()))?;
            if member.enclosed_name().is_none() || member.name().contains('\\') || member.is_symlink() {
                return Err(refuse(format!("member {:?} leads outside the wheel", member.name())));
            }
            if member.name().ends_with(".dist-info/RECORD") {
                list = Some(index);
            }
        }
        let list = list.ok_or_else(|| refuse("no list of digests (RECORD)".into()))?;
        let mut text = String::new();
        zip.by_index(list)
            .map_err(|error| refuse(error.to_string()))?
            .take(RECORD_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| refuse(format!("its list of digests cannot be read ({error})")))?;
        let record = text.lines().filter_map(record_line).collect();
        Ok(Self { path: path.to_owned(), zip, record })
    }

    /// Names of all members.
    pub(crate) fn members(&self) -> impl Iterator<Item = &str> {
        self.zip.file_names()
    }

    /// Feeds one member to `read`, no more than `limit` bytes of it, and checks that what it holds is what
    /// the list of digests says.
    pub(crate) fn read<T>(
        &mut self,
        member: &str,
        limit: u64,
        read: impl FnOnce(&mut dyn Read) -> std::io::Result<T>,
    ) -> Result<T> {
        let refuse = |why: String| SetupError::Wheel { wheel: self.path.clone(), why };
        let Some((want, size)) = self.record.get(member).cloned() else {
            return Err(refuse(format!("member {member} is missing or has no digest")));
        };
        if size > limit {
            return Err(refuse(format!("member {member} has {size} bytes; at most {limit} are allowed")));
        }
        let file = self.zip.by_name(member).map_err(|error| refuse(format!("member {member}: {error}")))?;
        let mut hashed = Hashed { inner: file.take(size + 1), hash: Sha256::new(), bytes: 0 };
        let value = read(&mut hashed)
            .and_then(|value| std::io::copy(&mut hashed, &mut std::io::sink()).map(|_| value))
            .map_err(|error| refuse(format!("member {member}: {error}")))?;
        let digest = hashed.hash.finalize();
        if hashed.bytes != size || URL_SAFE_NO_PAD.encode(digest) != want {
            return Err(refuse(format!(
                "member {member} does not match its digest; the download is damaged"
            )));
        }
        Ok(value)
    }
}

/// One line of the list: `path,sha256=digest,size`. The path may hold commas, and is then quoted.
fn record_line(line: &str) -> Option<(String, (String, u64))> {
    let mut fields = line.rsplitn(3, ',');
    let size = fields.next()?.trim().parse().ok()?;
    let digest = fields.next()?.strip_prefix("sha256=")?.trim_end_matches('=').to_owned();
    let path = fields.next()?;
    let path = path.strip_prefix('"').and_then(|path| path.strip_suffix('"')).unwrap_or(path);
    Some((path.replace("\"\"", "\""), (digest, size)))
}

/// A reader that hashes what passes through.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// A file being written and hashed.
pub(crate) struct HashedFile {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

impl HashedFile {
    /// A new file that takes at most `limit` bytes.
    pub(crate) fn create(path: &Path, limit: u64) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| SetupError::io(folder, error))?;
        }
        let file = File::create(path).map_err(|error| SetupError::io(path, error))?;
        Ok(Self { path: path.to_owned(), file, hash: Sha256::new(), bytes: 0, limit })
    }

    /// Size in bytes and sha256 in hex, once everything is on the disk.
    pub(crate) fn finish(self) -> Result<(u64, String)> {
        self.file.sync_all().map_err(|error| SetupError::io(&self.path, error))?;
        Ok((self.bytes, format!("{:x}", self.hash.finalize())))
    }
}

impl Write for HashedFile {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if self.bytes.saturating_add(buffer.len() as u64) > self.limit {
            return Err(std::io::Error::other(format!("it holds more than {} bytes", self.limit)));
        }
        let count = self.file.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The sha256 of a file, in hex.
pub(crate) fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|error| SetupError::io(path, error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:x}", hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) => return Err(SetupError::io(path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_list_of_digests() {
        assert_eq!(record_line("a/b.so,sha256=AbC_-,12"), Some(("a/b.so".into(), ("AbC_-".into(), 12))));
        assert_eq!(record_line("\"a,\"\"b\"\"\",sha256=x=,1"), Some(("a,\"b\"".into(), ("x".into(), 1))));
        for bad in ["", "x", "x,,", "RECORD,,", "a,md5=x,1", "a,sha256=x,-1", "a,sha256=x,many"] {
            assert_eq!(record_line(bad), None, "{bad}");
        }
    }
}
