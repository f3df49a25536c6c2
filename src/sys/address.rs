//! Unix sockets at paths of any length: `sun_path` (unix(7)) takes 107 bytes, and state directories may lie deeper.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;

/// Longest path that fits into an address.
const LONGEST: usize = 107;

/// A name of a socket that fits into an address, good as long as this value lives.
pub struct Name {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl Name {
    /// Of the socket at `path`: itself if short enough, else its name from its directory, which is held open.
    pub fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty())?;
        let held = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        Ok(Self { path: held.join(path.file_name().unwrap_or(OsStr::new(""))), _directory: Some(directory) })
    }

    /// The name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a listening socket at `path`.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(Name::of(path)?.path())
}

/// Connects to the socket at `path`. Whoever listens there and does not accept (it is stopped, say) holds up a caller
/// when its queue is full: at most for `patience` then (`WouldBlock`). Writing is bounded in the same way.
pub fn connect_within(path: &Path, patience: Option<Duration>) -> io::Result<UnixStream> {
    let name = Name::of(path)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(patience) = patience {
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(patience.as_secs() as _, patience.subsec_micros() as _))?;
    }
    loop {
        match connect(fd.as_raw_fd(), &UnixAddr::new(name.path())?) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(|()| fd.into()).map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_path_may_be_longer_than_an_address() {
        let dir = tempfile::tempdir().expect("tempdir");
        for depth in [1, 3, 12] {
            let parent = dir.path().join(vec!["d".repeat(40); depth].join("/"));
            std::fs::create_dir_all(&parent).expect("made");
            let path = parent.join("socket");
            let listener = bind(&path).expect("bound");
            let mut near = connect_within(&path, Some(Duration::from_secs(5))).expect("connected");
            near.write_all(b"x").expect("written");
            let mut byte = [0];
            listener.accept().expect("accepted").0.read_exact(&mut byte).expect("read");
            assert_eq!(byte, *b"x", "{}", path.display());
        }
    }

    #[test]
    fn a_listener_that_does_not_accept_holds_nobody_up_for_ever() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let _listener = bind(&path).expect("bound");
        let mut waiting = Vec::new();
        let error = loop {
            match connect_within(&path, Some(Duration::from_millis(50))) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "the queue has an end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
