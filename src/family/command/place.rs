//! Where the scratch of a run appears: to its own processes at a short path, whatever the run is called; to all others
//! not at all, and nothing can be made there.
//!
//! A container engine that is told to bind a path of the scratch looks for it outside of the run, and would make the
//! directory it does not find: what a container then leaves there lies in plain text on the disk of the host.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::family::{StateError, state::system};
use crate::spec::TmpPolicy;
use crate::sys::own_mount::is_mountpoint;

/// Name of the place among the state of all runs; [`RunId`](crate::spec::RunId) refuses it.
const NAME: &str = "mnt";
/// Beside the place, inside a run: the state of runs that are started there.
const WITHIN: &str = "within";
/// Longest path of a scratch: `sun_path` takes 107 bytes, and sockets are made some names below `$TMPDIR`.
const LONGEST: usize = 60;
/// Name of the scratch in a directory of [`SPARE`].
const ELSEWHERE: &str = "runseal";
/// Directories that the view of a run covers, where they are empty, if its scratch can be nowhere better.
const SPARE: [&str; 5] = ["/run", "/mnt", "/media", "/srv", "/opt"];
/// What the scratch itself covers for the command.
pub const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// Where the scratch of a run appears in the view of its processes.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directories that this view covers with empty ones. The first holds the state of all runs, which are nobody's
    /// business inside.
    pub covers: Vec<PathBuf>,
    /// The mountpoint, below the last of them.
    pub mountpoint: PathBuf,
}

impl Place {
    /// Finds a place, and sees to it that nothing can be made there outside of the run. `base` holds the state of all
    /// runs; where the scratch will cover [`TEMPORARY`], it cannot be below. `of_another`: the command will be another
    /// user, to whom directories on the way may be closed.
    pub fn claim(base: &Path, tmp: TmpPolicy, of_another: bool) -> Result<Self, StateError> {
        let mountpoint = base.join(NAME);
        let hidden = tmp == TmpPolicy::Scratch && TEMPORARY.iter().any(|tmp| base.starts_with(tmp))
            || of_another && !base.ancestors().skip(1).all(is_open);
        if !hidden && mountpoint.as_os_str().len() <= LONGEST {
            forbid(&mountpoint)?;
            return Ok(Self { covers: vec![base.to_owned()], mountpoint });
        }
        let spare = SPARE.iter().map(PathBuf::from).find(|directory| is_empty(directory));
        let spare = spare.ok_or_else(|| StateError::NoPlace { base: base.to_owned() })?;
        Ok(Self { mountpoint: spare.join(ELSEWHERE), covers: vec![base.to_owned(), spare] })
    }

    /// What somebody has made in its place, as this process sees it, who is outside of the run.
    pub fn intruder(&self) -> Option<&Path> {
        let is_directory = self.mountpoint.symlink_metadata().is_ok_and(|found| !found.is_file());
        is_directory.then_some(&self.mountpoint)
    }
}

/// The directory with the state of the runs that are started where this process is: `base`, or inside of a run one
/// that only its processes see.
pub fn innermost(mut base: PathBuf) -> io::Result<PathBuf> {
    // The mount table has no symbolic links.
    let real = |base: &Path| fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
    while is_mountpoint(&real(&base).join(NAME))? {
        base.push(WITHIN);
    }
    Ok(base)
}

/// Whether a directory among the state of all runs is a place, and not the state of a run.
pub fn is_place(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == NAME)
}

/// A file in the way: no directory can be made there, not even by root.
fn forbid(path: &Path) -> Result<(), StateError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o000).open(path) {
        Ok(_) => Ok(()),
        Err(_) if path.symlink_metadata().is_ok_and(|found| found.is_file()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(StateError::InTheWay { path: path.to_owned() })
        }
        Err(error) => Err(system("creating", path)(error)),
    }
}

/// Whether everybody may go through.
fn is_open(directory: &Path) -> bool {
    directory.metadata().is_ok_and(|found| found.mode() & 0o001 != 0)
}

fn is_empty(directory: &Path) -> bool {
    let is_real = directory.symlink_metadata().is_ok_and(|found| found.is_dir());
    is_real && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_made_where_the_scratch_appears_inside() {
        let base = tempfile::tempdir().expect("tempdir");
        let place = Place::claim(base.path(), TmpPolicy::Host, false).expect("a short path");
        assert!(place.mountpoint.starts_with(base.path()) && place.intruder().is_none());
        let error = fs::create_dir_all(place.mountpoint.join("work")).expect_err("a file is in the way");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
        Place::claim(base.path(), TmpPolicy::Host, false).expect("as often as one likes");
        fs::remove_file(&place.mountpoint).expect("removed");
        fs::create_dir(&place.mountpoint).expect("made");
        assert_eq!(place.intruder(), Some(&*place.mountpoint));
        assert!(matches!(Place::claim(base.path(), TmpPolicy::Host, false), Err(StateError::InTheWay { .. })));
    }

    #[test]
    fn a_place_is_short_and_never_below_what_the_scratch_covers() {
        let base = Path::new("/tmp/runseal-1");
        let deep = Path::new("/run").join("x".repeat(LONGEST));
        for (base, tmp) in [(base, TmpPolicy::Scratch), (&*deep, TmpPolicy::Scratch), (&*deep, TmpPolicy::Host)] {
            match Place::claim(base, tmp, false) {
                Ok(place) => {
                    assert!(place.mountpoint.as_os_str().len() <= LONGEST, "{place:?}");
                    assert!(!place.mountpoint.starts_with(base) && place.covers[0] == base, "{place:?}");
                }
                Err(error) => assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}"),
            }
        }
    }
}
