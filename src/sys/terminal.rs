//! Terminals: a pair of them, their size, and raw mode that does not outlive its owner.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// A new pseudoterminal that looks like `terminal`: the side of whoever shows it, and that of the program.
pub fn open_like(terminal: impl AsFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let settings = tcgetattr(&terminal)?;
    let pair = openpty(None, &settings)?;
    copy_size(terminal, &pair.master)?;
    Ok((pair.master, pair.slave))
}

/// Gives one terminal the size of another.
pub fn copy_size(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    // SAFETY: a plain C struct of four numbers, for which zeros are valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one such struct, which outlives the call. nix has no wrapper for it.
    let read = unsafe { libc::ioctl(from.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TIOCSWINSZ reads one such struct, which outlives the call. nix has no wrapper for it.
    let written = unsafe { libc::ioctl(to.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if written == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A terminal that hands every key through as it is; dropping this gives it its settings back.
pub struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// Changes the settings.
    pub fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}
