//! The gate at write(2): what the kernel accepts must have room.
//!
//! Under the writeback cache write(2) fills pages of the kernel, which sends them later. When they find no room then, it
//! is too late to tell the writer. But each write(2) first makes sure of the file's attributes, and if they were
//! invalidated it asks for them with a GETATTR that names a file handle, which nothing else does; an error in the answer
//! is what write(2) returns (fs/fuse/file.c, `fuse_cache_write_iter`).
//!
//! ```text
//! ample   the kernel trusts attributes without end: the gate costs nothing
//!   |     the end comes near: less may be dirty, and all files are invalidated, once
//! near    write(2) asks once for each file; who was let in is remembered, and which files grow
//!   |     the end is reached: those are invalidated again
//! full    write(2) always asks, and is refused for files that grew much near the end; others may change what they
//!   |     have and grow a little, until half of the headroom is taken
//! overfull  write(2) is refused; what is dirty lands in the rest of the headroom
//! ```
//!
//! So whoever fills the scratch is stopped, while a database still opens, rolls back, and writes into what it has.
//!
//! What passes no gate: stores through mmap, and the rest of a write(2) that is larger than the headroom. Those have the
//! record of losses.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use fuser::INodeNo;
use parking_lot::Mutex;

use super::bdi::DirtyAllowance;
use super::notifier::{Notice, Notices};
use crate::fs::{Attr, Kind, Pressure, Scratch};
use crate::units::SECTOR_U64;

/// Sectors that a file may grow near the end and still be written to at the end.
const GROWTH: u64 = (1 << 20) / SECTOR_U64;

/// Most files that are known one by one near the end: of more, each write(2) asks, and may go on until the headroom is half gone.
const MOST_KNOWN: usize = 1 << 16;
/// How often the disk is looked at when nothing happens, near its end and far from it.
const PERIODS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// Sectors that others may write in a second.
const FASTEST: u64 = (8 << 30) / SECTOR_U64;

/// Decides who may write. Its lock is held while notices are queued, and no other is taken under it.
pub(super) struct Gate {
    scratch: Arc<Scratch>,
    notices: Arc<Notices>,
    /// How much may be dirty; not set without a writeback cache, which needs no gate.
    allowance: OnceLock<DirtyAllowance>,
    /// The [`Pressure`] that was acted on last.
    pressure: AtomicU8,
    near: Mutex<Near>,
}

/// What is known of files since the end came near.
#[derive(Default)]
struct Near {
    /// Those whose attributes the kernel trusts.
    trusted: HashSet<u64>,
    /// Sectors that those took which were written to, before they were.
    taken: HashMap<u64, u64>,
}

impl Gate {
    /// A gate that stands open.
    pub(super) fn new(scratch: Arc<Scratch>, notices: Arc<Notices>) -> Self {
        let (allowance, pressure) = (OnceLock::new(), AtomicU8::new(Pressure::Ample as u8));
        Self { scratch, notices, allowance, pressure, near: Mutex::default() }
    }

    /// Has it watch the space, of which `allowance` may be dirty, and returns what could not be had.
    pub(super) fn arm(&self, allowance: DirtyAllowance) -> Option<String> {
        let (early, late) = (allowance.ample(), allowance.late());
        let missing = self.scratch.set_headroom(early, late).err();
        // Nobody has set it before.
        let _ = self.allowance.set(allowance);
        missing.map(|error| {
            format!(
                "no space set aside on the disk for writes that are under way ({error}): if others fill the disk, late \
                 writes may be lost, and the run is held"
            )
        })
    }

    /// Looks at the space again and again, as long as there is a gate: others may fill the disk while nobody writes here.
    /// The farther the end of the disk, the seldomer: many idle runs must cost nothing.
    pub(super) fn keep_looking(self: &Arc<Self>) {
        let gate = Arc::downgrade(self);
        let work = move || {
            while let Some(gate) = gate.upgrade() {
                gate.look();
                let period = period(gate.scratch.disk_free());
                drop(gate);
                thread::sleep(period);
            }
        };
        if let Err(error) = thread::Builder::new().name("fuse-gate".to_owned()).spawn(work) {
            tracing::warn!(%error, "that others fill the disk is noticed late");
        }
    }

