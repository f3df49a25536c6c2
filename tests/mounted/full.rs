//! A full scratch, and a full disk below it: what programs see, and what is there afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use runseal::backing::AnonBacking;
use runseal::fs::LossTotals;

use crate::files::forget_cached;
use crate::scratch_mount::{Mounted, Setup, directory, eventually, has, mount_with, pattern, skip, succeed};

const MIB: usize = 1 << 20;
/// What may go beyond the limit: that which may be dirty near the end, and twice the slack.
const HEADROOM: usize = 24 * MIB;

/// Writes 64 KiB at a time until the first error; returns how much was accepted, and the error.
pub fn fill(file: &mut File, seed: u64, most: usize) -> (usize, Option<io::Error>) {
    let data = pattern(seed, most);
    let mut accepted = 0;
    for piece in data.chunks(64 << 10) {
        match file.write(piece) {
            Ok(written) => accepted += written,
            Err(error) => return (accepted, Some(error)),
        }
    }
    (accepted, None)
}

/// Whether a file holds the beginning of what [`fill`] writes, read from the store.
pub fn holds(path: &Path, seed: u64, length: usize) -> bool {
    let file = File::open(path).expect("it exists");
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice");
    let read = fs::read(path).expect("readable");
    read.len() == length && read == pattern(seed, length)
}

fn nothing_lost(scratch: &Mounted) {
    let LossTotals { bytes, .. } = scratch.scratch.loss_totals();
    assert_eq!(bytes, 0, "{:?}", scratch.scratch.losses());
}

// promise: S-100
#[test]
fn a_writer_hears_of_the_end_at_write_and_all_that_was_accepted_is_there() {
    let Some(scratch) = mount_with(Setup { size: 64 << 20, ..Setup::default() }) else { return };
    for round in 1..=3 {
        let mut file = File::create(scratch.path("f")).expect("room");
        let (accepted, error) = fill(&mut file, round, 256 * MIB);
        assert_eq!(error.expect("it ends").raw_os_error(), Some(libc::ENOSPC));
        assert!((63 * MIB..64 * MIB + HEADROOM).contains(&accepted), "{accepted}");
        assert_eq!(file.write(b"x").expect_err("still").raw_os_error(), Some(libc::ENOSPC));
        file.sync_all().expect("nothing failed later");
        drop(file);
        assert!(holds(&scratch.path("f"), round, accepted));
        nothing_lost(&scratch);
        assert_eq!(scratch.scratch.loss_totals().refused, round, "and what was read stays in the record");
        fs::remove_file(scratch.path("f")).expect("unlink");
        eventually("space comes back", || scratch.store.usage().used < 100);
    }
}

// promise: S-100
#[test]
fn a_full_scratch_still_lets_small_things_happen() {
    let Some(scratch) = mount_with(Setup { size: 64 << 20, ..Setup::default() }) else { return };
    fs::write(scratch.path("old"), pattern(1, MIB)).expect("room");
    let reserved = File::create(scratch.path("reserved")).expect("room");
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, 8 << 20).expect("room");
    let mut hog = File::create(scratch.path("hog")).expect("room");
    fill(&mut hog, 2, 256 * MIB).1.expect("it ends");

    let old = OpenOptions::new().write(true).open(scratch.path("old")).expect("it exists");
    old.write_all_at(&pattern(3, MIB), 0).expect("written in place");
    reserved.write_all_at(&pattern(4, 8 * MIB), 0).expect("reserved space does not run out");
    fs::write(scratch.path("note"), "small").expect("a little more");
    hog.write_all_at(b"x", 0).expect_err("whoever filled it does not go on");
    old.sync_all().and_then(|()| reserved.sync_all()).expect("stored");
    assert!(holds(&scratch.path("old"), 3, MIB) && holds(&scratch.path("reserved"), 4, 8 * MIB));
    hog.set_len(0).expect("truncation is room");
    drop(hog);
    let mut hog = File::create(scratch.path("hog")).expect("it exists");
    let (accepted, error) = fill(&mut hog, 5, 20 * MIB);
    assert!(error.is_none() && accepted == 20 * MIB, "{error:?}");
    hog.sync_all().expect("no error of the time before");
    drop(hog);
    assert!(holds(&scratch.path("hog"), 5, 20 * MIB));
    assert_eq!(scratch.scratch.loss_totals(), LossTotals::default(), "what was cut is forgotten");
}

