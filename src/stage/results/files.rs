//! Results out of the scratch, into a hidden directory of the output.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, geteuid};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::inherit::{Inherited, make_child, set_mode};
use super::manifest::{EntryFacts, MANIFEST, Sum};
use super::older::{Retired, WITHDRAWN};
use super::plan::{Plan, TOP};
use super::survey::{Dereference, View, survey};
use crate::audit::{Event, Trail};
use crate::fs::{Attr, FsError, Kind, Scratch};
use crate::spec::{RunId, StagingRules};
use crate::stage::rights::Rights;
use crate::stage::{Progress, StageError, inside, outside, pool};
use crate::sys::beneath::{self, Anchor, Below};
use crate::sys::identity::AssumedIdentity;
use crate::sys::path::{self, FileKind, Stat};

/// Set-user-ID and set-group-ID: in the scratch these bits had no effect.
const SET_ID: u32 = 0o6000;

/// What holes read as.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Results that are written and synced, on their way into place.
///
/// Invariant: what is below `partial` is complete but for permission bits of directories. Dropping removes it.
pub(in crate::stage) struct Publication {
    pub(in crate::stage) output: Anchor,
    pub(in crate::stage) overwrite: bool,
    pub(in crate::stage) run: RunId,
    pub(in crate::stage) partial: Anchor,
    pub(in crate::stage) plan: Plan,
    /// By entry of the plan.
    pub(in crate::stage) learnt: Vec<EntryFacts>,
    /// By entry of the plan: whether it is in its place.
    pub(in crate::stage) placed: Vec<bool>,
    /// By entry: directories that the output had already, and the output itself.
    inherited: HashMap<usize, Inherited>,
    /// SHA-256 of the manifest, once it is there.
    pub(in crate::stage) manifest: Option<Sum>,
    /// What became of the results before.
    pub(in crate::stage) retired: Retired,
    /// Whether the results are given up.
    stopped: Arc<AtomicBool>,
    rights: Rights,
    /// `partial`, locked to tell preflight of other runs that it is in use. Released after `partial` is gone.
    locked: File,
}

impl Publication {
    /// Writes and syncs everything below `from`.
    pub(in crate::stage) fn write(
        (output, rights): (&Path, Rights),
        (overwrite, rules): (bool, StagingRules),
        run: &RunId,
        (scratch, view): (&Arc<Scratch>, &View),
        progress: &dyn Progress,
        from: u64,
        stopped: Arc<AtomicBool>,
    ) -> Result<Self, StageError> {
        let dereference = if rules.dereference { Dereference::Astray } else { Dereference::Never };
        let (plan, _holds) = survey(scratch, from, view, dereference)?;
        let mut publication = Self::begin((output, rights), overwrite, run, plan, stopped)?;
        publication.check_places()?;
        publication.check_room()?;
        let totals = publication.plan.totals();
        progress.start("publishing", totals.files, totals.bytes);
        publication.make_directories()?;
        let (root, kept) = (publication.rights.keep_owners(), if rules.keep_set_id { 0o7777 } else { !SET_ID });
        let writer = Writer { to: &publication, scratch, progress, root, kept };
        publication.learnt = writer.write()?;
        publication.check_places()?;
        progress.finish();
        Ok(publication)
    }

    /// Makes the hidden directory, and the output where it is missing.
    fn begin(
        (output, rights): (&Path, Rights),
        overwrite: bool,
        run: &RunId,
        plan: Plan,
        stopped: Arc<AtomicBool>,
    ) -> Result<Self, StageError> {
        let name = hidden(run);
        let own = |entry: &super::plan::Entry| [MANIFEST, WITHDRAWN, &name].iter().any(|own| entry.name == **own);
        let reserved = |entry: &super::plan::Entry| entry.parent == TOP && own(entry);
        if let Some(entry) = plan.entries.iter().chain(&plan.skipped).find(|entry| reserved(entry)) {
            return Err(StageError::Reserved { path: plan.path_of(entry) });
        }
        let output = make_output(output, plan.entries[TOP].attr.mode & 0o777, &rights)?;
        let (partial, made) = make_hidden(&output.below(name))?;
        let locked = path::open_directory(&partial.itself()).map_err(outside("opening", partial.path()))?;
        // Some network file systems have no locks; then only the message of preflight is less exact.
        let _ = locked.try_lock();
        let inherited = Inherited::seen_in(&output.itself(), &made, rights.group());
        let inherited = HashMap::from([(TOP, inherited.map_err(outside("examining", output.path()))?)]);
        let placed = vec![false; plan.entries.len()];
        let (run, learnt, retired) = (run.clone(), Vec::new(), Retired::default());
        Ok(Self {
            output,
            overwrite,
            run,
            partial,
            plan,
            learnt,
            placed,
            inherited,
            manifest: None,
            retired,
            stopped,
            rights,
            locked,
        })
    }

