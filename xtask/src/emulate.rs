//! `test --emulated`: the tests of the kernels on an emulated processor with AVX-512, for machines that have none.
//!
//! Bochs emulates a whole computer, so the tests are put on a disc with a Linux kernel. It is exact and slow: a second of
//! tests takes a minute, and times measured in there mean nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::cargo;

/// The processor: one that has all that the kernels ask for.
const PROCESSOR: &str = "corei7_icelake_u";
/// Bochs 2.7 gets the layout of saved registers wrong where these are used.
const WITHOUT: &str = "pku,xsaves,xsavec,smap,smep,umip,rdpid,fsgsbase,la57,erms,fsrm,invpcid,pcid";
const PATIENCE: Duration = Duration::from_secs(30 * 60);

const BOCHS: &str = "/usr/bin/bochs";
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VIDEO_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";
const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LOADER_LIBRARY: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";
const DISC_WRITER: &str = "/usr/bin/xorriso";
const SHELL: &str = "/bin/busybox";
/// Files of other programs, by Debian's packages.
const FILES: [(&str, &str); 7] = [
    (BOCHS, "bochs"),
    (BIOS, "bochsbios"),
    (VIDEO_BIOS, "vgabios"),
    (LOADER, "isolinux"),
    (LOADER_LIBRARY, "syslinux-common"),
    (DISC_WRITER, "xorriso"),
    (SHELL, "busybox-static"),
];

/// Runs them; `kernel` is a Linux kernel's image, and otherwise the newest in `/boot`.
pub(crate) fn run(kernel: Option<&Path>) -> Result<()> {
    let kernel = match kernel {
        Some(path) => path.to_owned(),
        None => newest_kernel().context(
            "no Linux kernel in /boot; name one with --kernel: `apt-get download linux-image-cloud-amd64` and the \
             package it depends on, then `dpkg -x` that",
        )?,
    };
    let missing: Vec<&str> =
        FILES.iter().filter(|(path, _)| !Path::new(path).exists()).map(|&(_, package)| package).collect();
    if !missing.is_empty() {
        bail!("emulation needs Debian's packages {}", missing.join(", "));
    }
    let tests = executables()?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let disc = disc(folder.path(), &kernel, &tests)?;
    boot(folder.path(), &disc, tests.len())
}