    /// Looks at the space, after something may have changed it.
    pub(super) fn look(&self) -> Pressure {
        let Some(allowance) = self.allowance.get() else { return Pressure::Ample };
        let now = self.scratch.pressure();
        if now as u8 != self.pressure.load(Ordering::Acquire) {
            self.turn(now, allowance);
        }
        now
    }

    /// Whether a write(2) to this file may go on; the refusal of one is recorded.
    pub(super) fn admits(&self, ino: u64) -> bool {
        let admitted = match self.look() {
            Pressure::Ample | Pressure::Near => true,
            // Where it will write, nobody says.
            Pressure::Full => self.growth(ino) <= GROWTH,
            // Reserved space is there.
            Pressure::Overfull => self.scratch.has_reserved(ino) && self.growth(ino) == 0,
        };
        if !admitted && self.scratch.refuse_write(ino) {
            // From now on reads of it come here, so that it is known whether somebody depends on it.
            self.notices.send(Notice::Range(ino, 0..u64::MAX));
        }
        admitted
    }

    /// Whether a new file may be made: its first write(2) passes the gate, since its attributes are fresh.
    pub(super) fn admits_new(&self) -> bool {
        self.look() < Pressure::Overfull
    }

    /// A file that takes `sectors` will be written to.
    pub(super) fn watch(&self, ino: u64, sectors: u64) {
        let mut near = self.near.lock();
        if near.taken.len() < MOST_KNOWN {
            near.taken.entry(ino).or_insert(sectors);
        }
    }

    /// Sectors that a file takes more than when the end came near.
    fn growth(&self, ino: u64) -> u64 {
        let before = self.near.lock().taken.get(&ino).copied();
        before.map_or(0, |before| self.scratch.allocated(ino).saturating_sub(before))
    }

    /// Whether it needs to know what the kernel is told.
    pub(super) fn listens(&self) -> bool {
        self.pressure.load(Ordering::Acquire) != Pressure::Ample as u8
    }

    /// The kernel was told attributes, and trusts them.
    pub(super) fn told(&self, attr: &Attr) {
        if !self.listens() || attr.kind != Kind::File {
            return;
        }
        let mut near = self.near.lock();
        if self.pressure.load(Ordering::Acquire) == Pressure::Near as u8 && near.trusted.len() < MOST_KNOWN {
            near.trusted.insert(attr.ino);
        } else {
            self.notices.send(Notice::Attributes(attr.ino));
        }
    }

    fn turn(&self, now: Pressure, allowance: &DirtyAllowance) {
        let mut near = self.near.lock();
        let before = self.pressure.swap(now as u8, Ordering::AcqRel);
        if before == Pressure::Ample as u8 && now > Pressure::Ample {
            allowance.reduce();
            self.distrust_all();
        } else if now == Pressure::Ample {
            allowance.restore();
            *near = Near::default();
        }
        if now >= Pressure::Full {
            let trusted = mem::take(&mut near.trusted);
            trusted.into_iter().for_each(|ino| self.notices.send(Notice::Attributes(ino)));
        }
    }

    /// Has the kernel ask for the attributes of every file it may know.
    fn distrust_all(&self) {
        let scratch = self.scratch.clone();
        self.notices.beside(move |notifier| {
            scratch.referenced_files(|files| {
                for ino in files {
                    // One it does not know is no matter.
                    let _ = notifier.inval_inode(INodeNo(*ino), -1, 0);
                }
            });
        });
    }
}