    /// From now on in the name of who is to have the results.
    pub(in crate::stage) fn assume(&self) -> Result<Option<AssumedIdentity>, StageError> {
        self.rights.assume().map_err(outside("taking the rights for", self.output.path()))
    }

    /// What a result takes over from the directory of the output that it will be in.
    pub(in crate::stage) fn inherited(&self, entry: usize) -> Inherited {
        let mut at = self.plan.entries[entry].parent;
        loop {
            match self.inherited.get(&at) {
                Some(inherited) => return *inherited,
                None => at = self.plan.entries[at].parent,
            }
        }
    }

    /// Makes every directory. What goes into one that the output has already is made in a child of that one.
    fn make_directories(&mut self) -> Result<(), StageError> {
        for i in self.plan.of_kind(Kind::Directory).collect::<Vec<_>>() {
            let (copy, place) = (self.partial.below(self.plan.path(i)), self.output.below(self.plan.path(i)));
            let there = self.overwrite && path::stat(&place).is_ok_and(|there| there.kind == FileKind::Directory);
            if there {
                self.rights.check_inside(&place)?;
                let inherited = Inherited::from(&place).map_err(outside("examining", place.path()))?;
                self.inherited.insert(i, inherited);
            }
            if there && make_child(&place, &hidden(&self.run), &copy).is_ok() {
                continue;
            }
            let mode = self.inherited(i).directory_mode(self.plan.entries[i].attr.mode);
            // With its final bits already: chmod(2) could take set-group-ID away.
            path::make_directory(&copy, mode & 0o777 | 0o700).map_err(outside("creating", place.path()))?;
        }
        Ok(())
    }

    /// Whether what was written is still there to be renamed.
    pub(in crate::stage) fn is_intact(&self) -> bool {
        let named = self.rights.assume().and_then(|_in_their_name| path::stat(&self.hidden()));
        self.partial.stat().is_ok_and(|opened| named.is_ok_and(|named| named.ino == opened.ino))
    }

    /// The place of `partial`.
    fn hidden(&self) -> Below<'_> {
        self.output.below(hidden(&self.run))
    }

    /// Has the trail tell every result that is in its place.
    pub(in crate::stage) fn told(&self, trail: &Trail) {
        for (i, learnt) in self.learnt.iter().enumerate().filter(|_| trail.is_kept()) {
            if let EntryFacts::Sum(sum) = learnt {
                let path = self.output.path().join(self.plan.path(i));
                trail.record(&Event::publish_file(&path, self.plan.entries[i].attr.size, sum));
            }
        }
    }

    /// Fails once the results are given up.
    pub(in crate::stage) fn go_on(&self) -> Result<(), StageError> {
        if self.stopped.load(Ordering::Relaxed) { Err(StageError::GivenUp) } else { Ok(()) }
    }

    /// Refuses early what cannot fit, rather than after writing for hours.
    fn check_room(&self) -> Result<(), StageError> {
        let disk = nix::sys::statvfs::fstatvfs(&self.locked)
            .map_err(|e| outside("examining", self.output.path())(e.into()))?;
        let blocks = if geteuid().is_root() { disk.blocks_free() } else { disk.blocks_available() };
        let free = blocks.saturating_mul(disk.fragment_size());
        let needed = self.plan.space();
        // A file system that does not know its size reports none.
        if needed > free && disk.blocks() > 0 {
            return Err(StageError::NoRoom { path: self.output.path().to_owned(), needed, free });
        }
        Ok(())
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        let removed = self.rights.assume().and_then(|_in_their_name| {
            beneath::empty(&self.partial.itself())?;
            path::remove_directory(&self.hidden())
        });
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove the hidden directory in the output: {e}");
            }
            _ => {}
        }
    }
}

