//! What common work costs, counted and not timed: requests of the kernel, transfers to the backing, bytes through the
//! cipher, heap allocations. A number that grows is a change to argue for.

mod allocations;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek};
use runseal::backing::{AnonBacking, Backing, MemoryBacking};
use runseal::crypt::Keyring;
use runseal::fs::{Scratch, ScratchOptions};
use runseal::fuse::{FuseError, Mount, MountOptions};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::{Content, Pressure, Store, StoreStats};
use tempfile::TempDir;

use crate::allocations::allocations;

const KIB4: usize = 4096;
const MIB: usize = 1 << 20;
/// Bytes of one write to the backing, at most.
const PIECE: usize = 64 << 10;

#[test]
fn whole_sectors_are_encrypted_once_and_written_once() {
    let store = store(Box::new(MemoryBacking::new(4)));
    let file = Content::new(store.clone());
    for (what, offset, length) in [("new", 0, KIB4), ("in place", 0, KIB4), ("new", MIB, MIB), ("in place", MIB, MIB)] {
        let spent = spent(&store, || file.write_at(offset as u64, &vec![1; length]).expect("room"));
        assert_eq!(spent, written(length.div_ceil(PIECE), length), "{length} bytes, {what}");
    }
    for (offset, length) in [(0, KIB4), (MIB, MIB)] {
        let spent = spent(&store, || {
            file.read_at(offset as u64, &mut vec![0; length]).expect("readable");
        });
        assert_eq!(spent, read(1, length), "{length} bytes");
    }
}

#[test]
fn part_of_a_sector_costs_that_sector() {
    let store = store(Box::new(MemoryBacking::new(4)));
    let file = Content::new(store.clone());
    let new = spent(&store, || file.write_at(100, b"first").expect("room"));
    assert_eq!(new, written(1, KIB4), "nothing is read that was never written");
    let old = spent(&store, || file.write_at(50, b"again").expect("room"));
    assert_eq!(old, StoreStats { bytes_decrypted: KIB4 as u64, backing_reads: 1, ..written(1, KIB4) });
    let byte = spent(&store, || assert_eq!(file.read_at(100, &mut [0; 1]).expect("readable"), 1));
    assert_eq!(byte, read(1, KIB4));
}

#[test]
fn what_was_written_in_pieces_is_read_in_one() {
    let store = store(Box::new(MemoryBacking::new(4)));
    let file = Content::new(store.clone());
    for piece in 0..MIB / KIB4 {
        file.write_at((piece * KIB4) as u64, &[7; KIB4]).expect("room");
    }
    let whole = spent(&store, || assert_eq!(file.read_at(0, &mut vec![0; MIB]).expect("readable"), MIB));
    assert_eq!(whole, read(1, MIB));
}

#[test]
fn sharing_truncating_and_deleting_move_no_bytes() {
    let store = store(Box::new(MemoryBacking::new(4)));
    let (file, copy) = (Content::new(store.clone()), Content::new(store.clone()));
    file.write_at(0, &vec![1; MIB]).expect("room");
    let nothing = spent(&store, || {
        copy.copy_from(0, &file, 0, MIB as u64).expect("room");
        copy.set_size(4 * MIB as u64).expect("a size");
        copy.set_size(KIB4 as u64).expect("a size");
        drop(copy);
        drop(file);
    });
    assert_eq!(nothing, StoreStats::default());
}

#[test]
fn the_hot_path_does_not_allocate() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(Box::new(AnonBacking::open(&[directory.path().to_owned()]).expect("arena files")));
    let file = Content::new(store.clone());
    let (data, mut buffer) = (vec![1; MIB], vec![0; MIB]);
    // Warm: buffers are in the pool, the key schedule is in its cache, the file is one extent.
    file.write_at(0, &data).expect("room");
    file.read_at(0, &mut buffer).expect("readable");
    let mut end = MIB as u64;
    for length in [KIB4, MIB] {
        let data = &data[..length];
        assert_eq!(allocations(|| file.write_at(0, data).expect("room")), 0, "{length} in place");
        assert_eq!(allocations(|| file.write_at(end, data).expect("room")), 0, "{length} appended");
        end += length as u64;
        let count = allocations(|| _ = file.read_at(0, &mut buffer[..length]).expect("readable"));
        assert_eq!(count, 0, "{length} read");
    }
    assert_eq!(allocations(|| file.write_at(10, b"part").expect("room")), 0, "part of a sector");
}

#[test]
fn a_small_new_file_is_six_requests_and_one_write() {
    let Some(mounted) = Mounted::new() else { return };
    let work = || fs::write(mounted.path("new"), [7; KIB4]).expect("a write");
    let (requests, spent) = mounted.during(work);
    at_most(&requests, &[("GETATTR", 1), ("LOOKUP", 1), ("CREATE", 1), ("GETXATTR", 1), ("WRITE", 1), ("SETATTR", 1)]);
    assert_eq!(spent, written(1, KIB4));
}

