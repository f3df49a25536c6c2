//! Tries the output directory as publishing will use it, and leaves no trace.

use std::ffi::OsString;
use std::fs::TryLockError;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::preflight::report::{Code, Finding};
use crate::spec::SAVED;
use crate::sys::beneath::{Anchor, Trust, Unsafe};
use crate::sys::path::{self, FileKind, shown};

/// How the names of probes begin. They come and go while other runs look at the same directory.
const PROBE: &str = ".runseal-probe-";

/// Checks `output`; answers with the path by which publishing will find it.
pub(in crate::preflight) fn check(
    output: &Path,
    (overwrite, trust): (bool, Trust),
    inputs: &[PathBuf],
    findings: &mut Vec<Finding>,
) -> PathBuf {
    let resolved = path::resolved(output);
    if let Some(input) = inputs.iter().find(|i| overlaps(i, &resolved)) {
        findings.push(overlap(output, input));
        return resolved;
    }
    if let Some(theirs) = changed_by_others(&resolved, trust) {
        findings.push(shared(output, &theirs));
        return resolved;
    }
    match path::stat_followed(output) {
        Ok(seen) if seen.kind != FileKind::Directory => findings.push(refusal(
            output,
            "exists and is not a directory".into(),
            "name a directory with --output; it is made if it is missing".into(),
        )),
        Ok(_) => {
            findings.extend(contents(&resolved, overwrite));
            findings.extend(try_to_write(&resolved).err().map(|e| not_writable(output, &e)));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => findings.extend(try_to_make(output, &resolved)),
        Err(e) => findings.push(not_writable(output, &e)),
    }
    resolved
}

/// Inputs that exist are absolute; others have a finding of their own.
fn overlaps(input: &Path, output: &Path) -> bool {
    input.is_absolute() && (input.starts_with(output) || output.starts_with(input))
}

/// The output, or the first directory on the way to it, if `trust` forbids it. What cannot be opened is told by others.
fn changed_by_others(output: &Path, trust: Trust) -> Option<PathBuf> {
    let above = output.parent().filter(|_| path::stat(output).is_err());
    let opened = match above {
        Some(above) => Anchor::open_by(trust, above),
        None => Anchor::open_by(trust, output).and_then(|anchor| anchor.check_by(trust).map(|()| anchor)),
    };
    match opened {
        Err(Unsafe::Others(theirs)) => Some(theirs),
        Err(Unsafe::Io(_)) | Ok(_) => None,
    }
}

/// What is in the way inside an existing output.
fn contents(output: &Path, overwrite: bool) -> Vec<Finding> {
    let mut names = match path::list(output) {
        Ok(names) => names,
        Err(e) => return vec![not_writable(output, &e)],
    };
    let minded = |name: &OsString| ![PROBE, SAVED].iter().any(|start| name.as_bytes().starts_with(start.as_bytes()));
    names.retain(minded);
    let (partial, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| {
        let name = name.to_string_lossy();
        name.starts_with(".runseal-") && name.ends_with(".partial")
    });
    let mut findings: Vec<Finding> = partial.iter().map(|name| leftover(&output.join(name))).collect();
    if let Some(first) = rest.first().filter(|_| !overwrite) {
        let count = rest.len();
        let names = if count == 1 { "name" } else { "names" };
        let problem = format!("holds {count} {names} already, the first is `{}`", shown(Path::new(first)));
        let remedy = "choose an empty or new directory, or allow replacing with --overwrite".into();
        findings.push(Finding::new(Code::OutputNotEmpty, shown(output), problem, remedy));
    }
    findings
}

/// Unpublished results of another run. Its publisher holds a lock on the directory as long as it lives.
fn leftover(partial: &Path) -> Finding {
    let locked = path::open_directory(partial).is_ok_and(|dir| matches!(dir.try_lock(), Err(TryLockError::WouldBlock)));
    if locked {
        let remedy = "wait for that run to end, or choose another --output".into();
        refusal(partial, "another run is publishing there now".into(), remedy)
    } else {
        let problem = "unfinished results of a run that ended while it was publishing".into();
        refusal(partial, problem, format!("remove them: rm -r '{}'", shown(partial)))
    }
}

/// Tries in the parent of a missing output what publishing will do there.
fn try_to_make(output: &Path, resolved: &Path) -> Option<Finding> {
    let parent = resolved.parent().unwrap_or(Path::new("/"));
    if path::read_symlink(resolved).is_ok() {
        let remedy = "make the directory it points to, or name another --output".into();
        return Some(refusal(output, "is a symbolic link to nothing".into(), remedy));
    }
    if let Err(e) = path::stat_followed(parent) {
        let remedy = format!("make it: mkdir -p '{}'", shown(parent));
        return Some(refusal(output, format!("its parent {} cannot be used: {e}", shown(parent)), remedy));
    }
    try_to_fill(parent).err().map(|e| not_writable(parent, &e))
}

/// Makes a directory, writes in it, and removes it.
fn try_to_fill(parent: &Path) -> io::Result<()> {
    let probe = parent.join(probe_name()?);
    path::make_directory(&probe, 0o700)?;
    let tried = try_to_write(&probe);
    let removed = path::remove_directory(&probe);
    tried.and(removed)
}

/// Makes, fills and removes a file.
fn try_to_write(directory: &Path) -> io::Result<()> {
    let probe = directory.join(probe_name()?);
    let mut file = path::create(&probe, 0o600)?;
    let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
    let removed = path::remove_file(&probe);
    written.and(removed)
}

/// A name nobody else uses: several runs may try one directory at once, each as process 1 of its own namespace.
fn probe_name() -> io::Result<String> {
    Ok(format!("{PROBE}{:016x}", getrandom::u64()?))
}

fn refusal(subject: &Path, problem: String, remedy: String) -> Finding {
    Finding::new(Code::ExportFailed, shown(subject), problem, remedy)
}

fn not_writable(path: &Path, error: &io::Error) -> Finding {
    let user = nix::unistd::geteuid();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("let user {user} write there (chown, chmod, setfacl -m u:{user}:rwx), or choose another --output")
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount it writable, or choose another --output".into(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space or inodes there, or choose another --output".into()
        }
        _ => "choose another --output".into(),
    };
    refusal(path, format!("cannot be written: {error}"), remedy)
}

fn shared(output: &Path, theirs: &Path) -> Finding {
    let what = if theirs == output { "it".to_owned() } else { shown(theirs) };
    let problem = format!("users other than root may change {what}, and could lead what root writes elsewhere");
    let remedy = "publish to a directory of root's, start the run as that user, or say that this is meant with \
                  --shared-output"
        .into();
    refusal(output, problem, remedy)
}

fn overlap(output: &Path, input: &Path) -> Finding {
    let problem = format!("output and input {} contain one another: results would mix with inputs", shown(input));
    refusal(output, problem, "choose an --output outside of every input".into())
}