/// A file that is written in pieces takes memory for each: that ends at write(2), too.
// promise: S-34
#[test]
fn a_writer_hears_of_the_end_of_memory_at_write_and_all_that_was_accepted_is_there() {
    let Some(scratch) = mount_with(Setup { memory: 1 << 20, ..Setup::default() }) else { return };
    fs::write(scratch.path("old"), pattern(1, MIB)).expect("room");
    let create =
        |name| OpenOptions::new().read(true).write(true).create_new(true).open(scratch.path(name)).expect("room");
    let (file, reserved) = (create("f"), create("reserved"));
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, 1 << 30).expect("room");
    for (round, file) in [&file, &reserved].into_iter().enumerate() {
        let piece = pattern(round as u64, 4096);
        let refused = (0..100_000).find_map(|n| file.write_all_at(&piece, n * 8192).err().map(|error| (n, error)));
        let used = scratch.store.metadata().used();
        let (accepted, error) = refused.unwrap_or_else(|| panic!("file {round} does not end: {used} bytes of memory"));
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        file.sync_all().expect("nothing failed later");
        forget_cached(file);
        let mut read = vec![0; 4096];
        for n in 0..accepted {
            file.read_exact_at(&mut read, n * 8192).expect("readable");
            assert!(read == piece, "piece {n} of {accepted}");
        }
    }
    nothing_lost(&scratch);
    let used = scratch.store.metadata().used();
    assert!(used < 8 << 20, "{used} bytes");
    assert!(holds(&scratch.path("old"), 1, MIB));
    file.set_len(0).expect("truncation is room");
    fs::write(scratch.path("again"), pattern(2, MIB)).expect("room");
    assert!(holds(&scratch.path("again"), 2, MIB));
}

/// Small files stop too: making them is refused once half of the headroom is gone.
// promise: S-100
#[test]
fn making_files_ends_as_well() {
    let Some(scratch) = mount_with(Setup { size: 32 << 20, ..Setup::default() }) else { return };
    let mut made = 0;
    let error = loop {
        match fs::write(scratch.path(&format!("f{made}")), pattern(made, 100_000)) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 1000, "no error after {made} files");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!((0..made).all(|n| holds(&scratch.path(&format!("f{n}")), n, 100_000)));
    nothing_lost(&scratch);
}