#[test]
fn opening_and_reading_what_is_cached_is_free() {
    let Some(mounted) = Mounted::new() else { return };
    let path = mounted.path("file");
    fs::write(&path, [7; KIB4]).expect("a write");
    let mut buffer = [0; KIB4];
    let mut read = || File::open(&path).and_then(|mut file| file.read_exact(&mut buffer)).expect("a read");
    read();
    let (requests, spent) = mounted.during(read);
    at_most(&requests, &[]);
    assert_eq!(spent, StoreStats::default());
}

#[test]
fn attributes_come_with_the_listing() {
    let Some(mounted) = Mounted::new() else { return };
    for n in 0..100 {
        fs::create_dir(mounted.path(&format!("{n}"))).expect("a directory");
    }
    let entries = || fs::read_dir(mounted.root()).expect("a listing").map(|entry| entry.expect("an entry"));
    let (requests, _) = mounted.during(|| entries().for_each(|entry| _ = entry.metadata().expect("lstat")));
    let sum: u64 = requests.iter().map(|(_, count)| count).sum();
    assert!(sum <= 12, "{requests:?}");
    let (requests, _) = mounted.during(|| entries().for_each(|entry| _ = entry.metadata().expect("lstat")));
    let sum: u64 = requests.iter().map(|(_, count)| count).sum();
    assert!(sum <= 12, "again: {requests:?}");
}

#[test]
fn large_files_move_in_requests_of_a_mebibyte_and_pass_the_cipher_once() {
    let Some(mounted) = Mounted::new() else { return };
    let path = mounted.path("large");
    let (requests, spent) = mounted.during(|| fs::write(&path, vec![7; 16 * MIB]).expect("a write"));
    // The kernel may begin to write back in the middle of a request's worth of pages.
    assert!(count(&requests, "WRITE") <= 24, "{requests:?}");
    assert_eq!(spent.bytes_encrypted, 16 * MIB as u64);
    let whole = (16 * MIB / PIECE) as u64;
    assert!((whole..=whole + count(&requests, "WRITE")).contains(&spent.backing_writes), "{spent:?}");
    assert_eq!(spent.backing_reads, 0);

    let file = File::open(&path).expect("it exists");
    forget_pages(&file);
    let (requests, spent) = mounted.during(|| file.read_exact_at(&mut vec![0; 16 * MIB], 0).expect("a read"));
    // Without the right to set read_ahead_kb the kernel reads 128 KiB at a time.
    let most = if mounted.mount().facts().read_ahead_kb == Some(1024) { 24 } else { 160 };
    assert!(count(&requests, "READ") <= most, "{requests:?}");
    assert_eq!((spent.bytes_decrypted, spent.bytes_encrypted), (16 * MIB as u64, 0));
}

#[test]
fn small_appends_are_gathered_before_they_are_encrypted() {
    let Some(mounted) = Mounted::new() else { return };
    let mut file = File::create(mounted.path("log")).expect("a file");
    let (requests, spent) = mounted.during(|| {
        (0..5000).for_each(|_| file.write_all(&[b'x'; 200]).expect("a write"));
        file.sync_all().expect("fsync");
    });
    at_most(&requests, &[("GETXATTR", 1), ("WRITE", 8), ("SETATTR", 2), ("FSYNC", 1)]);
    assert!(spent.bytes_encrypted <= 2 * 5000 * 200, "{spent:?}");
}

/// A hole is reported after one look at what the kernel holds, and what it holds there is nothing.
#[test]
fn a_sparse_file_is_searched_in_one_request_for_each_end_of_a_hole() {
    let Some(mounted) = Mounted::new() else { return };
    let path = mounted.path("sparse");
    let file = File::create(&path).expect("a file");
    let extents = 50;
    for n in 0..extents {
        file.write_all_at(&[7; KIB4], (n * MIB) as u64).expect("a write");
    }
    drop(file);
    let file = File::open(&path).expect("it exists");
    let (requests, spent) = mounted.during(|| {
        let (mut at, mut found) = (0, 0);
        while let Ok(data) = lseek(&file, at, Whence::SeekData) {
            at = lseek(&file, data, Whence::SeekHole).expect("a hole");
            assert_eq!(at - data, KIB4 as i64);
            found += 1;
        }
        assert_eq!(found, extents);
    });
    at_most(&requests, &[("LSEEK", 2 * extents as u64 + 1), ("GETATTR", 1)]);
    assert_eq!(spent, StoreStats::default());
}

// promise: S-100
#[test]
fn the_gate_costs_nothing_far_from_the_end_and_one_request_a_file_near_it() {
    let Some(mounted) = Mounted::sized(1 << 30) else { return };
    let mut file = File::create(mounted.path("file")).expect("a file");
    let work = |file: &mut File| (0..8192).for_each(|_| file.write_all(&[b'x'; KIB4]).expect("room"));
    let (requests, _) = mounted.during(|| work(&mut file));
    assert_eq!(count(&requests, "GETATTR"), 0, "{requests:?}");
    let usage = mounted.store.usage();
    let all = (usage.limit - usage.used) * KIB4 as u64;
    let reserved = File::create(mounted.path("reserved")).expect("a file");
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, (all - (200 << 20)) as i64).expect("room");
    let deadline = Instant::now() + Duration::from_secs(20);
    while mounted.store.pressure() != Pressure::Near {
        assert!(Instant::now() < deadline, "the end is 200 MiB away");
    }
    let (requests, _) = mounted.during(|| work(&mut file));
    assert!((1..=4).contains(&count(&requests, "GETATTR")), "{requests:?}");
}

