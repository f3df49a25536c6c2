//! Dirty pages of the kernel into the scratch, before the results are read from it.
//!
//! With a writeback cache the kernel holds what was written through mmap(2) until it sees fit. syncfs(2) alone is not
//! enough: newer kernels start the writeback of FUSE file systems there but do not wait for it. fsync(2) waits.
//!
//! A child process does the waiting. Were the sealed process killed while one of its own threads waits for its own
//! mount, the thread would wait for the connection to close and the connection for the thread to end, for ever.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::sys::beneath::{Anchor, Below};
use crate::sys::path::{self, FileKind, shown};
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

/// Flushes every regular file at and below `below` of the scratch mounted on `scratch`. No process may be writing any
/// more. `hands_on_rights`: the right to open any of them is not one of root's, and has to be handed on. Others
/// may exchange what is there meanwhile: no link is followed, and nothing that is mounted in the scratch entered.
///
/// # Errors
/// A file cannot be opened or asked for. Data that found no space is none: the scratch knows of it.
pub fn flush_results(scratch: &Path, below: &Path, hands_on_rights: bool) -> Result<(), Unflushed> {
    let failed = |source| Unflushed { path: scratch.join(below), source, others: 0 };
    let mut child = Command::new("/proc/self/exe");
    // It needs no environment, and credentials may be in it.
    child.arg(SUBCOMMAND).arg(scratch).arg(below).env_clear().stdin(Stdio::null());
    if hands_on_rights {
        process::hand_on_file_rights(&mut child);
    }
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let (mut said, mut trouble) = (Vec::new(), String::new());
    child.stdout.take().expect("piped").read_to_end(&mut said).map_err(failed)?;
    let _ = child.stderr.take().expect("piped").read_to_string(&mut trouble);
    // What it said decides, not its status: PID 1 collects children while the command runs, and may have taken it.
    let _ = child.wait();
    let answer: Option<Failures> = serde_json::from_slice(&said).map_err(|_| {
        let trouble = trouble.trim();
        failed(io::Error::other(format!("{SUBCOMMAND} ended before it was through: {trouble}")))
    })?;
    let Some(answer) = answer else { return Ok(()) };
    Err(Unflushed {
        path: OsString::from_vec(answer.path).into(),
        source: io::Error::from_raw_os_error(answer.errno),
        others: answer.others,
    })
}

/// Life of the child: flushes, and says on standard output what failed.
pub fn flush_here(scratch: &Path, below: &Path) -> io::Result<()> {
    // The way to the mountpoint is nobody else's.
    let scratch = Anchor::follow(scratch)?;
    let Err(Unflushed { path, source, others }) = flush_tree(scratch.below(below)) else {
        return io::stdout().write_all(b"null");
    };
    let path = path.as_os_str().as_bytes().to_owned();
    let failures = Failures { path, errno: source.raw_os_error().unwrap_or(libc::EIO), others };
    io::stdout().write_all(&serde_json::to_vec(&failures)?)
}

fn flush_tree(top: Below<'_>) -> Result<(), Unflushed> {
    // All files at once first; the walk then finds little left to wait for. An error here may be that of a file the
    // command has dealt with long ago, so only the walk decides.
    let _ = path::open_directory(&top).map(nix::unistd::syncfs);
    let mut failures = Vec::new();
    let mut pending = Vec::new();
    // One file alone may be asked for.
    if path::stat(&top).is_ok_and(|found| found.kind == FileKind::File) {
        failures.extend(flush_file(&top).err().map(|source| (top.path(), source)));
    } else {
        pending.push(top);
    }
    while let Some(directory) = pending.pop() {
        if let Err(source) = flush_files_of(&directory, &mut pending, &mut failures) {
            failures.push((directory.path(), source));
        }
    }
    let others = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(()),
        Some((path, source)) => Err(Unflushed { path, source, others }),
    }
}

fn flush_files_of<'a>(
    directory: &Below<'a>,
    directories: &mut Vec<Below<'a>>,
    failures: &mut Vec<(PathBuf, io::Error)>,
) -> io::Result<()> {
    for name in path::list(directory)? {
        let place = directory.join(name);
        match path::stat(&place)?.kind {
            FileKind::Directory => directories.push(place),
            FileKind::File => failures.extend(flush_file(&place).err().map(|source| (place.path(), source))),
            FileKind::Symlink | FileKind::Special(_) => {}
        }
    }
    Ok(())
}

fn flush_file(place: &Below<'_>) -> io::Result<()> {
    match path::open(place)?.sync_all() {
        // What did not reach the scratch, it has recorded itself. The kernel tells it to one of those who ask, perhaps of
        // a file that was written again since.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EIO)) => Ok(()),
        synced => synced,
    }
}
