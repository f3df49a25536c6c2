//! The kernel's knobs of one mount: how far it reads ahead, and how much written data it keeps before it sends it.
//!
//! `strict_limit` stays 1. With 0 and a daemon in the memory cgroup of its workload, every page of the cgroup can
//! become dirty while the daemon waits for memory to write one: a deadlock for good.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::cgroup::{memory_limit, memory_total};

/// KiB the kernel reads ahead of a sequential reader; its own default is 128.
const READ_AHEAD_KB: u64 = 1024;
/// Most dirty bytes allowed, whatever memory there is. With more, writeback begins so late that writer and workers take
/// turns instead of working side by side (docs/benchmarks.md, "What measuring changed").
const MOST_DIRTY: u64 = 256 << 20;
/// The share of the memory around that may be dirty, as a divisor.
const DIRTY_SHARE: u64 = 4;
/// The share of the scratch that may be dirty, as a divisor, and the bytes that may be in any case.
const SCRATCH_SHARE: u64 = 8;
const LEAST_DIRTY: u64 = 4 << 20;
/// The same near the end of the space: so much is kept free behind it.
const MOST_LATE: u64 = 16 << 20;
const LATE_SHARE: u64 = 32;
const LEAST_LATE: u64 = 2 << 20;
/// The kernel's own allowance for a FUSE mount, as a divisor of the memory it could dirty (fs/fuse/inode.c,
/// `bdi_set_max_ratio(sb->s_bdi, 1)`).
const KERNEL_SHARE: u64 = 100;

/// How many bytes of a mount may be dirty, and the knob for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DirtyAllowance {
    ample: u64,
    late: u64,
    /// `max_bytes`, if it can be set.
    knob: Option<PathBuf>,
}

impl DirtyAllowance {
    /// While space is ample.
    pub(super) fn ample(&self) -> u64 {
        self.ample
    }

    /// After [`DirtyAllowance::reduce`].
    pub(super) fn late(&self) -> u64 {
        self.late
    }

    /// From now on as little as near the end of the space.
    pub(super) fn reduce(&self) {
        self.allow(self.late);
    }

    /// From now on as much as while space is ample.
    pub(super) fn restore(&self) {
        self.allow(self.ample);
    }

    fn allow(&self, bytes: u64) {
        let Some(knob) = &self.knob else { return };
        if let Err(error) = write(knob, bytes) {
            tracing::warn!(%error, "max_bytes not set");
        }
    }
}

/// The knobs in force.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Knobs {
    /// `read_ahead_kb`
    pub read_ahead_kb: Option<u64>,
    /// `max_bytes`
    pub max_bytes: Option<u64>,
    /// The same, for who watches the space.
    pub allowance: DirtyAllowance,
    /// What could not be set, each with the reason.
    pub degraded: Vec<String>,
}

/// Sets the knobs of the mount with this device number, of a scratch of `space` bytes, as far as this process may.
pub(super) fn tune(device: (u32, u32), space: u64) -> Knobs {
    let dir = PathBuf::from(format!("/sys/class/bdi/{}:{}", device.0, device.1));
    tune_at(&dir, memory_limit(), memory_total(), space)
}

fn tune_at(dir: &Path, memory_limit: Option<u64>, memory_total: Option<u64>, space: u64) -> Knobs {
    let mut degraded = Vec::new();
    if let Err(error) = write(&dir.join("read_ahead_kb"), READ_AHEAD_KB) {
        degraded.push(format!("read_ahead_kb not set ({error}): sequential reads are slower"));
    }
    let share = |limit: u64| (limit / DIRTY_SHARE).min(MOST_DIRTY).min((space / SCRATCH_SHARE).max(LEAST_DIRTY));
    let dirty = memory_limit.map(share);
    let set = dirty.map_or(Err(io::ErrorKind::NotFound.into()), |bytes| allow_dirty(dir, bytes, memory_total));
    if let Err(error) = &set {
        degraded.push(format!("max_bytes not set ({error}): writers are slowed down early"));
    }
    let max_bytes = read(&dir.join("max_bytes"));
    let allowance = match (set, max_bytes) {
        (Ok(()), Some(ample)) => {
            let late = (space / LATE_SHARE).clamp(LEAST_LATE, MOST_LATE).min(ample);
            DirtyAllowance { ample, late, knob: Some(dir.join("max_bytes")) }
        }
        (set, max_bytes) => {
            let of_kernel = memory_total.map_or(MOST_DIRTY, |total| total / KERNEL_SHARE);
            let bytes = max_bytes.or(set.ok().and(dirty)).unwrap_or(of_kernel);
            DirtyAllowance { ample: bytes, late: bytes, knob: None }
        }
    };
    Knobs { read_ahead_kb: read(&dir.join("read_ahead_kb")), max_bytes, allowance, degraded }
}

