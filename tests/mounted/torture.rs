//! Many writers on a scratch that is full again and again, over the limit and over the disk.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use crate::files::Aligned;
use crate::full::Disk;
use crate::scratch_mount::{Mounted, PATIENCE, Setup, eventually, mount_with, pattern};

const MIB: usize = 1 << 20;
const WRITERS: u64 = 16;
/// `RUNSEAL_ROUNDS` says otherwise.
const ROUNDS: u64 = 5;

/// How a writer works.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Pieces through the page cache, never looking before write(2) fails.
    Blind,
    /// The same, with fsync(2) after each.
    Careful,
    /// O_DIRECT.
    Direct,
    /// Removes what it has written when it is full, and begins again, a few times.
    Refiller,
}

/// What a writer was told is written.
struct Promise {
    path: PathBuf,
    seed: u64,
    length: usize,
}

/// What a reader saw: file, offset, bytes.
type Sight = (PathBuf, u64, Vec<u8>);

fn way(writer: u64) -> Way {
    [Way::Blind, Way::Careful, Way::Direct, Way::Refiller][(writer % 4) as usize]
}

/// Writes until write(2) fails; what it accepted before is promised.
fn write_until_full(dir: &Path, writer: u64, seed: u64) -> Promise {
    let (path, way) = (dir.join(format!("w{writer}")), way(writer));
    let direct = if way == Way::Direct { libc::O_DIRECT } else { 0 };
    let piece = if way == Way::Direct { 64 << 10 } else { 4096 << (writer % 5) };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(direct);
    let Ok(file) = options.open(&path) else { return Promise { path, seed, length: 0 } };
    let data = pattern(seed, 4 * MIB);
    let mut aligned = Aligned::new(piece);
    let start = Instant::now();
    let mut length = 0;
    loop {
        assert!(start.elapsed() < 3 * PATIENCE, "writer {writer} hears of no error");
        let from = length % data.len();
        aligned.bytes().copy_from_slice(&data[from..from + piece]);
        let written = (&file).write(aligned.bytes()).and_then(|written| {
            if way == Way::Careful {
                file.sync_data()?;
            }
            Ok(written)
        });
        match written {
            Ok(written) if written == piece => length += piece,
            Ok(short) => return Promise { path, seed, length: length + short },
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "writer {writer}: {error}");
                return Promise { path, seed, length };
            }
        }
    }
}

/// Whether bytes are what the writer of a promise wrote, from the beginning.
fn kept(promise: &Promise, bytes: &[u8]) -> bool {
    let data = pattern(promise.seed, 4 * MIB);
    bytes.chunks(data.len()).all(|chunk| *chunk == data[..chunk.len()])
}

/// Reads here and there as long as others write; what it saw must be there at the end.
fn read_along(dir: PathBuf, stop: Arc<AtomicBool>, seen: Arc<Mutex<VecDeque<Sight>>>) {
    let mut turn = 0u64;
    while !stop.load(Ordering::Relaxed) {
        // Those that remove or replace nothing.
        let writer = (turn * 7) % WRITERS;
        turn += 1;
        if way(writer) == Way::Refiller {
            continue;
        }
        let path = dir.join(format!("w{writer}"));
        let Ok(file) = File::open(&path) else { continue };
        let size = file.metadata().map_or(0, |found| found.len());
        let at = size.saturating_sub(1 + turn % 100_000);
        let mut bytes = vec![0; 512];
        let Ok(read) = file.read_at(&mut bytes, at) else { continue };
        bytes.truncate(read);
        let mut seen = seen.lock().expect("no reader panics");
        seen.push_back((path, at, bytes));
        if seen.len() > 2000 {
            seen.pop_front();
        }
    }
}

fn rounds() -> std::ops::Range<u64> {
    0..std::env::var("RUNSEAL_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"))
}

fn round(scratch: &Mounted, round: u64) {
    let dir = scratch.path(&format!("round{round}"));
    fs::create_dir(&dir).expect("a directory");
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let reader = {
        let (dir, stop, seen) = (dir.clone(), stop.clone(), Arc::clone(&seen));
        thread::spawn(move || read_along(dir, stop, seen))
    };
    let refills = AtomicU64::new(0);
    let work = |writer: u64| {
        let seed = round * 1000 + writer + 1;
        let mut promise = write_until_full(&dir, writer, seed);
        for refill in 1..=3 {
            if way(writer) == Way::Refiller {
                let _ = fs::remove_file(&promise.path);
                promise = write_until_full(&dir, writer, seed + 100 * refill);
                refills.fetch_add(1, Ordering::Relaxed);
            }
        }
        promise
    };
    let work = &work;
    let promises: Vec<Promise> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || work(writer))).collect();
        writers.into_iter().map(|writer| writer.join().expect("no writer panics")).collect()
    });
    stop.store(true, Ordering::Relaxed);
    reader.join().expect("no reader panics");
    assert!(refills.load(Ordering::Relaxed) > 0);
    check(scratch, &promises, &seen.lock().expect("no reader panics"));
    fs::remove_dir_all(&dir).expect("rm -r");
    eventually("space comes back", || scratch.store.usage().used < 100);
}

fn check(scratch: &Mounted, promises: &[Promise], seen: &VecDeque<Sight>) {
    for promise in promises.iter().filter(|promise| promise.length > 0) {
        let file = File::open(&promise.path).expect("it exists");
        file.sync_all().expect("nothing failed later");
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice");
    }
    for promise in promises.iter().filter(|promise| promise.length > 0) {
        let read = fs::read(&promise.path).expect("readable");
        assert!(read.len() >= promise.length, "{:?}: {} < {}", promise.path, read.len(), promise.length);
        assert!(kept(promise, &read[..promise.length]), "{:?}", promise.path);
    }
    for (path, at, bytes) in seen {
        let mut now = vec![0; bytes.len()];
        File::open(path).and_then(|file| file.read_exact_at(&mut now, *at)).expect("what was seen is there");
        assert!(now == *bytes, "{path:?} at {at}: a byte that was seen is gone");
    }
    assert_eq!(scratch.scratch.loss_totals().bytes, 0, "{:?}", scratch.scratch.losses());
}

// promise: S-100, S-102
#[test]
fn everything_that_was_accepted_stays_while_the_scratch_is_full_again_and_again() {
    let Some(scratch) = mount_with(Setup { size: 96 << 20, ..Setup::default() }) else { return };
    rounds().for_each(|number| round(&scratch, number));
}

// promise: S-103
#[test]
fn everything_that_was_accepted_stays_while_the_disk_is_full_again_and_again() {
    let Some(disk) = Disk::new(224) else { return };
    let Some(scratch) = disk.scratch() else { return };
    rounds().for_each(|number| round(&scratch, number));
}