struct Writer<'a> {
    to: &'a Publication,
    scratch: &'a Scratch,
    progress: &'a dyn Progress,
    /// Whether this is root, who keeps owners.
    root: bool,
    /// Permission bits that files may have.
    kept: u32,
}

impl Writer<'_> {
    fn write(&self) -> Result<Vec<EntryFacts>, StageError> {
        let plan = &self.to.plan;
        let mut learnt = vec![EntryFacts::Nothing; plan.entries.len()];
        for i in plan.of_kind(Kind::Symlink) {
            learnt[i] = EntryFacts::Target(self.symlink(i)?);
        }
        let files = Mutex::new(plan.of_kind(Kind::File));
        let sums: Mutex<Vec<(usize, Sum)>> = Mutex::new(Vec::new());
        pool::run(
            || files.lock().next(),
            |buffer, i| {
                let sum = self.file(buffer, i)?;
                sums.lock().push((i, sum));
                self.progress.file_done();
                Ok(())
            },
        )?;
        for (i, sum) in sums.into_inner() {
            learnt[i] = EntryFacts::Sum(sum);
        }
        self.directories()?;
        Ok(learnt)
    }

    fn symlink(&self, i: usize) -> Result<OsString, StageError> {
        let (target, place) = (self.to.plan.texts[&i].clone(), self.place(i));
        path::make_symlink(&target, &place).map_err(self.outside("creating", i))?;
        self.own_and_date(i, &place)?;
        Ok(target)
    }

    fn file(&self, buffer: &mut [u8], i: usize) -> Result<Sum, StageError> {
        self.to.go_on()?;
        let attr = &self.to.plan.entries[i].attr;
        let file = path::create(&self.place(i), 0o600).map_err(self.outside("creating", i))?;
        let sum = self.copy(buffer, i, &file)?;
        self.finish(&file, attr, self.to.inherited(i)).map_err(self.outside("writing", i))?;
        let size = Stat::of(&file).map_err(self.outside("examining", i))?.size;
        let now = self.scratch.getattr(attr.ino).map_err(self.inside("examining", i))?;
        if (size, now.size, now.mtime) != (attr.size, attr.size, attr.mtime) {
            return Err(StageError::Unsettled { path: self.to.plan.path(i) });
        }
        Ok(sum)
    }

    /// Copies the data and skips the holes, which count in the checksum all the same.
    fn copy(&self, buffer: &mut [u8], i: usize, file: &File) -> Result<Sum, StageError> {
        let Attr { ino, size, .. } = self.to.plan.entries[i].attr;
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < size {
            let data = self.scratch.next_data(ino, at).map_err(self.inside("reading", i))?;
            let data = data.map_or(size..size, |d| d.start.clamp(at, size)..d.end.min(size));
            hash_zeros(&mut hash, data.start - at);
            self.progress.advance(data.start - at);
            at = data.start;
            while at < data.end {
                self.to.go_on()?;
                let want = buffer.len().min((data.end - at) as usize);
                let got = self.scratch.read(ino, at, &mut buffer[..want]).map_err(self.inside("reading", i))?;
                if got == 0 {
                    return Err(StageError::Unsettled { path: self.to.plan.path(i) });
                }
                hash.update(&buffer[..got]);
                file.write_all_at(&buffer[..got], at).map_err(self.outside("writing", i))?;
                self.progress.advance(got as u64);
                at += got as u64;
            }
        }
        Ok(hash.finalize().into())
    }

    /// Gives a written file its size (a hole may be at its end), owner, bits and time, and syncs it.
    fn finish(&self, file: &File, attr: &Attr, inherited: Inherited) -> io::Result<()> {
        file.set_len(attr.size)?;
        if self.root {
            // Before the bits: a new owner clears setuid.
            let group = inherited.group(attr.gid).map(Gid::from_raw);
            as_far_as_kept(fchown(file, Some(Uid::from_raw(attr.uid)), group))?;
        }
        as_far_as_kept(fchmod(file, Mode::from_bits_truncate(inherited.file_mode(attr.mode & self.kept))))?;
        let mtime = TimeSpec::new(attr.mtime.secs, attr.mtime.nanos.into());
        as_far_as_kept(futimens(file, &TimeSpec::UTIME_OMIT, &mtime))?;
        file.sync_all()
    }

    /// Owners and times of directories, deepest first. Their bits follow in place: one without the right to write
    /// cannot be renamed.
    fn directories(&self) -> Result<(), StageError> {
        for i in self.to.plan.of_kind(Kind::Directory).rev() {
            let place = self.place(i);
            self.own_and_date(i, &place)?;
            sync(&place).map_err(self.outside("syncing", i))?;
        }
        let partial = &self.to.partial;
        sync(&partial.itself()).map_err(outside("syncing", partial.path()))
    }

    fn own_and_date(&self, i: usize, place: &Below<'_>) -> Result<(), StageError> {
        let attr = &self.to.plan.entries[i].attr;
        if self.root {
            let group = self.to.inherited(i).group(attr.gid);
            as_far_as_kept(path::set_owner(place, Some(attr.uid), group)).map_err(self.outside("writing", i))?;
        }
        let mtime = path::set_mtime(place, (attr.mtime.secs, attr.mtime.nanos));
        as_far_as_kept(mtime).map_err(self.outside("writing", i))
    }

    fn place(&self, i: usize) -> Below<'_> {
        self.to.partial.below(self.to.plan.path(i))
    }

    /// Errors name the path people know, not the hidden one.
    fn outside(&self, action: &'static str, i: usize) -> impl FnOnce(io::Error) -> StageError {
        move |e| outside(action, self.to.output.path().join(self.to.plan.path(i)))(e)
    }

    fn inside(&self, action: &'static str, i: usize) -> impl FnOnce(FsError) -> StageError {
        move |e| inside(action, self.to.plan.path(i))(e)
    }
}