/// How long a disk with so many free sectors needs no look.
fn period(free: u64) -> Duration {
    let [near, far] = PERIODS;
    Duration::from_secs(free / FASTEST).clamp(near, far)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypt::Keyring;
    use crate::fs::{Creator, ROOT, ScratchOptions, WriteMode};
    use crate::spec::{EngineChoice, MemoryLock};
    use crate::store::Store;

    const MIB: usize = 1 << 20;
    const CALLER: Creator = Creator { uid: 0, gid: 0, umask: 0 };

    /// A gate before a scratch of 64 MiB, of which 1 MiB may be dirty: near is below 20 MiB, headroom 18 MiB.
    struct Bench {
        gate: Gate,
        scratch: Arc<Scratch>,
        notices: Receiver<Notice>,
    }

    impl Bench {
        fn new() -> Self {
            let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keys");
            let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 64 * MIB as u64);
            let scratch =
                Arc::new(Scratch::new(store, ScratchOptions { memory: 1 << 26, uid: 0, gid: 0, mode: 0o755 }));
            let (notices, queue) = Notices::watched();
            let gate = Gate::new(scratch.clone(), Arc::new(notices));
            assert_eq!(gate.arm(DirtyAllowance::fixed(MIB as u64)), None);
            Self { gate, scratch, notices: queue }
        }

        fn file(&self, name: &str) -> Attr {
            self.scratch.mknod(ROOT, name.as_bytes(), Kind::File, 0o644, 0, &CALLER).expect("an inode")
        }

        /// As the kernel writes back: accepted already.
        fn write(&self, file: &Attr, at: usize, length: usize) {
            if self.gate.listens() {
                self.gate.watch(file.ino, self.scratch.allocated(file.ino));
            }
            let mode = WriteMode { accepted: true, ..WriteMode::default() };
            self.scratch.write(file.ino, (at * MIB) as u64, &vec![1; length * MIB], mode).expect("headroom");
            self.gate.look();
        }

        fn told(&self) -> Vec<String> {
            self.notices.try_iter().map(|notice| format!("{notice:?}")).collect()
        }
    }

    // promise: S-100
    #[test]
    fn who_fills_the_scratch_is_refused_and_who_changes_what_is_there_is_not() {
        let bench = Bench::new();
        let (large, small) = (bench.file("large"), bench.file("small"));
        bench.write(&small, 0, 1);
        bench.write(&large, 0, 40);
        assert_eq!((bench.gate.look(), bench.told().len()), (Pressure::Ample, 0), "far away it costs nothing");
        bench.write(&large, 40, 10);
        assert_eq!((bench.gate.look(), bench.told()), (Pressure::Near, vec!["Task".to_owned()]), "all are invalidated");
        assert!(bench.gate.admits(large.ino) && bench.gate.admits(small.ino));
        bench.gate.told(&large);
        assert_eq!(bench.told().len(), 0, "and trusted again");
        bench.write(&large, 50, 13);
        let again = [format!("Attributes({})", large.ino)];
        assert_eq!((bench.gate.look(), bench.told()), (Pressure::Full, again.to_vec()), "but not at the end");
        bench.gate.told(&small);
        assert_eq!(bench.told(), [format!("Attributes({})", small.ino)], "where write(2) always asks");
        assert!(!bench.gate.admits(large.ino) && bench.gate.admits(small.ino) && bench.gate.admits_new());
        assert_eq!(bench.told(), [format!("Range({}, 0..18446744073709551615)", large.ino)]);
        assert!(!bench.gate.admits(large.ino) && bench.told().is_empty(), "told once");
        assert_eq!(bench.scratch.loss_totals().refused, 1);
    }

    #[test]
    fn a_disk_is_looked_at_seldom_while_nobody_can_fill_it_soon() {
        let looks = [0, FASTEST - 1, 2 * FASTEST, u64::MAX].map(period);
        assert_eq!(looks, [PERIODS[0], PERIODS[0], Duration::from_secs(2), PERIODS[1]]);
    }

    // promise: S-100
    #[test]
    fn half_of_the_headroom_ends_it_for_all_and_freed_space_begins_it_again() {
        let bench = Bench::new();
        let (large, small) = (bench.file("large"), bench.file("small"));
        bench.write(&large, 0, 64);
        bench.write(&small, 0, 9);
        assert_eq!(bench.gate.look(), Pressure::Full);
        bench.write(&small, 9, 1);
        assert_eq!(bench.gate.look(), Pressure::Overfull);
        let other = bench.file("other");
        assert!(!bench.gate.admits(small.ino) && !bench.gate.admits(other.ino) && !bench.gate.admits_new());
        bench.scratch.unlink(ROOT, b"large").expect("it exists");
        bench.scratch.forget(large.ino, 1);
        assert_eq!(bench.gate.look(), Pressure::Ample);
        assert!(bench.gate.admits(small.ino) && bench.gate.admits_new());
        assert!(bench.gate.near.lock().taken.is_empty());
    }
}
