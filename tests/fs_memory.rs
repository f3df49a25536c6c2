//! What a file costs in memory, and that a directory with very many entries works.
//!
//! `RUNSEAL_FILES` sets the number of files (default 50 000; the promise is made for a million).

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use runseal::backing::Backing;
use runseal::crypt::Keyring;
use runseal::fs::{Caller, Kind, ROOT, Scratch, ScratchOptions, WriteMode};
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

fn scratch() -> Scratch {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
    let store = Store::new(Box::new(Forgetful), keyring, 1 << 40);
    Scratch::new(store, ScratchOptions { max_inodes: 2_000_000, uid: 0, gid: 0, mode: 0o755 })
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
// promise: S-33
#[test]
fn a_directory_of_very_many_files() {
    let files = std::env::var("RUNSEAL_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
    let fs = scratch();
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
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