/// So many writes of so many bytes in all.
fn written(backing_writes: usize, bytes: usize) -> StoreStats {
    let backing_writes = backing_writes as u64;
    StoreStats { bytes_encrypted: bytes as u64, backing_writes, ..StoreStats::default() }
}

/// So many reads of so many bytes in all.
fn read(backing_reads: u64, bytes: usize) -> StoreStats {
    StoreStats { bytes_decrypted: bytes as u64, backing_reads, ..StoreStats::default() }
}

fn store(backing: Box<dyn Backing>) -> Arc<Store> {
    limited(backing, 4 << 30)
}

fn limited(backing: Box<dyn Backing>, bytes: u64) -> Arc<Store> {
    Store::new(backing, Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keys"), bytes)
}

fn spent(store: &Store, work: impl FnOnce()) -> StoreStats {
    let before = store.stats();
    work();
    let after = store.stats();
    StoreStats {
        bytes_encrypted: after.bytes_encrypted - before.bytes_encrypted,
        bytes_decrypted: after.bytes_decrypted - before.bytes_decrypted,
        backing_writes: after.backing_writes - before.backing_writes,
        backing_reads: after.backing_reads - before.backing_reads,
    }
}

type Requests = Vec<(&'static str, u64)>;

fn count(requests: &Requests, name: &str) -> u64 {
    requests.iter().filter(|(found, _)| *found == name).map(|(_, count)| count).sum()
}

fn at_most(requests: &Requests, allowed: &[(&str, u64)]) {
    for (name, count) in requests {
        let most = allowed.iter().find(|(allowed, _)| allowed == name).map_or(0, |(_, most)| *most);
        assert!(*count <= most, "{name}: {count} times; all: {requests:?}");
    }
}

/// Drops the pages of a file from the kernel's cache of the mount.
fn forget_pages(file: &File) {
    file.sync_all().expect("fsync");
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

/// A scratch mounted in a temporary directory, with the first request of every kind behind it.
struct Mounted {
    store: Arc<Store>,
    mount: Option<Mount>,
    directory: TempDir,
}

impl Mounted {
    /// `None`, and a visible SKIP, where one cannot mount or the kernel lacks what the counts rest on.
    fn new() -> Option<Self> {
        Self::sized(4 << 30)
    }

    /// The same, of this many bytes.
    fn sized(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let point = directory.path().join("mnt");
        fs::create_dir(&point).expect("a mountpoint");
        let store = limited(Box::new(AnonBacking::open(&[directory.path().to_owned()]).expect("arena files")), bytes);
        let options = ScratchOptions { memory: 1 << 26, uid: 0, gid: 0, mode: 0o755 };
        let scratch = Arc::new(Scratch::new(store.clone(), options));
        let mount = match Mount::new(scratch, &point, &MountOptions::default()) {
            Ok(mount) => mount,
            Err(FuseError::Device { source, .. }) => return skip(&format!("/dev/fuse: {source}")),
            Err(FuseError::Mount { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                return skip(&format!("mount: {source}"));
            }
            Err(error) => panic!("{error}"),
        };
        let mounted = Self { store, mount: Some(mount), directory };
        if !mounted.mount().facts().capabilities.iter().any(|name| name == "WRITEBACK_CACHE") {
            return skip("this kernel has no writeback cache for us");
        }
        Some(mounted)
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("present until drop")
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// What `work` cost. FORGET is left out: it comes when the kernel likes.
    fn during(&self, work: impl FnOnce()) -> (Requests, StoreStats) {
        let before = self.mount().requests();
        let spent = spent(&self.store, work);
        let after = self.mount().requests().into_iter();
        let new = after.map(|(name, now)| (name, now - count(&before, name)));
        (new.filter(|&(name, count)| count > 0 && name != "FORGET").collect(), spent)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(mount) = self.mount.take() else { return };
        let detached = mount.detach();
        let mount = Arc::new(mount);
        let (waiting, begin) = (mount.clone(), Instant::now());
        let ended = std::thread::spawn(move || waiting.wait());
        while !ended.is_finished() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !ended.is_finished() {
            mount.abort();
        }
        if !std::thread::panicking() {
            detached.expect("detach");
            assert!(ended.is_finished(), "the session did not end");
        }
    }
}

/// Prints `SKIP: test: reason` where the test harness does not swallow it.
fn skip<T>(reason: &str) -> Option<T> {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(io::stderr(), "SKIP: {name}: {reason}");
    None
}