fn newest_kernel() -> Option<PathBuf> {
    let files = fs::read_dir("/boot").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    files.filter(is_kernel).max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

/// The programs that `cargo test` would run for the kernels.
fn executables() -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args([
        "test",
        "-p",
        "pilotfish-kernels",
        "--lib",
        "--tests",
        "--no-run",
        "--message-format=json",
    ]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("the tests of the kernels do not compile");
    }
    let messages = output.stdout.split(|&byte| byte == b'\n');
    let program = |line: &[u8]| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    Ok(messages.filter_map(program).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The libraries that a program is linked with.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Writes a disc that boots, runs the tests and switches off.
fn disc(folder: &Path, kernel: &Path, tests: &[PathBuf]) -> Result<PathBuf> {
    let (root, disc) = (folder.join("root"), folder.join("disc"));
    for name in ["bin", "dev", "proc", "tmp", "tests"] {
        fs::create_dir_all(root.join(name))?;
    }
    copy(Path::new(SHELL), &root.join("bin/busybox"))?;
    for (at, test) in tests.iter().enumerate() {
        let name = test.file_name().context("a test without a name")?.to_string_lossy().into_owned();
        copy(test, &root.join(format!("tests/{at}-{name}")))?;
        for library in libraries(test)? {
            let inside = library.strip_prefix("/").unwrap_or(&library);
            copy(&library, &root.join(inside))?;
        }
    }
    let init = "#!/bin/busybox sh\n\
                b=/bin/busybox\n\
                $b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev; $b mount -t tmpfs tmp /tmp\n\
                exec > /dev/ttyS0 2>&1\n\
                echo BEGIN; $b grep -m1 'model name' /proc/cpuinfo; $b grep -m1 -o avx512_vnni /proc/cpuinfo\n\
                export HOME=/tmp; cd /tmp\n\
                for test in /tests/*; do echo \"== $test\"; $test --test-threads 1; echo \"rc $?\"; done\n\
                echo END; $b sleep 3; $b poweroff -f\n";
    fs::write(root.join("init"), init)?;
    let script = "chmod +x init && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > \"$0\"";
    copy(kernel, &disc.join("vmlinuz"))?;
    copy(Path::new(LOADER), &disc.join("isolinux/isolinux.bin"))?;
    copy(Path::new(LOADER_LIBRARY), &disc.join("isolinux/ldlinux.c32"))?;
    let packed =
        Command::new("sh").current_dir(&root).args(["-c", script]).arg(disc.join("initrd.gz")).status()?;
    let menu = format!(
        "default tests\nprompt 0\nlabel tests\n kernel /vmlinuz\n append initrd=/initrd.gz console=ttyS0 quiet \
         mitigations=off hpet=disable nopku clearcpuid={WITHOUT} nosmap nosmep no5lvl nopti random.trust_cpu=on \
         panic=5\n"
    );
    fs::write(disc.join("isolinux/isolinux.cfg"), menu)?;
    let image = folder.join("tests.iso");
    let written = Command::new(DISC_WRITER)
        .args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o"])
        .args([&image, &disc])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match packed.success() && written.success() {
        true => Ok(image),
        false => bail!("cannot write the disc"),
    }
}

/// Starts the computer and passes on what it says.
fn boot(folder: &Path, disc: &Path, tests: usize) -> Result<()> {
    let (said, settings, go) = (folder.join("said"), folder.join("bochsrc"), folder.join("go"));
    let text = format!(
        "megs: 1024\nromimage: file={BIOS}\nvgaromimage: file={VIDEO_BIOS}\n\
         cpu: model={PROCESSOR}, count=1, ips=100000000, reset_on_triple_fault=0\n\
         ata0-master: type=cdrom, path={}, status=inserted\nboot: cdrom\n\
         display_library: rfb, options=\"timeout=0\"\ncom1: enabled=1, mode=file, dev={}\nlog: {}\n\
         clock: sync=none\npci: enabled=1, chipset=i440fx\n\
         sound: driver=dummy, waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n",
        disc.display(),
        said.display(),
        folder.join("log").display()
    );
    fs::write(&settings, text)?;
    fs::write(&go, "c\n")?;
    eprintln!("> bochs, {PROCESSOR}; the kernel takes a minute to start");
    let mut bochs = Command::new(BOCHS)
        .args(["-q", "-f"])
        .arg(&settings)
        .arg("-rc")
        .arg(&go)
        .stdin(Stdio::null())
        .stdout(File::create(folder.join("out"))?)
        .stderr(File::create(folder.join("err"))?)
        .spawn()
        .context("cannot run bochs")?;
    let (mut all, mut shown, clock) = (String::new(), 0, Instant::now());
    let ended = loop {
        std::thread::sleep(Duration::from_millis(500));
        // It is made when something is said.
        if let Ok(bytes) = fs::read(&said) {
            all = String::from_utf8_lossy(&bytes).into_owned();
        }
        let begun = all.find("BEGIN").unwrap_or(all.len());
        shown = shown.max(begun);
        if let Some(new) = all.get(shown..).filter(|new| !new.is_empty()) {
            print!("{new}");
            std::io::stdout().flush()?;
            shown = all.len();
        }
        let over = all.contains("\nEND") || all.contains("Kernel panic");
        if over || clock.elapsed() > PATIENCE || bochs.try_wait()?.is_some() {
            break over;
        }
    };
    let _ = bochs.kill();
    bochs.wait()?;
    println!();
    let passed = all.lines().filter(|line| line.trim_end() == "rc 0").count();
    match (ended, all.contains("avx512_vnni")) {
        (true, true) if passed == tests => Ok(()),
        (true, true) => bail!("{passed} of {tests} programs of tests passed on the emulated processor"),
        (true, false) => bail!("the emulated computer did not start, or has no AVX-512"),
        (false, _) => {
            bail!("the emulated computer stopped, or took longer than {} minutes", PATIENCE.as_secs() / 60)
        }
    }
}
