//! The client's side of `runseal exec` and `runseal cp`: what visits a live or held run.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{File, FileTimes};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tar::{Archive, Entry, EntryType};

use crate::family::{
    CopyOrder, ExecOrder, FamilyError, Record, Reply, Request, control::socket, error::system, message, state,
};
use crate::spec::Argv;
use crate::sys::path;
use crate::sys::terminal::{Raw, copy_size, open_like};

/// Kind of terminal, where the environment does not say.
const PLAIN: &str = "dumb";

/// Runs a program beside the command of a live or held run, on the standard streams of this process; on a terminal of its
/// own if they are one. Returns its exit status.
pub fn exec(run: &str, argv: Argv) -> Result<u8, FamilyError> {
    let (record, at) = state::find(run)?;
    let (input, output) = (io::stdin(), io::stdout());
    let reply = if input.is_terminal() && output.is_terminal() {
        let (screen, program) = open_like(&input).map_err(system("opening a terminal"))?;
        let streams = [program.try_clone(), program.try_clone(), Ok(program)];
        let streams = streams.into_iter().collect::<io::Result<_>>().map_err(system("copying a descriptor"))?;
        let terminal = Some(std::env::var_os("TERM").unwrap_or_else(|| PLAIN.into()));
        let exec = ExecOrder { argv, terminal, streams };
        let stream = socket::send(&at, &Request::Exec { exec }).map_err(unreachable(&record))?;
        show(screen, &stream).map_err(system("showing the terminal"))?;
        socket::reply(stream, None)
    } else {
        let streams = [input.as_fd(), output.as_fd(), io::stderr().as_fd()].map(|stream| stream.try_clone_to_owned());
        let streams = streams.into_iter().collect::<io::Result<_>>().map_err(system("copying a descriptor"))?;
        let exec = ExecOrder { argv, terminal: None, streams };
        socket::send(&at, &Request::Exec { exec }).and_then(|stream| socket::reply(stream, None))
    };
    let reply = reply.map_err(unreachable(&record))?;
    match reply.status {
        Some(status) if reply.ok => Ok(status),
        Some(status) => {
            message::warn(&reply.message);
            Ok(status)
        }
        None => reply.accepted().map(|_| 0),
    }
}

fn unreachable(record: &Record) -> impl FnOnce(io::Error) -> FamilyError {
    let run = record.run_id.to_string();
    move |source| FamilyError::Unreachable { run, source }
}