/// Name of what is not in its place yet.
fn hidden(run: &RunId) -> String {
    format!(".runseal-{run}.partial")
}

/// Opens the output, and makes it if it is missing.
pub(in crate::stage) fn make_output(output: &Path, mode: u32, rights: &Rights) -> Result<Anchor, StageError> {
    let above = rights.open_above(output)?;
    let Some(name) = output.file_name() else { return rights.open_output(output) };
    let place = above.below(name);
    let make = || {
        let mode = Inherited::from(&above.itself())?.directory_mode(mode);
        path::make_directory(&place, mode & 0o777)?;
        set_mode(&place, mode)?;
        Anchor::at(&place)
    };
    match make() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => rights.open_output(output),
        made => made.map_err(outside("creating", output)),
    }
}

/// Makes the hidden directory, and makes sure of it: nobody else may have put another one in its place.
fn make_hidden(place: &Below<'_>) -> Result<(Anchor, Stat), StageError> {
    match path::make_directory(place, 0o700) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(StageError::Appeared { path: place.path() }),
        made => made.map_err(outside("creating", place.path()))?,
    }
    let made = Anchor::at(place).and_then(|partial| {
        let found = partial.stat()?;
        Ok((found.mode & 0o777 == 0o700 && path::list(&partial.itself())?.is_empty()).then_some((partial, found)))
    });
    made.map_err(outside("opening", place.path()))?.ok_or_else(|| StageError::Appeared { path: place.path() })
}

/// Makes the names in a directory durable, where the file system can be asked to.
pub(in crate::stage) fn sync(directory: &Below<'_>) -> io::Result<()> {
    as_far_as_kept(path::open_directory(directory)?.sync_all())
}

/// Owners, bits, times and directory syncs that the file system does not have (FAT, NFS with root squashed) are done
/// without: the contents matter more.
pub(in crate::stage) fn as_far_as_kept(result: Result<(), impl Into<io::Error>>) -> io::Result<()> {
    let missing = [Errno::EPERM, Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP].map(|e| Some(e as i32));
    match result.map_err(Into::into) {
        Err(e) if missing.contains(&e.raw_os_error()) => Ok(()),
        result => result,
    }
}

fn hash_zeros(hash: &mut Sha256, mut len: u64) {
    while len > 0 {
        let n = len.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..n as usize]);
        len -= n;
    }
}
