//! Many threads on shared directories: nothing deadlocks, and at the end names, link counts, parents and counters agree.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Attr, Creator, FsError, Kind, ROOT, RenameFlags, Scratch, ScratchOptions, SetAttr, WriteMode};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::Store;

const THREADS: u64 = 8;
const STEPS: u64 = 15_000;
/// Far more than the test takes on a busy machine.
const DEADLOCK: Duration = Duration::from_secs(120);
const CALLER: Creator = Creator { uid: 1, gid: 1, umask: 0 };
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];

fn scratch() -> Scratch {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
    let store = Store::new(Box::new(MemoryBacking::new(2)), keyring, 1 << 28);
    Scratch::new(store, ScratchOptions { memory: 1 << 30, uid: 0, gid: 0, mode: 0o755 })
}

/// Runs `work` and fails if it does not end.
fn watched(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(DEADLOCK) {
        panic!("no end after {DEADLOCK:?}: deadlock");
    }
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

/// xorshift64*: the same steps on every machine, given the same interleaving.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.below(NAMES.len() as u64) as usize]
    }
}

/// Directories that are, or were, in the tree; each entry is a reference.
struct Tree {
    fs: Scratch,
    directories: RwLock<Vec<u64>>,
}

impl Tree {
    /// A directory, most often one of the last made, so that removed ones come up but do not prevail.
    fn directory(&self, random: &mut Random) -> u64 {
        let directories = self.directories.read();
        let n = directories.len() as u64;
        directories[(n - 1 - random.below(n.min(12))) as usize]
    }

    fn step(&self, random: &mut Random) {
        let (dir, name) = (self.directory(random), random.name());
        let (other, new_name) = (self.directory(random), random.name());
        let result = match random.below(12) {
            0 | 1 => self.fs.mknod(dir, name, Kind::File, 0o644, 0, &CALLER).map(|attr| self.use_file(attr)),
            2 | 3 => self.fs.mkdir(dir, name, 0o755, &CALLER).map(|attr| self.directories.write().push(attr.ino)),
            4 => self.fs.unlink(dir, name),
            5 => self.fs.rmdir(dir, name),
            6 | 7 => self.fs.rename(dir, name, other, new_name, RenameFlags::default()),
            8 => {
                let exchange = random.below(2) == 0;
                let flags = RenameFlags { exchange, whiteout: !exchange, no_replace: false };
                self.fs.rename(dir, name, other, new_name, flags)
            }
            9 => self.fs.lookup(dir, name).and_then(|attr| {
                let linked = self.fs.link(attr.ino, other, new_name).map(|attr| self.fs.forget(attr.ino, 1));
                self.fs.forget(attr.ino, 1);
                linked
            }),
            10 => {
                let mut taken = Vec::new();
                let listed = self.fs.readdirplus(dir, 2, &mut |entry, _| {
                    taken.push(entry.ino);
                    true
                });
                taken.iter().for_each(|&ino| self.fs.forget(ino, 1));
                listed
            }
            _ => self.fs.lookup(dir, b"..").map(|attr| self.fs.forget(attr.ino, 1)),
        };
        match result {
            Err(FsError::Store(error)) => panic!("{error}"),
            Err(FsError::NoInodes | FsError::TooManyLinks | FsError::NotSupported) => panic!("{result:?}"),
            _ => {}
        }
    }

    fn use_file(&self, attr: Attr) {
        self.fs.write(attr.ino, 0, b"x", WriteMode::default()).unwrap();
        self.fs.setattr(attr.ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
        self.fs.forget(attr.ino, 1);
    }

    /// Everything that must be true of a tree nobody changes.
    fn check(&self) {
        let mut names: HashMap<u64, u32> = HashMap::new();
        let mut directories = vec![(ROOT, ROOT)];
        let mut reached = HashSet::from([ROOT]);
        while let Some((dir, parent)) = directories.pop() {
            assert_eq!(self.fs.lookup(dir, b"..").map(|attr| attr.ino).unwrap(), parent);
            self.fs.forget(parent, 1);
            let mut subdirectories = 0;
            let mut entries = 0;
            let mut seen = HashSet::new();
            let mut take = |entry: runseal::fs::DirEntry<'_>| {
                assert!(seen.insert(entry.name.to_vec()), "a name stands once");
                entries += 1;
                if entry.kind == Kind::Directory {
                    subdirectories += 1;
                    assert!(reached.insert(entry.ino), "a directory has one name");
                    directories.push((entry.ino, dir));
                } else {
                    *names.entry(entry.ino).or_default() += 1;
                }
                true
            };
            self.fs.readdir(dir, 2, &mut take).unwrap();
            let attr = self.fs.getattr(dir).unwrap();
            assert_eq!((attr.nlink, attr.size), (2 + subdirectories, (entries + 2) * 20));
        }
        for (ino, links) in &names {
            assert_eq!(self.fs.getattr(*ino).unwrap().nlink, *links);
        }
        let statfs = self.fs.statfs();
        assert_eq!(statfs.inodes - statfs.inodes_free, (reached.len() + names.len()) as u64, "nothing else is alive");
    }
}