/// Relays between the terminal of this process and `screen` until the run replies on `answer`.
fn show(screen: OwnedFd, answer: &UnixStream) -> io::Result<()> {
    let stdin = io::stdin();
    let raw = Raw::new(stdin.as_fd())?;
    let mut sizes = SigSet::empty();
    sizes.add(Signal::SIGWINCH);
    sizes.thread_block()?;
    let resized = SignalFd::with_flags(&sizes, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut keys = File::from(screen.try_clone()?);
    // Ends with the process: it waits for a key that may never come.
    std::thread::spawn(move || io::copy(&mut io::stdin().lock(), &mut keys));
    let mut screen = File::from(screen);
    let mut open = true;
    loop {
        let mut waiting =
            vec![PollFd::new(answer.as_fd(), PollFlags::POLLIN), PollFd::new(resized.as_fd(), PollFlags::POLLIN)];
        if open {
            waiting.push(PollFd::new(screen.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut waiting, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if ready[1] {
            while let Ok(Some(_)) = resized.read_signal() {}
            copy_size(&stdin, &screen)?;
        }
        if ready.get(2) == Some(&true) {
            open = relay(&mut screen)?;
        } else if ready[0] {
            // All that the program has said is shown.
            drop(raw);
            return Ok(());
        }
    }
}

/// Shows what there is; `false` when no program has the other side open any more.
fn relay(screen: &mut File) -> io::Result<bool> {
    let mut chunk = [0; 16 << 10];
    match screen.read(&mut chunk) {
        // EIO: all descriptors of the other side are closed (pty(7)).
        Ok(0) | Err(_) => Ok(false),
        Ok(read) => {
            let mut out = io::stdout().lock();
            out.write_all(&chunk[..read])?;
            out.flush()?;
            Ok(true)
        }
    }
}

/// Copies `from`, a path in the scratch of a live or held run, to `to`, or to standard output. Returns what the run said.
pub fn copy(run: &str, from: &Path, to: Option<&Path>) -> Result<String, FamilyError> {
    let (record, at) = state::find(run)?;
    let path = from.strip_prefix(&record.mountpoint).unwrap_or(from).to_owned();
    let target = to.map(|to| destination(&path, to)).transpose()?;
    let (archive, sink) = io::pipe().map_err(system("pipe"))?;
    let copy = CopyOrder { path: path.into(), bare: target.is_none(), archive: vec![sink.into()] };
    let stream = socket::send(&at, &Request::Copy { copy }).map_err(unreachable(&record))?;
    let written = match &target {
        Some(target) => unpack(archive, target),
        None => io::copy(&mut { archive }, &mut io::stdout().lock()).map(drop),
    };
    // What the run says is the better reason: without it the archive may just have ended too early.
    let said: Result<Reply, _> = socket::reply(stream, None).map_err(unreachable(&record));
    let said = match (said, &written) {
        (Err(_), Err(_)) => None,
        (said, _) => Some(said?.accepted()?),
    };
    let place = target.unwrap_or_else(|| "standard output".into());
    written.map_err(|source| FamilyError::Copy { path: place, source })?;
    Ok(said.unwrap_or_default())
}

/// As cp(1): into an existing directory, or under a new name. Nothing is replaced.
fn destination(from: &Path, to: &Path) -> Result<PathBuf, FamilyError> {
    let exists = |path: PathBuf| FamilyError::Copy { path, source: io::ErrorKind::AlreadyExists.into() };
    let target = if to.is_dir() { to.join(from.file_name().unwrap_or("scratch".as_ref())) } else { to.to_owned() };
    if path::stat(&target).is_ok() { Err(exists(target)) } else { Ok(target) }
}

/// Makes what the archive holds at `target`, which must not exist, with the rights of this process. Only directories made
/// here are written into.
fn unpack(archive: impl Read, target: &Path) -> io::Result<()> {
    let mut made = HashSet::new();
    let mut late = Vec::new();
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let times = mtime(&mut entry);
        let place = place_of(&entry, target, &made)?;
        let mode = entry.header().mode()? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => {
                path::make_directory(&place, 0o700)?;
                made.insert(place.clone());
                late.push((place, mode, times));
            }
            EntryType::Symlink => {
                let aim = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?.into_owned();
                path::make_symlink(&OsString::from_vec(aim), &place)?;
                path::set_mtime(&place, times)?;
            }
            EntryType::Regular => {
                let mut file = path::create(&place, 0o600)?;
                let size = entry.header().size()?;
                if io::copy(&mut entry, &mut file)? != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                finish(&file, mode, times)?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    // Deepest first, and after their contents: a directory may forbid writing.
    for (place, mode, times) in late.into_iter().rev() {
        finish(&path::open_directory(&place)?, mode, times)?;
    }
    Ok(())
}

fn finish(file: &File, mode: u32, (seconds, nanos): (i64, u32)) -> io::Result<()> {
    let since = Duration::new(seconds.unsigned_abs(), 0);
    let time = if seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since } + Duration::from_nanos(nanos.into());
    file.set_times(FileTimes::new().set_modified(time))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

fn place_of(entry: &Entry<impl Read>, target: &Path, made: &HashSet<PathBuf>) -> io::Result<PathBuf> {
    let name = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
    let rest: PathBuf = name.components().skip(1).collect();
    if rest.as_os_str().is_empty() {
        return Ok(target.to_owned());
    }
    let place = target.join(&rest);
    let plain = rest.components().all(|component| matches!(component, Component::Normal(_)));
    if plain && place.parent().is_some_and(|parent| made.contains(parent)) {
        Ok(place)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the archive leads out of what is copied"))
    }
}

/// Seconds and nanoseconds.
fn mtime(entry: &mut Entry<impl Read>) -> (i64, u32) {
    let whole = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
    let exact = entry.pax_extensions().ok().flatten().and_then(|extensions| {
        let time = extensions.filter_map(Result::ok).find(|extension| extension.key_bytes() == b"mtime")?;
        let (seconds, nanos) = time.value().ok()?.split_once('.')?;
        Some((seconds.parse().ok()?, nanos.parse().ok()?))
    });
    exact.unwrap_or((whole, 0))
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, aim: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.as_gnu_mut().expect("a GNU header").name[..name.len()].copy_from_slice(name.as_bytes());
        if !aim.is_empty() {
            header.set_link_name(aim).expect("a short name");
        }
        header.set_cksum();
        builder.append(&header, io::empty()).expect("appended");
    }

    #[test]
    fn an_archive_cannot_write_elsewhere() {
        let dir = tempfile::tempdir().expect("tempdir");
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).expect("created");
        let link = outside.to_str().expect("UTF-8").to_owned();
        for (turn, names) in [["top/../x", ""], ["top/l/x", &link], ["top/no/x", ""]].iter().enumerate() {
            let mut builder = Builder::new(Vec::new());
            entry(&mut builder, EntryType::Directory, "top", "");
            if !names[1].is_empty() {
                entry(&mut builder, EntryType::Symlink, "top/l", names[1]);
            }
            entry(&mut builder, EntryType::Regular, names[0], "");
            let bytes = builder.into_inner().expect("finished");
            assert!(unpack(&bytes[..], &dir.path().join(turn.to_string())).is_err(), "{names:?}");
        }
        assert_eq!(std::fs::read_dir(&outside).expect("listed").count(), 0);
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn nothing_is_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("log"), "old").expect("written");
        assert!(destination(Path::new("work/log"), dir.path()).is_err());
        assert!(destination(Path::new("work/log"), &dir.path().join("log")).is_err());
        let other = destination(Path::new("work/other"), dir.path()).expect("free");
        assert_eq!(other, dir.path().join("other"));
    }
}
