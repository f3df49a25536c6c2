//! What a file costs in memory, that a directory with very many entries works, and that nobody takes more memory than
//! the budget has.
//!
//! `RUNSEAL_FILES` sets the number of files (default 50 000; the promise is made for a million).

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use runseal::backing::Backing;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, Fallocate, FsError, Kind, NAME_MAX, ROOT, Scratch, ScratchOptions, WriteMode, XattrMode};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::Store;

/// Bytes for one file of 4 KiB in all.
const PROMISED: usize = 512;
/// Of those, in locked memory, which this test does not see: a key slot and its reference count.
const KEY_SLOT: usize = 40;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting what it really takes: 8 bytes more, in steps of 16, at least 32 (glibc).
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn taken(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call is passed on unchanged to `System`, which keeps the contract; counting touches an atomic only.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Forgets what is written, so that only the bookkeeping is counted.
struct Forgetful;

impl Backing for Forgetful {
    fn arenas(&self) -> u32 {
        1
    }
    fn read_at(&self, _: u32, buf: &mut [u8], _: u64) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, _: u32, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u32, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_aside(&self, _: u32, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

fn scratch(memory: u64) -> (Scratch, Arc<Store>) {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
    let store = Store::new(Box::new(Forgetful), keyring, 1 << 40);
    (Scratch::new(store.clone(), ScratchOptions { memory, uid: 0, gid: 0, mode: 0o755 }), store)
}

/// As long as names of files in large directories are.
fn name(i: usize) -> Vec<u8> {
    format!("sample-{i:08}.dat").into_bytes()
}

fn names_behind(fs: &Scratch, cookie: u64, most: usize) -> Vec<(Vec<u8>, u64)> {
    let mut names = Vec::with_capacity(most);
    let mut take = |entry: runseal::fs::DirEntry<'_>| {
        names.push((entry.name.to_vec(), entry.cookie));
        names.len() < most
    };
    fs.readdir(ROOT, cookie.max(2), &mut take).unwrap();
    names
}

// One test: what others allocate meanwhile would be counted too.
#[test]
fn memory() {
    a_directory_of_very_many_files();
    HOSTILE.into_iter().for_each(|(what, work)| the_budget_bounds(what, work));
}

// promise: S-33
fn a_directory_of_very_many_files() {
    let files = std::env::var("RUNSEAL_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
    let fs = scratch(2 << 30).0;
    let caller = Creator { uid: 0, gid: 0, umask: 0 };
    let before = ALLOCATED.load(Ordering::Relaxed);
    let data = [1; 4096];
    for i in 0..files {
        let ino = fs.mknod(ROOT, &name(i), Kind::File, 0o644, 0, &caller).unwrap().ino;
        fs.write(ino, 0, &data, WriteMode::default()).unwrap();
    }
    let each = (ALLOCATED.load(Ordering::Relaxed) - before) / files;
    eprintln!("{files} files of 4 KiB: {each} bytes each, and {KEY_SLOT} for the key");
    assert!(each + KEY_SLOT <= PROMISED, "{each} + {KEY_SLOT} bytes a file");

    let mut listed = Vec::new();
    let mut cookie = 0;
    loop {
        let page = names_behind(&fs, cookie, 100);
        let Some(last) = page.last() else { break };
        cookie = last.1;
        listed.extend(page);
    }
    assert!(listed.iter().enumerate().all(|(i, (listed, _))| *listed == name(i)) && listed.len() == files);

    for i in (0..files).filter(|i| i % 8 != 0) {
        fs.unlink(ROOT, &name(i)).unwrap();
        // The reference of mknod.
        fs.forget(i as u64 + 2, 1);
    }
    for i in 0..files {
        assert_eq!(fs.lookup(ROOT, &name(i)).is_ok(), i % 8 == 0);
    }
    let middle = &listed[files / 2];
    assert_eq!(names_behind(&fs, middle.1, 1)[0].0, name((files / 2 / 8 + 1) * 8), "cookies outlive their entries");
    assert_eq!(fs.statfs().inodes - fs.statfs().inodes_free, files.div_ceil(8) as u64 + 1);
    drop(fs);
    drop(listed);
    let left = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
    assert!(left < files * 8, "{left} bytes left");
}

/// Does something again and again that is to cost memory, with a number that counts up, until it is refused.
type Work = fn(&Scratch, u64) -> Result<(), FsError>;

const CALLER: Creator = Creator { uid: 1000, gid: 1000, umask: 0 };
const SECTOR: u64 = 4096;

/// What an ordinary user can do to take much and be counted for little.
const HOSTILE: [(&str, Work); 10] = [
    ("empty files with short names", |fs, n| file(fs, n.to_string().as_bytes()).map(drop)),
    ("empty files with long names", |fs, n| file(fs, &long(n)).map(drop)),
    ("directories with an entry each", |fs, n| {
        let dir = fs.mkdir(ROOT, n.to_string().as_bytes(), 0o755, &CALLER)?.ino;
        fs.mknod(dir, b"f", Kind::Fifo, 0o644, 0, &CALLER).map(drop)
    }),
    ("symbolic links with long targets", |fs, n| {
        fs.symlink(ROOT, n.to_string().as_bytes(), &[b'x'; 4000], &CALLER).map(drop)
    }),
    ("hard links", |fs, n| {
        let ino = first(fs, n / 60_000)?;
        fs.link(ino, ROOT, format!("link-{n}").as_bytes()).map(drop)
    }),
    ("one of 64 files stays", |fs, n| {
        file(fs, n.to_string().as_bytes())?;
        match n % 64 {
            63 => (n - 62..=n).try_for_each(|gone| {
                let ino = fs.lookup(ROOT, gone.to_string().as_bytes())?.ino;
                fs.unlink(ROOT, gone.to_string().as_bytes())?;
                fs.forget(ino, 2);
                Ok(())
            }),
            _ => Ok(()),
        }
    }),
    ("small attributes", |fs, n| {
        let ino = first(fs, n / 1000)?;
        fs.setxattr(ino, format!("user.{n}").as_bytes(), b"", XattrMode::Any)
    }),
    ("an attribute of each file", |fs, n| {
        let ino = file(fs, n.to_string().as_bytes())?;
        fs.setxattr(ino, b"user.a", &[7; 40], XattrMode::Any)
    }),
    ("every second sector", |fs, n| fs.write(first(fs, 0)?, 2 * n * SECTOR, &[1; 4096], WriteMode::default())),
    ("holes in reserved space", |fs, n| {
        let ino = first(fs, 0)?;
        if n == 0 {
            fs.fallocate(ino, 0, 1 << 36, Fallocate::Allocate { keep_size: false })?;
        }
        fs.fallocate(ino, 2 * n * SECTOR, SECTOR, Fallocate::Punch)
    }),
];

/// The budget refuses `work` in the end, and what was allocated until then is not much more than what was counted.
// promise: S-34
fn the_budget_bounds(what: &str, work: Work) {
    const MEMORY: u64 = 2 << 20;
    let (fs, store) = scratch(MEMORY);
    // Buffers of writers and the like are made once.
    let warm = fs.mknod(ROOT, b"warm", Kind::File, 0o644, 0, &CALLER).unwrap().ino;
    fs.write(warm, 0, &[1; 4096], WriteMode::default()).unwrap();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let counted = store.metadata().used();
    let refused = (0..4 << 20).find_map(|n| work(&fs, n).err());
    let refused = refused.unwrap_or_else(|| panic!("{what}: never refused"));
    let (took, counted) = (ALLOCATED.load(Ordering::Relaxed) - before, store.metadata().used() - counted);
    eprintln!("{what}: {took} bytes taken, {counted} counted");
    assert!(refused.to_string().contains("no "), "{what}: {refused}");
    assert!(counted >= MEMORY * 7 / 8, "{what}: refused at {counted} bytes");
    assert!(took as u64 <= counted + counted / 4, "{what}: {took} bytes taken, {counted} counted");
    // What is there is kept, and what is removed gives room.
    assert_eq!(fs.read(warm, 0, &mut [0; 4096]).unwrap(), 4096);
    let names = names_behind(&fs, 0, 600);
    let gone = names.iter().filter(|(name, _)| fs.unlink(ROOT, name).is_ok()).count();
    if gone > 100 {
        (2..=fs.newest()).for_each(|ino| fs.forget(ino, 1000));
        file(&fs, b"again").unwrap();
    }
}

fn file(fs: &Scratch, name: &[u8]) -> Result<u64, FsError> {
    Ok(fs.mknod(ROOT, name, Kind::File, 0o644, 0, &CALLER)?.ino)
}

/// The file with this number, made if it is not there.
fn first(fs: &Scratch, n: u64) -> Result<u64, FsError> {
    let name = format!("first-{n}").into_bytes();
    match fs.lookup(ROOT, &name) {
        Ok(attr) => Ok(attr.ino),
        Err(_) => file(fs, &name),
    }
}

fn long(n: u64) -> Vec<u8> {
    format!("{n:0>width$}", width = NAME_MAX).into_bytes()
}
