//! A trail in the journal of systemd, by its native protocol (systemd.io, "Native Journal Protocol").

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::line::Link;
use super::{AuditError, Render};

/// Longest that a full journal may keep a run waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Informational, as syslog(3) counts.
const PRIORITY: u8 = 6;

/// The socket, and where the chain of this run stands.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    run: String,
    link: Link,
}

impl Journal {
    /// Connects to the journal's socket.
    pub fn open(path: &Path, run: &str) -> Result<Self, AuditError> {
        let socket = connected(path).map_err(|source| AuditError::Journal { path: path.to_owned(), source })?;
        Ok(Self { socket, path: path.to_owned(), run: run.to_owned(), link: Link::default() })
    }

    /// Where the chain stands.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Sends the line that `render` makes as one datagram, which the journal keeps whole or not at all.
    pub fn append(&mut self, render: Render<'_>) -> io::Result<()> {
        let (line, link) = render(&self.link)?;
        let entry = [&self.fields()[..], &line, b"\n"].concat();
        if let Err(error) = self.socket.send(&entry) {
            // A journal that was started anew has a new socket.
            if !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected) {
                return Err(error);
            }
            self.socket = connected(&self.path)?;
            self.socket.send(&entry)?;
        }
        self.link = link;
        Ok(())
    }

    /// JSON has no newline, and neither has a run id, so every field is in the short form `NAME=value`.
    fn fields(&self) -> Vec<u8> {
        let run = &self.run;
        format!("PRIORITY={PRIORITY}\nSYSLOG_IDENTIFIER=runseal\nRUNSEAL_RUN_ID={run}\nMESSAGE=").into_bytes()
    }
}

fn connected(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}
