//! Locks of whole files (flock(2)): waiting for one has an end, and whoever holds one has a name.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock of `file` for this process alone; `false` if others keep it for longer than `patience`.
pub fn take(file: &File, patience: Duration) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub process: u32,
    /// The user it runs as, if it is still there.
    pub user: Option<u32>,
    /// The name of its program, which it may choose: printable ASCII only.
    pub program: String,
}

impl Holder {
    /// Who took the lock of `file`; `None` if the kernel does not say (proc(5), `/proc/locks`), or nobody has it.
    pub fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
        let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
        let process = holder_at(&fs::read_to_string("/proc/locks").ok()?, &place)?;
        let name = fs::read(format!("/proc/{process}/comm")).unwrap_or_default();
        let shown = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
        let program = name.strip_suffix(b"\n").unwrap_or(&name).iter().map(shown).collect();
        let user = fs::metadata(format!("/proc/{process}")).ok().map(|metadata| metadata.uid());
        Some(Self { process, user, program })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user {
            Some(user) => write!(f, "process {} ({}, user {user})", self.process, self.program),
            None => write!(f, "process {}", self.process),
        }
    }
}

/// `1: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF`; with `->` before the kind, it is one that waits.
fn holder_at(table: &str, place: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (kind, process) = (fields.next()?, fields.nth(2)?);
        (kind == "FLOCK" && fields.next()? == place).then(|| process.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_and_the_holder_is_known() {
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || File::create(dir.path().join("lock")).expect("made");
        let (held, other) = (open(), open());
        assert_eq!(Holder::of(&other), None);
        assert!(take(&held, Duration::ZERO).expect("a lock"));
        assert!(!take(&other, Duration::from_millis(20)).expect("a lock"));
        let holder = Holder::of(&other).expect("in the table");
        assert_eq!((holder.process, holder.user), (std::process::id(), Some(nix::unistd::geteuid().as_raw())));
        drop(held);
        assert!(take(&other, Duration::ZERO).expect("a lock"));
    }

    #[test]
    fn who_waits_is_no_holder() {
        let table = "1: FLOCK  ADVISORY  WRITE 7 00:1a:99 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 8 00:1a:98 0 EOF\n\
                     2: POSIX  ADVISORY  READ 9 00:1a:98 0 EOF\n3: FLOCK  ADVISORY  WRITE 10 00:1a:98 0 EOF\n";
        assert_eq!(holder_at(table, "00:1a:98"), Some(10));
        assert_eq!(holder_at(table, "00:1a:99"), Some(7));
        assert_eq!(holder_at(table, "00:1a:9"), None);
    }
}