/// Allows `bytes` of dirty pages. The kernel refuses more than half of the memory it could dirty at this moment, so
/// ask for less then; before Linux 6.2 there is only a percentage.
fn allow_dirty(dir: &Path, bytes: u64, memory_total: Option<u64>) -> io::Result<()> {
    let mut result = Ok(());
    for bytes in [bytes, bytes / 2, bytes / 4, bytes / 8] {
        result = write(&dir.join("max_bytes"), bytes);
        match &result {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let percent = memory_total.map_or(1, |total| (bytes * 100 / total.max(1)).clamp(1, 100));
                return write(&dir.join("max_ratio"), percent);
            }
            _ => break,
        }
    }
    result
}

fn write(knob: &Path, value: u64) -> io::Result<()> {
    // Opened without O_CREAT: a knob the kernel does not have is NotFound.
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(knob)?;
    io::Write::write_all(&mut file, value.to_string().as_bytes())
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
impl DirtyAllowance {
    /// Always the same, without a knob.
    pub(super) fn fixed(bytes: u64) -> Self {
        Self { ample: bytes, late: bytes, knob: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for name in files {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        dir
    }

    const LARGE: u64 = 1 << 40;

    #[test]
    fn the_allowance_is_a_quarter_of_the_limit_up_to_256_mebibytes() {
        let dir = knobs(&["read_ahead_kb", "max_bytes"]);
        let set = tune_at(dir.path(), Some(256 << 20), Some(64 << 30), LARGE);
        assert_eq!((set.read_ahead_kb, set.max_bytes, set.degraded), (Some(1024), Some(64 << 20), vec![]));
        let dir = knobs(&["read_ahead_kb", "max_bytes"]);
        assert_eq!(tune_at(dir.path(), Some(64 << 30), None, LARGE).max_bytes, Some(256 << 20));
    }

    #[test]
    fn a_small_scratch_is_a_small_allowance_and_a_smaller_one_near_its_end() {
        for (space, ample, late) in [(LARGE, 256, 16), (256 << 20, 32, 8), (64 << 20, 8, 2), (1 << 20, 4, 2)] {
            let dir = knobs(&["read_ahead_kb", "max_bytes"]);
            let Knobs { allowance, .. } = tune_at(dir.path(), Some(64 << 30), None, space);
            assert_eq!((allowance.ample() >> 20, allowance.late() >> 20), (ample, late), "{space}");
            allowance.reduce();
            assert_eq!(read(&dir.path().join("max_bytes")), Some(late << 20));
            allowance.restore();
            assert_eq!(read(&dir.path().join("max_bytes")), Some(ample << 20));
        }
    }

    #[test]
    fn without_max_bytes_the_ratio_is_set() {
        let dir = knobs(&["read_ahead_kb", "max_ratio"]);
        let set = tune_at(dir.path(), Some(8 << 30), Some(4 << 30), LARGE);
        assert_eq!(set.degraded, Vec::<String>::new());
        assert_eq!(read(&dir.path().join("max_ratio")), Some(6));
        assert_eq!((set.allowance.late(), set.allowance.knob), (256 << 20, None));
    }

    #[test]
    fn knobs_that_cannot_be_set_are_named_once_each() {
        let set = tune_at(Path::new("/nonexistent"), Some(1 << 30), Some(400 << 20), LARGE);
        assert_eq!(set.degraded.len(), 2, "{set:?}");
        assert!(set.degraded[0].contains("read_ahead_kb") && set.degraded[1].contains("max_bytes"));
        assert_eq!((set.allowance.ample(), set.allowance.late()), (4 << 20, 4 << 20), "what the kernel allows");
    }
}
