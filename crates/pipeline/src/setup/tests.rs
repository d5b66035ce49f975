//! Setup against a folder of hand-made wheels and, on Unix, a pip that is a shell script.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pilotfish_runtime::home::Home;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

use super::*;
use crate::models::{CATALOGUE, Entry, Kind, Licence, Package, Part, Pinned};

const LIBRARY: &str = match () {
    () if cfg!(windows) => "onnxruntime.dll",
    () if cfg!(target_os = "macos") => "libonnxruntime.1.32.0.dylib",
    () => "libonnxruntime.so.1.32.0",
};

/// A home, and a folder of wheels that setup looks into before it asks pip.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("home/wheels")).unwrap();
        Self { folder }
    }

    fn home(&self) -> Home {
        Home::at(self.folder.path().join("home"))
    }

    fn wheels(&self) -> PathBuf {
        self.home().root().join("wheels")
    }

    /// A setup without any pip.
    fn setup(&self) -> Setup {
        Setup::new(self.home()).with_pip(Pip::from_commands([])).quiet()
    }

    fn library(&self) -> Result<Fetched> {
        self.setup().install_library(false, |_| Ok(()))
    }

    /// What is in the home besides wheels and the lock.
    fn left_behind(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.home().root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "wheels" && name != ".lock")
            .collect();
        names.sort();
        names
    }
}

fn record(members: &[(&str, &[u8])]) -> String {
    let line = |(name, data): &(&str, &[u8])| {
        format!("{name},sha256={},{}\n", URL_SAFE_NO_PAD.encode(Sha256::digest(data)), data.len())
    };
    members.iter().map(line).collect::<String>() + "x.dist-info/RECORD,,\n"
}

/// Writes a wheel whose list of digests is `record`.
fn write_wheel(path: &Path, members: &[(&str, &[u8])], record: &str) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = SimpleFileOptions::default();
    for (name, data) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.start_file("x.dist-info/RECORD", options).unwrap();
    zip.write_all(record.as_bytes()).unwrap();
    zip.finish().unwrap();
}

fn library_members() -> [(&'static str, &'static [u8]); 3] {
    [
        (concat_capi(LIBRARY), b"not really a library"),
        ("onnxruntime/capi/onnxruntime_inference_collection.py", b"print()"),
        ("onnxruntime/__init__.py", b""),
    ]
}

fn concat_capi(name: &str) -> &'static str {
    Box::leak(format!("onnxruntime/capi/{name}").into_boxed_str())
}

fn library_wheel(world: &World) -> PathBuf {
    world.wheels().join("onnxruntime-1.32.0-cp312-cp312-any.whl")
}

fn good_library_wheel(world: &World) {
    write_wheel(&library_wheel(world), &library_members(), &record(&library_members()));
}

