//! Where the report of a run goes: checked first, written whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::family::Report;
use crate::sys::replace::Replaceable;
use crate::units::json;

/// Where `--report` goes.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    /// `None` for a stream.
    file: Option<Replaceable>,
}

impl Destination {
    /// Checks, before any work is done, that the report can be written to `path`, and holds its directory from then on.
    pub fn claim(path: &Path) -> io::Result<Self> {
        let mut path = std::path::absolute(path)?;
        let found = if is_followed(&path) { path.metadata() } else { path.symlink_metadata() };
        match found {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if is_stream(&found) => {
                open_stream(&path)?;
                return Ok(Self { path, file: None });
            }
            Ok(_) if is_followed(&path) => path = path.canonicalize()?,
            Ok(_) | Err(_) => {}
        }
        let file = Replaceable::open(&path)?;
        file.try_it()?;
        Ok(Self { path, file: Some(file) })
    }

    /// Writes the report: all of it or nothing is found under its name.
    pub fn write(&self, report: &Report) -> io::Result<()> {
        let mut text = Vec::new();
        json::write_pretty(&mut text, report)?;
        match &self.file {
            Some(file) => file.replace(&text, 0o666),
            None => open_stream(&self.path)?.write_all(&text),
        }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Links of the system (`/dev/stdout`) mean what they lead to: a file is replaced behind them. Elsewhere somebody may
/// have planted them.
fn is_followed(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|system| path.starts_with(system))
}

fn open_stream(path: &Path) -> io::Result<File> {
    let flags = if is_followed(path) { 0 } else { libc::O_NOFOLLOW };
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

/// Pipes and terminals (`--report /dev/stdout`) take text as it comes.
fn is_stream(found: &std::fs::Metadata) -> bool {
    let kind = found.file_type();
    kind.is_fifo() || kind.is_char_device()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::state::facts::Kind;

    fn report() -> Report {
        Report::new("r".parse().expect("valid id"), Kind::Run)
    }

    #[test]
    fn a_destination_is_checked_first_and_written_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Destination::claim(&dir.path().join("missing/report.json")).is_err());
        assert!(Destination::claim(dir.path()).is_err());
        let path = dir.path().join("report.json");
        let destination = Destination::claim(&path).expect("writable");
        assert!(!path.exists());
        destination.write(&report()).expect("written");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("parses").run_id.as_str(), "r");
    }

    // promise: T-54
    #[test]
    fn a_report_follows_no_link_that_somebody_has_planted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, victim) = (dir.path().join("report.json"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").expect("written");
        let plant = |link: &Path| std::os::unix::fs::symlink(&victim, link).expect("planted");
        plant(&path);
        plant(&dir.path().join(format!("report.json.{}.tmp", std::process::id())));
        Destination::claim(&path).expect("writable").write(&report()).expect("written");
        assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
        assert!(path.symlink_metadata().expect("there").is_file());
        // Nor does what is planted between the check and the report lead elsewhere.
        let destination = Destination::claim(&path).expect("writable");
        std::fs::remove_file(&path).expect("removed");
        plant(&path);
        destination.write(&report()).expect("written");
        assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
    }
}
