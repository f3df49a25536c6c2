//! Dirty pages of the kernel into the scratch, before the results are read from it.
//!
//! With a writeback cache the kernel holds what was written through mmap(2) until it sees fit. syncfs(2) alone is not
//! enough: newer kernels start the writeback of FUSE file systems there but do not wait for it. fsync(2) waits.
//!
//! A child process does the waiting. Were the sealed process killed while one of its own threads waits for its own
//! mount, the thread would wait for the connection to close and the connection for the thread to end, for ever.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::sys::path::shown;
use crate::sys::process;

/// Hidden subcommand of the child.
pub const SUBCOMMAND: &str = "flush-results";

/// Results the kernel could not write to the scratch.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}{}: the kernel cannot be asked to hand it over ({source}); try again",
    shown(path),
    if *others == 0 { String::new() } else { format!(" and {others} others") }
)]
pub struct Unflushed {
    path: PathBuf,
    source: io::Error,
    others: usize,
}

/// What the child answers.
#[derive(Serialize, Deserialize)]
struct Failures {
    /// First file concerned, as bytes.
    path: Vec<u8>,
    errno: i32,
    /// Files concerned besides the first.
    others: usize,
}

/// Flushes every regular file below `dir`. No process may be writing any more. `hands_on_rights`: the right to
/// open any of them is not one of root's, and has to be handed on. `within`: others may exchange what is below this
/// directory meanwhile, so links must not lead out of it; needs root.
///
/// # Errors
/// A file cannot be opened or asked for. Data that found no space is none: the scratch knows of it.
pub fn flush_results(dir: &Path, hands_on_rights: bool, within: Option<&Path>) -> Result<(), Unflushed> {
    let failed = |source| Unflushed { path: dir.to_owned(), source, others: 0 };
    let mut child = Command::new("/proc/self/exe");
    // It needs no environment, and credentials may be in it.
    child.arg(SUBCOMMAND).arg(dir).env_clear().stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(within) = within {
        child.arg("--within").arg(within);
    }
    if hands_on_rights {
        process::hand_on_file_rights(&mut child);
    }
    let mut child = child.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut said = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut said).map_err(failed)?;
    // What it said decides, not its status: PID 1 collects children while the command runs, and may have taken it.
    let _ = child.wait();
    let answer: Option<Failures> = serde_json::from_slice(&said)
        .map_err(|_| failed(io::Error::other(format!("{SUBCOMMAND} ended before it was through"))))?;
    let Some(answer) = answer else { return Ok(()) };
    Err(Unflushed {
        path: OsString::from_vec(answer.path).into(),
        source: io::Error::from_raw_os_error(answer.errno),
        others: answer.others,
    })
}

/// Life of the child: flushes, and says on standard output what failed.
pub fn flush_here(dir: &Path, within: Option<&Path>) -> io::Result<()> {
    let root = Path::new("/");
    let dir = match within {
        Some(within) => {
            nix::unistd::chroot(within)?;
            std::env::set_current_dir(root)?;
            root.join(dir.strip_prefix(within).map_err(io::Error::other)?)
        }
        None => dir.to_owned(),
    };
    let Err(Unflushed { path, source, others }) = flush_tree(&dir) else { return io::stdout().write_all(b"null") };
    let path = match within {
        Some(within) => within.join(path.strip_prefix(root).map_err(io::Error::other)?),
        None => path,
    };
    let path = path.as_os_str().as_bytes().to_owned();
    let failures = Failures { path, errno: source.raw_os_error().unwrap_or(libc::EIO), others };
    io::stdout().write_all(&serde_json::to_vec(&failures)?)
}

fn flush_tree(dir: &Path) -> Result<(), Unflushed> {
    // All files at once first; the walk then finds little left to wait for. An error here may be that of a file the
    // command has dealt with long ago, so only the walk decides.
    let _ = File::open(dir).map(nix::unistd::syncfs);
    let mut failures = Vec::new();
    let mut pending = vec![dir.to_owned()];
    // One file alone may be asked for.
    if fs::symlink_metadata(dir).is_ok_and(|found| found.is_file()) {
        failures.extend(flush_file(dir).err().map(|source| (dir.to_owned(), source)));
        pending.clear();
    }
    while let Some(dir) = pending.pop() {
        if let Err(source) = flush_files_of(&dir, &mut pending, &mut failures) {
            failures.push((dir, source));
        }
    }
    let others = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(()),
        Some((path, source)) => Err(Unflushed { path, source, others }),
    }
}

fn flush_files_of(
    dir: &Path,
    directories: &mut Vec<PathBuf>,
    failures: &mut Vec<(PathBuf, io::Error)>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            directories.push(path);
        } else if kind.is_file()
            && let Err(source) = flush_file(&path)
        {
            failures.push((path, source));
        }
    }
    Ok(())
}

fn flush_file(path: &Path) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all() {
        // What did not reach the scratch, it has recorded itself. The kernel tells it to one of those who ask, perhaps of
        // a file that was written again since.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EIO)) => Ok(()),
        synced => synced,
    }
}