#[test]
fn a_library_is_installed_once() {
    let world = World::new();
    good_library_wheel(&world);
    let verified = AtomicUsize::new(0);
    let run = |thorough: bool| {
        world.setup().thorough(thorough).install_library(false, |path| {
            assert!(path.is_file());
            verified.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    };
    let first = run(false).unwrap();
    assert_eq!(first.done, Done::Installed);
    assert_eq!(first.path, world.home().onnxruntime(false).join(LIBRARY));
    assert_eq!(std::fs::read(&first.path).unwrap(), b"not really a library");
    assert_eq!(world.home().installed_library(), Ok(first.path.clone()));
    // Nothing else was taken out of the wheel, and nothing is left behind.
    assert_eq!(std::fs::read_dir(world.home().onnxruntime(false)).unwrap().count(), 2);
    assert_eq!(world.left_behind(), ["onnxruntime"]);
    std::fs::remove_file(library_wheel(&world)).unwrap();
    assert_eq!(run(false).unwrap(), Fetched { done: Done::Nothing, ..first.clone() });
    assert_eq!(verified.load(Ordering::Relaxed), 1);
    assert_eq!(run(true).unwrap(), Fetched { done: Done::Nothing, ..first });
    assert_eq!(verified.load(Ordering::Relaxed), 2);
}

#[test]
fn a_library_that_does_not_load_is_removed() {
    let world = World::new();
    good_library_wheel(&world);
    let error = world.setup().install_library(false, |_| Err("wrong machine".into())).unwrap_err();
    assert!(matches!(&error, SetupError::Load { why, .. } if why == "wrong machine"), "{error}");
    assert!(world.home().installed_library().is_err());
    assert_eq!(world.library().unwrap().done, Done::Installed);
}

#[test]
fn damage_is_found_and_repaired() {
    let world = World::new();
    good_library_wheel(&world);
    let path = world.library().unwrap().path;
    let folder = path.parent().unwrap();
    // Another size, another version, no stamp, no file: an ordinary run sees each of them.
    let damages: [fn(&Path, &Path); 5] = [
        |path, _| std::fs::write(path, b"short").unwrap(),
        |path, _| std::fs::remove_file(path).unwrap(),
        |_, folder| std::fs::remove_file(folder.join(STAMP)).unwrap(),
        |_, folder| std::fs::write(folder.join(STAMP), b"{").unwrap(),
        |_, folder| {
            let text = std::fs::read_to_string(folder.join(STAMP)).unwrap();
            std::fs::write(folder.join(STAMP), text.replace("1.32.0\"", "1.31.0\"")).unwrap();
        },
    ];
    for damage in damages {
        damage(&path, folder);
        assert_eq!(world.library().unwrap().done, Done::Repaired);
        assert_eq!(std::fs::read(&path).unwrap(), b"not really a library");
    }
    // A changed byte is seen by a thorough run only.
    std::fs::write(&path, b"NOT really a library").unwrap();
    assert_eq!(world.library().unwrap().done, Done::Nothing);
    let repaired = world.setup().thorough(true).install_library(false, |_| Ok(())).unwrap();
    assert_eq!(repaired.done, Done::Repaired);
    assert_eq!(std::fs::read(&path).unwrap(), b"not really a library");
    assert_eq!(world.left_behind(), ["onnxruntime"]);
}

#[test]
fn a_damaged_cache_that_cannot_be_repaired_is_left_as_it_is() {
    let world = World::new();
    good_library_wheel(&world);
    let path = world.library().unwrap().path;
    std::fs::write(&path, b"short").unwrap();
    std::fs::remove_file(library_wheel(&world)).unwrap();
    assert!(matches!(world.library(), Err(SetupError::NoPip { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"short");
}

/// Installs from a wheel and returns the error's text, having checked that nothing appeared.
fn refused(members: &[(&str, &[u8])], record: &str) -> String {
    let world = World::new();
    write_wheel(&library_wheel(&world), members, record);
    let error = world.library().unwrap_err().to_string();
    assert!(error.contains("onnxruntime-1.32.0"), "the wheel is not named: {error}");
    assert_eq!(world.left_behind(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 1, "something was written outside");
    error
}

#[test]
fn wheels_that_cannot_be_trusted_are_refused() {
    let good = library_members();
    let name = good[0].0;
    for outside in ["../evil", "onnxruntime/capi/../../../evil.so", "/etc/evil", "a\\..\\evil"] {
        let members = [good[0], (outside, b"x" as &[u8])];
        let error = refused(&members, &record(&members));
        assert!(error.contains("outside"), "{outside}: {error}");
    }
    assert!(refused(&good[1..], &record(&good[1..])).contains("no ONNX Runtime library for"));
    // The list of digests: another digest, another size (smaller, larger, absurd), no line, no list.
    let line = record(&good[..1]);
    let wrong = record(&[(name, b"not really a librarY")]);
    assert!(refused(&good, &wrong).contains("does not match its digest"));
    for size in ["19\n", "21\n", "0\n"] {
        assert!(refused(&good, &line.replace("20\n", size)).contains("does not match its digest"));
    }
    assert!(refused(&good, &line.replace("20\n", "99999999999999\n")).contains("at most"));
    assert!(refused(&good, "").contains("no digest"));
}

#[test]
fn a_wheel_damaged_anywhere_is_refused_or_harmless() {
    let world = World::new();
    good_library_wheel(&world);
    let path = library_wheel(&world);
    let bytes = std::fs::read(&path).unwrap();
    let member = library_members()[0].0;
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let mut out = Vec::new();
        Wheel::open(&path)?.read(member, 1 << 20, |from| std::io::copy(from, &mut out))?;
        Ok::<_, SetupError>(out)
    };
    assert_eq!(read(&bytes).unwrap(), b"not really a library");
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            if let Ok(out) = read(&flipped) {
                assert_eq!(out, b"not really a library", "bit {bit} flipped in {at}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_a_wheel_is_refused() {
    let world = World::new();
    let path = library_wheel(&world);
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    zip.add_symlink(library_members()[0].0, "/etc/passwd", SimpleFileOptions::default()).unwrap();
    zip.start_file("x.dist-info/RECORD", SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    assert!(world.library().unwrap_err().to_string().contains("outside"));
}

const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// Two packages, a file cut in two, and a compressed file.
const MODEL: Entry = Entry {
    name: "toy",
    kind: Kind::Model,
    about: "",
    licence: Licence { name: "MIT", place: "", restricts: false },
    origin: "",
    main: "sub/hello.txt",
    packages: &[Package { name: "toy-one", version: "1" }, Package { name: "toy-two", version: "2.0" }],
    files: &[
        Pinned {
            path: "sub/hello.txt",
            parts: &[Part { package: 0, member: "one/he" }, Part { package: 1, member: "two/llo" }],
            gzip: false,
            bytes: 5,
            sha256: HELLO,
        },
        Pinned {
            path: "plain.txt",
            parts: &[Part { package: 1, member: "two/hello.gz" }],
            gzip: true,
            bytes: 5,
            sha256: HELLO,
        },
    ],
};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn toy_wheels(world: &World, first: &[u8], packed: &[u8]) {
    let one: [(&str, &[u8]); 1] = [("one/he", first)];
    let two: [(&str, &[u8]); 2] = [("two/llo", b"llo"), ("two/hello.gz", packed)];
    write_wheel(&world.wheels().join("toy_one-1-py3-none-any.whl"), &one, &record(&one));
    write_wheel(&world.wheels().join("toy_two-2.0-py3-none-any.whl"), &two, &record(&two));
}

#[test]
fn a_model_is_joined_unpacked_and_checked() {
    let world = World::new();
    toy_wheels(&world, b"he", &gzip(b"hello"));
    let fetched = world.setup().fetch(&MODEL, false).unwrap();
    assert_eq!(fetched.done, Done::Installed);
    assert_eq!(fetched.path, world.home().model("toy").unwrap().join("sub/hello.txt"));
    assert_eq!(std::fs::read(&fetched.path).unwrap(), b"hello");
    assert_eq!(std::fs::read(world.home().model("toy").unwrap().join("plain.txt")).unwrap(), b"hello");
    assert_eq!(world.setup().fetch(&MODEL, false).unwrap().done, Done::Nothing);
}

#[test]
fn a_model_that_is_not_the_pinned_one_is_refused() {
    let refused = |first: &[u8], packed: &[u8]| {
        let world = World::new();
        toy_wheels(&world, first, packed);
        let error = world.setup().fetch(&MODEL, false).unwrap_err();
        assert_eq!(world.left_behind(), Vec::<String>::new());
        error
    };
    let error = refused(b"HE", &gzip(b"hello"));
    assert!(matches!(&error, SetupError::Checksum { want, .. } if want == HELLO), "{error}");
    assert!(matches!(refused(b"he", &gzip(b"hellO")), SetupError::Checksum { .. }));
    assert!(matches!(refused(b"he", b"not gzip"), SetupError::Wheel { .. }));
    // A file that unpacks to more than was pinned stops at the limit, however large it would become.
    assert!(matches!(refused(b"he", &gzip(&[0; 1 << 20])), SetupError::Wheel { .. }));
    assert!(matches!(refused(&[b'h'; 2000], &gzip(b"hello")), SetupError::Wheel { .. }));
    assert!(matches!(refused(b"hello hello", &gzip(b"hello")), SetupError::Wheel { .. }));
}

#[test]
fn a_missing_member_is_named() {
    let world = World::new();
    toy_wheels(&world, b"he", &gzip(b"hello"));
    let one: [(&str, &[u8]); 1] = [("one/other", b"he")];
    write_wheel(&world.wheels().join("toy_one-1-py3-none-any.whl"), &one, &record(&one));
    let error = world.setup().fetch(&MODEL, false).unwrap_err().to_string();
    assert!(error.contains("one/he"), "{error}");
}

#[test]
fn restricted_models_are_fetched_only_when_their_terms_are_accepted() {
    let licence = Licence { name: "Toy Terms", place: "https://toy.example", restricts: true };
    let entry = Entry { licence, ..MODEL };
    let world = World::new();
    toy_wheels(&world, b"he", &gzip(b"hello"));
    let error = world.setup().fetch(&entry, false).unwrap_err().to_string();
    for part in ["Toy Terms", "https://toy.example", "--accept-terms"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(world.home().model("toy").is_err());
    world.setup().fetch(&entry, true).unwrap();
    // Once it is there nothing is fetched, so nothing is asked.
    assert_eq!(world.setup().fetch(&entry, false).unwrap().done, Done::Nothing);
}

#[test]
fn exactly_gemma_restricts_its_use() {
    let names: Vec<_> = CATALOGUE.iter().filter(|e| e.licence.restricts).map(|e| e.name).collect();
    assert_eq!(names, ["gemma3-270m"]);
}

#[test]
fn python_packages_are_unpacked_side_by_side() {
    let world = World::new();
    let packages = &[Package { name: "one", version: "1" }, Package { name: "two-x", version: "2" }];
    let members: [&[(&str, &[u8])]; 2] = [
        &[("one/__init__.py", b"1"), ("one.libs/x.so", b"library"), ("one/backend/test/data/x.pb", b"large")],
        &[("two/__init__.py", b"2")],
    ];
    let wheels = ["one-1-cp312-cp312-any.whl", "two_x-2-py3-none-any.whl"];
    for (name, members) in wheels.iter().zip(members) {
        write_wheel(&world.wheels().join(name), members, &record(members));
    }
    let run = || world.setup().python(("python-one", packages));
    let first = run().unwrap();
    assert_eq!((first.done, &first.path), (Done::Installed, &world.home().tools().join("python-one")));
    for (name, text) in [("one/__init__.py", "1"), ("one.libs/x.so", "library"), ("two/__init__.py", "2")] {
        assert_eq!(std::fs::read_to_string(first.path.join(name)).unwrap(), text);
    }
    assert!(!first.path.join("one/backend").exists());
    // What Python leaves beside its modules is no damage; a module that is gone is.
    std::fs::create_dir(first.path.join("one/__pycache__")).unwrap();
    assert_eq!(run().unwrap().done, Done::Nothing);
    std::fs::remove_file(first.path.join("two/__init__.py")).unwrap();
    assert_eq!(run().unwrap().done, Done::Repaired);
    // A damaged wheel leaves nothing new.
    write_wheel(&world.wheels().join(wheels[1]), &[("two/__init__.py", b"3")], &record(members[1]));
    std::fs::remove_dir_all(&first.path).unwrap();
    assert!(matches!(run(), Err(SetupError::Wheel { .. })));
    assert!(!first.path.exists());
}

#[test]
fn without_pip_the_error_says_what_to_do() {
    let world = World::new();
    let pip = Pip::from_commands([vec!["no-such-python".into(), "-m".into(), "pip".into()], vec![]]);
    let error = world.setup().with_pip(pip).install_library(false, |_| Ok(())).unwrap_err().to_string();
    let wheels = world.wheels().display().to_string();
    for part in ["onnxruntime==1.32.0", "no-such-python -m pip", "Install Python 3 with pip", &wheels] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(world.left_behind(), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let world = World::new();
    good_library_wheel(&world);
    let half = world.home().root().join(format!("{INCOMING}dead/new"));
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join(LIBRARY), b"half").unwrap();
    // Killed between moving the folder into place and stamping it.
    std::fs::create_dir_all(world.home().onnxruntime(false)).unwrap();
    std::fs::write(world.home().onnxruntime(false).join(LIBRARY), b"half").unwrap();
    assert_eq!(world.library().unwrap().done, Done::Repaired);
    assert_eq!(world.left_behind(), ["onnxruntime"]);
}

#[test]
fn of_many_at_once_one_does_the_work() {
    let world = World::new();
    good_library_wheel(&world);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| done.lock().unwrap().push(world.library().unwrap().done));
        }
    });
    let done = done.into_inner().unwrap();
    assert_eq!(done.iter().filter(|done| **done == Done::Installed).count(), 1, "{done:?}");
    assert_eq!(done.iter().filter(|done| **done == Done::Nothing).count(), 7, "{done:?}");
}

#[test]
fn a_home_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let setup = Setup::new(Home::at(file.join("home"))).quiet();
    let error = setup.install_library(false, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("home") && error.contains("PILOTFISH_HOME"), "{error}");
}

#[cfg(target_os = "macos")]
#[test]
fn there_is_no_cuda_on_macos() {
    let error = World::new().setup().install_library(true, |_| Ok(())).unwrap_err();
    assert!(matches!(error, SetupError::NoPlatform { .. }));
}

/// A pip that is a shell script: copies wheels out of a folder, or fails as told.
#[cfg(unix)]
mod fake_pip {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pip(world: &World, download: &str) -> Pip {
        let script = world.folder.path().join("pip");
        let index = world.folder.path().join("index");
        std::fs::create_dir_all(&index).unwrap();
        let text = format!(
            "#!/bin/sh\nindex={}\n[ \"$1\" = --version ] && exit 0\necho \"$@\" >> \"$index/calls\"\n\
             while [ $# -gt 0 ]; do\n  case \"$1\" in\n    -d) into=$2; shift;;\n    --python-version) other=$2; shift;;\n\
             esac\n  shift\ndone\n{download}\n",
            index.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        // A program that is being written by another thread's fork cannot be run; a shell reads it instead.
        Pip::from_commands([vec!["no-such-python".into()], vec!["sh".into(), script.into()]])
    }

    fn run(download: &str) -> (World, Result<Fetched>) {
        let world = World::new();
        let pip = pip(&world, download);
        let wheel = world.folder.path().join("index/onnxruntime-1.32.0-cp312-x.whl");
        write_wheel(&wheel, &library_members(), &record(&library_members()));
        let result = world.setup().with_pip(pip).install_library(false, |_| Ok(()));
        (world, result)
    }

    #[test]
    fn the_first_pip_that_answers_downloads() {
        let (world, result) = run("cp \"$index\"/onnxruntime-*.whl \"$into\"");
        assert_eq!(result.unwrap().done, Done::Installed);
        let calls = std::fs::read_to_string(world.folder.path().join("index/calls")).unwrap();
        assert_eq!(calls.lines().count(), 1);
        for word in ["download", "--no-deps", "--only-binary=:all:", "onnxruntime==1.32.0"] {
            assert!(calls.contains(word), "{calls}");
        }
    }

    #[test]
    fn a_wheel_for_another_python_serves() {
        let missing = "echo 'ERROR: No matching distribution found for onnxruntime==1.32.0' >&2; exit 1";
        let (world, result) = run(&format!(
            "if [ -n \"$other\" ]; then cp \"$index\"/onnxruntime-*.whl \"$into\"; else {missing}; fi"
        ));
        assert_eq!(result.unwrap().done, Done::Installed);
        let calls = std::fs::read_to_string(world.folder.path().join("index/calls")).unwrap();
        assert_eq!(calls.lines().count(), 2);
        assert!(run(missing).1.is_err());
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        let (world, result) = run("echo one >&2; echo 'ERROR: proxy says no' >&2; exit 3");
        let error = result.unwrap_err();
        assert!(matches!(error, SetupError::Pip { .. }));
        let text = error.to_string();
        assert!(text.contains("proxy says no") && text.contains("wheels"), "{text}");
        assert_eq!(world.left_behind(), Vec::<String>::new());
        let calls = std::fs::read_to_string(world.folder.path().join("index/calls")).unwrap();
        assert_eq!(
            calls.lines().count(),
            1,
            "a failure that another Python does not cure is not tried again"
        );
    }

    #[test]
    fn a_pip_that_lies_or_stops_midway_leaves_nothing() {
        let (world, result) = run("exit 0");
        assert!(result.unwrap_err().to_string().contains("left no such wheel"));
        assert_eq!(world.left_behind(), Vec::<String>::new());
        let (world, result) =
            run("head -c 100 \"$index\"/onnxruntime-*.whl > \"$into/onnxruntime-1.32.0-x.whl\"");
        assert!(matches!(result, Err(SetupError::Wheel { .. })));
        assert_eq!(world.left_behind(), Vec::<String>::new());
        let (world, result) = run("head -c 9 \"$index\"/onnxruntime-*.whl > \"$into/part\"; kill -9 $$");
        assert!(matches!(result, Err(SetupError::Pip { .. })));
        assert_eq!(world.left_behind(), Vec::<String>::new());
    }
}
