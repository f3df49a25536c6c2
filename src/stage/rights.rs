//! In whose name files of this machine are read and written, and whom their directories may belong to.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use super::{StageError, outside};
use crate::spec::Identity;
use crate::sys::beneath::{Anchor, Below, Trust, Unsafe};
use crate::sys::identity::{self, AssumedIdentity};

/// What staging may do outside of the scratch.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    on_behalf: Option<Identity>,
    trust: Trust,
}

impl Rights {
    /// Root in its own name minds who may change the output, unless it was told that this is meant.
    pub(super) fn new(on_behalf: Option<Identity>, shared_output: bool) -> Self {
        let own = on_behalf.is_none() && !shared_output && identity::is_root_of_machine();
        Self { on_behalf, trust: if own { Trust::Own } else { Trust::Anybody } }
    }

    /// From now on, and for the threads that begin meanwhile.
    pub(super) fn assume(&self) -> io::Result<Option<AssumedIdentity>> {
        let assume = |who: &Identity| identity::assume(who.uid, who.gid, &who.groups);
        self.on_behalf.as_ref().map(assume).transpose()
    }

    /// The group that new files have.
    pub(super) fn group(&self) -> u32 {
        self.on_behalf.as_ref().map_or_else(|| getegid().as_raw(), |who| who.gid)
    }

    /// Whether files can be given to others.
    pub(super) fn keep_owners(&self) -> bool {
        self.on_behalf.is_none() && geteuid().is_root()
    }

    /// Opens the directory above the output.
    pub(super) fn open_above(&self, output: &Path) -> Result<Anchor, StageError> {
        let above = output.parent().unwrap_or(Path::new("/"));
        Anchor::open_by(self.trust, above).map_err(|error| refused("opening", above, error))
    }

    /// Opens the output, below the directory above it.
    pub(super) fn open_output(&self, output: &Path) -> Result<Anchor, StageError> {
        let anchor = Anchor::open_by(self.trust, output).map_err(|error| refused("opening", output, error))?;
        anchor.check_by(self.trust).map_err(|error| refused("opening", output, error))?;
        Ok(anchor)
    }

    /// Whether the directory at `place`, which the output has already, may take results.
    pub(super) fn check_inside(&self, place: &Below<'_>) -> Result<(), StageError> {
        if self.trust == Trust::Anybody {
            return Ok(());
        }
        let directory = Anchor::at(place).map_err(outside("opening", place.path()))?;
        directory.check_by(self.trust).map_err(|error| refused("opening", &place.path(), error))
    }
}

fn refused(action: &'static str, path: &Path, error: Unsafe) -> StageError {
    match error {
        Unsafe::Io(error) => outside(action, path)(error),
        Unsafe::Others(theirs) => StageError::Shared { path: PathBuf::from(path), theirs },
    }
}