/// A disk of its own, of this many MiB, unmounted at the end.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn new(mebibytes: usize) -> Option<Self> {
        let dir = directory();
        let size = format!("size={mebibytes}M,mode=755");
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(size.as_str())) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => skip(&format!("mount tmpfs: {errno}")),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A scratch of 1 GiB on it.
    pub fn scratch(&self) -> Option<Mounted> {
        let backing = AnonBacking::open(&[self.0.path().to_owned()]).expect("arenas");
        mount_with(Setup { size: 1 << 30, backing: Some(Box::new(backing)), ..Setup::default() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

// promise: S-103
#[test]
fn a_full_disk_is_told_as_early_as_a_full_scratch() {
    let Some(disk) = Disk::new(160) else { return };
    let Some(scratch) = disk.scratch() else { return };
    let mut file = File::create(scratch.path("f")).expect("room");
    let (accepted, error) = fill(&mut file, 1, 512 * MIB);
    assert_eq!(error.expect("it ends").raw_os_error(), Some(libc::ENOSPC));
    assert!((80 * MIB..160 * MIB).contains(&accepted), "{accepted}");
    file.sync_all().expect("stored");
    drop(file);
    assert!(holds(&scratch.path("f"), 1, accepted));
    nothing_lost(&scratch);
}

/// Somebody else takes all that is free in one step, while data is on its way: the reserve is there.
// promise: S-103
#[test]
fn what_was_accepted_before_others_filled_the_disk_has_room() {
    let Some(disk) = Disk::new(256) else { return };
    let Some(scratch) = disk.scratch() else { return };
    let reserved = File::create(scratch.path("reserved")).expect("room");
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, 4 << 20).expect("room");
    let mut file = File::create(scratch.path("f")).expect("room");
    let (accepted, error) = fill(&mut file, 1, 8 * MIB);
    assert!(error.is_none(), "{error:?}");
    let mut other = File::create(disk.path("other")).expect("room");
    while other.write(&[7; 1 << 16]).is_ok_and(|written| written > 0) {}
    let (more, error) = fill(&mut file, 2, 512 * MIB);
    assert_eq!(error.expect("it ends").raw_os_error(), Some(libc::ENOSPC));
    file.sync_all().expect("the reserve took it");
    reserved.write_all_at(&pattern(4, 4 * MIB), 0).and_then(|()| reserved.sync_all()).expect("set aside on the disk");
    assert!(holds(&scratch.path("reserved"), 4, 4 * MIB), "S-12: reserved space cannot run out later");
    forget_cached(&file);
    let mut read = Vec::new();
    File::open(scratch.path("f")).and_then(|mut file| file.read_to_end(&mut read)).expect("readable");
    assert!(
        read.len() == accepted + more
            && read[..accepted] == pattern(1, accepted)
            && read[accepted..] == pattern(2, more)
    );
    nothing_lost(&scratch);

    fs::remove_file(disk.path("other")).expect("unlink");
    let mut again = File::create(scratch.path("again")).expect("room again");
    eventually("space is seen again", || fill(&mut again, 3, MIB).1.is_none());
}

/// A store through mmap passes no gate: it is recorded, and nobody reads what is not stored.
// promise: S-102
#[test]
fn what_is_stored_through_a_mapping_and_found_no_room_is_recorded_and_not_seen() {
    let Some(scratch) = mount_with(Setup { size: 16 << 20, ..Setup::default() }) else { return };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(scratch.path("mapped")).expect("room");
    let length = 64 * MIB;
    file.set_len(length as u64).expect("a hole");
    let size = length.try_into().expect("not zero");
    // SAFETY: a new mapping of a file that nobody shrinks.
    let address =
        unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0) };
    let address = address.expect("a mapping");
    // SAFETY: the mapping is as long, and nothing else refers to it.
    unsafe { slice::from_raw_parts_mut(address.as_ptr().cast::<u8>(), length) }.fill(7);
    // SAFETY: mapped above, and the slice is gone.
    unsafe { munmap(address, length) }.expect("munmap");
    let _ = file.sync_all();
    let lost = scratch.scratch.loss_totals();
    assert!(lost.bytes > 0 && lost.files == 1, "{lost:?}");
    let ino = file.metadata().expect("attributes").ino();
    let stored = || {
        let mut data = vec![1; length];
        let read = scratch.scratch.read(ino, 0, &mut data).expect("readable");
        data[read..].fill(0);
        data
    };
    let seen = || {
        let mut data = vec![1; length];
        file.read_exact_at(&mut data, 0).expect("readable");
        data
    };
    eventually("nobody sees what is not stored", || seen() == stored());
    assert!(stored().contains(&0) && scratch.scratch.losses()[0].read, "and it is known that somebody looked");
    drop(file);
    drop(File::create(scratch.path("mapped")).expect("truncated"));
    fs::remove_file(scratch.path("mapped")).expect("unlink");
    let gone = scratch.scratch.losses();
    assert!(gone.len() == 1 && !gone[0].linked && gone[0].read, "what was read counts after the file: {gone:?}");
}

// promise: S-102
#[test]
fn a_database_keeps_what_it_committed_before_the_scratch_was_full() {
    if !has("sqlite3") {
        return;
    }
    let Some(scratch) = mount_with(Setup { size: 64 << 20, ..Setup::default() }) else { return };
    let sqlite = |statement: &str| {
        Command::new("sqlite3").arg(scratch.path("s.db")).arg(statement).output().expect("sqlite3 starts")
    };
    for journal in ["wal", "delete"] {
        let fill = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 60000)
                    insert into t select randomblob(2000) from c;";
        succeed(
            Command::new("sqlite3")
                .arg(scratch.path("s.db"))
                .arg(format!("pragma journal_mode={journal}; create table t(a); insert into t values (1), (2), (3);")),
        );
        assert!(!sqlite(fill).status.success(), "{journal}: 120 MB fit into 64");
        for file in ["s.db", "s.db-wal", "s.db-journal"] {
            if let Ok(file) = File::open(scratch.path(file)) {
                forget_cached(&file);
            }
        }
        let rows = sqlite("select group_concat(a) from (select a from t limit 3); pragma integrity_check;");
        let rows = String::from_utf8_lossy(&rows.stdout).into_owned();
        assert_eq!(rows.lines().collect::<Vec<_>>(), ["1,2,3", "ok"], "{journal}");
        nothing_lost(&scratch);
        scratch.sh("rm -f s.db*");
        eventually("space comes back", || scratch.store.usage().used < 100);
    }
}