#[test]
fn shared_directories_survive_many_threads() {
    watched(|| {
        let tree = Tree { fs: scratch(), directories: RwLock::new(vec![ROOT]) };
        thread::scope(|scope| {
            for seed in 1..=THREADS {
                let tree = &tree;
                scope.spawn(move || {
                    let mut random = Random(seed);
                    (0..STEPS).for_each(|_| tree.step(&mut random));
                });
            }
        });
        let made = std::mem::take(&mut *tree.directories.write());
        assert!(made.len() > 100, "the threads did something");
        made.iter().for_each(|&ino| tree.fs.forget(ino, 1));
        tree.check();
    });
}

/// Cross-directory moves in a ring, each of which may only succeed while the others stand still.
#[test]
fn directories_never_move_below_themselves() {
    watched(|| {
        let fs = scratch();
        let dirs: Vec<u64> = (0..4).map(|i| fs.mkdir(ROOT, NAMES[i], 0o755, &CALLER).unwrap().ino).collect();
        thread::scope(|scope| {
            for seed in 1..=THREADS {
                let (fs, dirs) = (&fs, &dirs);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..STEPS {
                        let at = |random: &mut Random| match random.below(5) {
                            4 => ROOT,
                            i => dirs[i as usize],
                        };
                        let (from, to, name) = (at(&mut random), at(&mut random), random.name());
                        let exchange = random.below(4) == 0;
                        let flags = RenameFlags { exchange, no_replace: !exchange, whiteout: false };
                        let new_name = random.name();
                        let _ = fs.rename(from, name, to, new_name, flags);
                    }
                });
            }
        });
        dirs.iter().for_each(|&ino| fs.forget(ino, 1));
        let tree = Tree { fs, directories: RwLock::new(Vec::new()) };
        tree.check();
    });
}

/// A name that is only ever replaced is there at every moment, for lookup and for listing.
#[test]
fn replacing_leaves_no_gap() {
    watched(|| {
        let fs = scratch();
        let make = |name: &[u8]| {
            let ino = fs.mknod(ROOT, name, Kind::File, 0o644, 0, &CALLER).unwrap().ino;
            fs.forget(ino, 1);
        };
        make(b"constant");
        let (stop, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let attr = fs.lookup(ROOT, b"constant").expect("the name is always there");
                        assert!(fs.getattr(attr.ino).is_ok(), "a referenced inode lives");
                        fs.forget(attr.ino, 1);
                        let mut found = 0;
                        let mut taken = Vec::new();
                        fs.readdirplus(ROOT, 2, &mut |entry, attr| {
                            found += u32::from(entry.name == b"constant");
                            taken.push(attr.ino);
                            true
                        })
                        .unwrap();
                        taken.iter().for_each(|&ino| fs.forget(ino, 1));
                        assert_eq!(found, 1);
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut replaced = 0;
            while replaced < 5_000 || looks.load(Ordering::Relaxed) < 1_000 {
                make(b"new");
                fs.rename(ROOT, b"new", ROOT, b"constant", RenameFlags::default()).unwrap();
                replaced += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs.statfs().inodes_free, fs.statfs().inodes - 2);
    });
}

/// Operations elsewhere go on while a directory is being listed and a file written.
#[test]
fn a_listing_blocks_nobody() {
    watched(|| {
        let fs = scratch();
        fs.mknod(ROOT, b"a", Kind::File, 0o644, 0, &CALLER).unwrap();
        fs.readdir(ROOT, 2, &mut |_| {
            thread::scope(|scope| scope.spawn(|| fs.mkdir(ROOT, b"b", 0o755, &CALLER).unwrap()).join().unwrap());
            false
        })
        .unwrap();
        assert!(fs.lookup(ROOT, b"b").is_ok());
    });
}
