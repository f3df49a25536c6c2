//! A trail in a file that several runs may append to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use super::event::{Event, RECOVER_TRAIL, RUNSEAL};
use super::line::{self, Letterhead, Link};
use super::{AuditError, Render};
use crate::units::hex;

/// Longest wait for another run that appends, which takes it microseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line that is looked for at the end of a file.
const LONGEST_LINE: u64 = 4 << 20;

/// How every line begins.
const BEGINNING: &[u8] = b"{\"eventVersion\":";

/// The open file, and what is known of its end.
#[derive(Debug)]
pub struct TrailFile {
    file: File,
    /// Length after our last line, if that is known: another length means that somebody else wrote.
    end: Option<u64>,
    link: Link,
    patience: Duration,
    letterhead: Letterhead,
}

/// What the end of a file holds.
struct Tail {
    link: Link,
    /// Bytes behind the last newline that are no whole line.
    torn: Option<Vec<u8>>,
    /// Whether the last line is whole but for its newline.
    unended: bool,
}

impl TrailFile {
    /// Opens or makes the file at `path`, and finds the end of its chain.
    pub fn open(path: &Path, letterhead: Letterhead) -> Result<Self, AuditError> {
        let unfit = |problem: String, remedy| AuditError::Unfit { path: path.to_owned(), problem, remedy };
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)
            .map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(unfit("is not a regular file".into(), "name one, or leave --audit out"));
        }
        if facts.mode() & 0o002 != 0 {
            return Err(unfit("everybody may write to it".into(), "chmod o-w it, so that it can be evidence"));
        }
        let mut trail = Self { file, end: None, link: Link::default(), patience: PATIENCE, letterhead };
        trail.lock().map_err(failed)?;
        let tail = trail.tail();
        trail.file.unlock().map_err(failed)?;
        match tail {
            // The length stays unknown, so that the first append looks again, under its own lock.
            Ok(tail) => trail.link = tail.link,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(unfit(error.to_string(), "name another file, and see `runseal audit verify`"));
            }
            Err(error) => return Err(failed(error)),
        }
        if facts.len() == 0 {
            sync_directory(path).map_err(failed)?;
        }
        Ok(trail)
    }

    /// Where the chain stands.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Appends the line that `render` makes, in one write, under the lock.
    pub fn append(&mut self, render: Render<'_>) -> io::Result<()> {
        self.lock().inspect_err(|_| self.patience = Duration::ZERO)?;
        let result = self.append_locked(render);
        let unlocked = self.file.unlock();
        result.and(unlocked)
    }

    /// Waits until everything is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn append_locked(&mut self, render: Render<'_>) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() && metadata.nlink() == 0 {
            return Err(io::Error::other("the trail was removed by somebody else"));
        }
        let length = metadata.len();
        let known = self.end.replace(length);
        if known.is_some_and(|known| length < known) {
            // The next event goes on from the link that is known here, so that the loss shows when the file is verified.
            return Err(io::Error::other("the trail was cut short by somebody else"));
        }
        let result = if known == Some(length) { self.write(render, b"") } else { self.write_after_others(render) };
        if result.is_err() {
            self.end = None;
        }
        result
    }

    fn write_after_others(&mut self, render: Render<'_>) -> io::Result<()> {
        let tail = self.tail()?;
        self.link = tail.link;
        if let Some(torn) = tail.torn {
            self.mark_torn(&torn)?;
        }
        self.write(render, if tail.unended { b"\n" } else { b"" })
    }

    fn write(&mut self, render: Render<'_>, prefix: &[u8]) -> io::Result<()> {
        let (line, link) = render(&self.link)?;
        let bytes = [prefix, &line, b"\n"].concat();
        let written = self.file.write(&bytes)?;
        if written < bytes.len() {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "only a part of a line could be written"));
        }
        self.end = self.end.map(|end| end + bytes.len() as u64);
        self.link = link;
        Ok(())
    }

    /// Ends a line that a crash or a full disk tore, and says so in the chain.
    fn mark_torn(&mut self, torn: &[u8]) -> io::Result<()> {
        let event = Event { name: RECOVER_TRAIL, source: RUNSEAL, ..Event::default() }
            .with("tornBytes", torn.len() as u64)
            .with("tornSha256", hex(&Sha256::digest(torn)));
        let letterhead = self.letterhead.clone();
        self.write(&mut |link| line::render(&event, &letterhead, None, 0, link), b"\n")
    }

    fn lock(&self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() >= self.patience => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another process keeps the trail locked"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn tail(&self) -> io::Result<Tail> {
        let (bytes, whole) = self.last_bytes()?;
        let (lines, rest) = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(at) => bytes.split_at(at + 1),
            None => (&b""[..], &bytes[..]),
        };
        if !rest.is_empty()
            && let Ok(checked) = line::check(rest)
        {
            return Ok(Tail { link: checked.link, torn: None, unended: true });
        }
        let link = match lines.split(|&byte| byte == b'\n').rev().find(|line| !line.is_empty()) {
            Some(last) => {
                line::check(last).map_err(|error| invalid(format!("cannot continue its last line: {error}")))?.link
            }
            None if !whole => return Err(invalid("it has no line of runseal".into())),
            None if rest.starts_with(BEGINNING) || BEGINNING.starts_with(rest) => Link::default(),
            None => return Err(invalid("it is not empty, and has no line of runseal".into())),
        };
        Ok(Tail { link, torn: (!rest.is_empty()).then(|| rest.to_vec()), unended: false })
    }

    /// The end of the file, enough of it for one whole line and what may stand behind it; and whether this is all.
    fn last_bytes(&self) -> io::Result<(Vec<u8>, bool)> {
        let length = self.file.metadata()?.len();
        let mut wanted = 8 << 10;
        loop {
            let start = length.saturating_sub(wanted);
            let mut bytes = vec![0; (length - start) as usize];
            self.file.read_exact_at(&mut bytes, start)?;
            // Two newlines enclose a whole line.
            let newlines = bytes.iter().filter(|&&byte| byte == b'\n').count();
            if start == 0 || newlines >= 2 || wanted > LONGEST_LINE {
                let whole = start == 0;
                let from = if whole { 0 } else { bytes.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1) };
                return Ok((bytes.split_off(from), whole));
            }
            wanted *= 4;
        }
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// A new file is there after a power cut only when its directory is on the disk too.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
