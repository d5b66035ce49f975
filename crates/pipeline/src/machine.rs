//! The machine an experiment ran on, and the state of the project.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What figures of speed depend on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor, as it names itself.
    pub processor: String,
    /// Logical cores.
    pub cores: usize,
    /// Memory, in GB.
    pub memory_gb: f64,
    /// Instruction sets that matter here.
    pub features: Vec<String>,
    /// Operating system and architecture.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let wanted = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "sve"];
        let has = |flag: &&str| flags.split_whitespace().any(|word| word == *flag);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<f64>().ok());
        Self {
            processor: field("model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: (kilobytes.unwrap_or(0.0) / 1e5).round() / 10.0,
            features: wanted.iter().filter(|flag| has(flag)).map(|flag| (*flag).to_owned()).collect(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// Jobs waiting for a processor, averaged over a minute; `None` where the system does not say.
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The largest memory this process has had resident, in MB; `None` where the system does not say.
pub fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// The commit checked out in a repository or worktree, read from its files.
pub fn commit(root: &Path) -> Option<String> {
    let read = |path: &Path| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
    let mut git = root.join(".git");
    // A worktree names its folder in a file, and that folder names the repository's.
    if let Some(link) = read(&git) {
        git = root.join(link.strip_prefix("gitdir: ")?);
    }
    let head = read(&git.join("HEAD"))?;
    let Some(reference) = head.strip_prefix("ref: ") else { return Some(head) };
    let common = read(&git.join("commondir")).map_or(git.clone(), |common| git.join(common));
    if let Some(commit) = read(&common.join(reference)) {
        return Some(commit);
    }
    let packed = read(&common.join("packed-refs"))?;
    packed.lines().find_map(|line| match line.split_once(' ') {
        Some((commit, name)) if name == reference => Some(commit.to_owned()),
        _ => None,
    })
}

/// The time as `2026-11-24T13:05:00Z`.
pub fn now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()))
}

fn utc(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil date from days since 1970-01-01: years begin in March, eras have 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_something_about_this_machine() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && !machine.processor.is_empty());
        let now = now();
        assert!(now.len() == 20 && now.as_str() > "2026-01-01T00:00:00Z" && now.ends_with('Z'), "{now}");
    }

    #[test]
    fn commits_of_any_form() {
        let folder = tempfile::tempdir().expect("a folder");
        let git = folder.path().join(".git");
        std::fs::create_dir_all(git.join("refs/heads")).expect("writable");
        assert_eq!(commit(folder.path()), None);
        std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").expect("writable");
        std::fs::write(
            git.join("packed-refs"),
            "# pack-refs\nabc0 refs/original/refs/heads/main\nabc1 refs/heads/main\n",
        )
        .expect("writable");
        assert_eq!(commit(folder.path()).as_deref(), Some("abc1"));
        std::fs::write(git.join("refs/heads/main"), "abc2\n").expect("writable");
        assert_eq!(commit(folder.path()).as_deref(), Some("abc2"));
        std::fs::write(git.join("HEAD"), "abc3\n").expect("writable");
        assert_eq!(commit(folder.path()).as_deref(), Some("abc3"));
        let tree = tempfile::tempdir().expect("a folder");
        let own = git.join("worktrees/tree");
        std::fs::create_dir_all(&own).expect("writable");
        std::fs::write(own.join("HEAD"), "ref: refs/heads/main\n").expect("writable");
        std::fs::write(own.join("commondir"), "../..\n").expect("writable");
        std::fs::write(tree.path().join(".git"), format!("gitdir: {}\n", own.display())).expect("writable");
        assert_eq!(commit(tree.path()).as_deref(), Some("abc2"));
        std::fs::write(tree.path().join(".git"), "nonsense").expect("writable");
        assert_eq!(commit(tree.path()), None);
    }

    #[test]
    fn known_times() {
        // By `date -u -d @N +%FT%TZ`.
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), want);
        }
    }
}
