//! Space: limits, what happens at them, and what a failing disk looks like.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use runseal::backing::{Fault, FaultyBacking, MemoryBacking};

use crate::files::forget_cached;
use crate::scratch_mount::{Setup, eventually, mount_with, pattern};

const MIB: usize = 1 << 20;

// promise: S-30
#[test]
fn a_full_scratch_says_so_and_keeps_what_it_has() {
    let Some(scratch) = mount_with(Setup { size: 16 << 20, ..Setup::default() }) else { return };
    let early = pattern(1, 6 * MIB);
    fs::write(scratch.path("early"), &early).expect("there is room");

    let mut late = File::create(scratch.path("late")).expect("a file");
    let mut pieces = pattern(2, 64 * MIB);
    let result = pieces.chunks_mut(64 << 10).try_for_each(|piece| late.write_all(piece));
    assert_eq!(result.expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    drop(late);

    let file = File::open(scratch.path("early")).expect("it exists");
    forget_cached(&file);
    assert!(fs::read(scratch.path("early")).expect("a read") == early);
    let reserve = OpenOptions::new().write(true).open(scratch.path("early")).expect("it exists");
    let refused = nix::fcntl::fallocate(&reserve, nix::fcntl::FallocateFlags::empty(), 0, 64 << 20);
    assert_eq!(refused, Err(nix::errno::Errno::ENOSPC));

    fs::remove_file(scratch.path("late")).expect("unlink");
    eventually("space comes back", || scratch.store.usage().used <= (7 * MIB / 4096) as u64);
    let again = pattern(3, 8 * MIB);
    let mut file = File::create(scratch.path("again")).expect("a file");
    file.write_all(&again).and_then(|()| file.sync_all()).expect("there is room again");
    assert!(fs::read(scratch.path("again")).expect("a read") == again);
}

// promise: S-31
#[test]
fn statfs_shows_the_limits_of_the_run() {
    let Some(scratch) = mount_with(Setup { size: 64 << 20, memory: 1 << 20, ..Setup::default() }) else { return };
    eventually("the kernel forgets the file that primed it", || scratch.scratch.inodes() == 1);
    let before = statvfs(&scratch.root()).expect("statvfs");
    assert_eq!((before.block_size(), before.blocks(), before.files()), (4096, 16384, 1 + (15 << 16) / 512));
    assert_eq!(before.name_max(), 255);
    let mut file = File::create(scratch.path("file")).expect("a file");
    file.write_all(&pattern(1, 10 * MIB)).and_then(|()| file.sync_all()).expect("a write");
    let after = statvfs(&scratch.root()).expect("statvfs");
    assert_eq!(before.blocks_available() - after.blocks_available(), (10 * MIB / 4096) as u64);
    let taken = before.files_free() - after.files_free();
    assert!((1..16).contains(&taken), "the file, and memory for where its pieces are: {taken}");

    let full = (0..4000).find_map(|n| File::create(scratch.path(&format!("f{n}"))).err());
    assert_eq!(full.expect("no inodes left").raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(statvfs(&scratch.root()).expect("statvfs").files_free(), 0);
}

#[test]
fn a_failing_disk_is_an_io_error_now_and_later() {
    let fault = Arc::new(Fault::default());
    let backing = FaultyBacking::new(MemoryBacking::new(2), fault.clone());
    let Some(scratch) = mount_with(Setup { backing: Some(Box::new(backing)), ..Setup::default() }) else { return };
    fs::write(scratch.path("good"), "good").expect("a write");
    fault.arm(0, libc::EIO);
    let mut file = File::create(scratch.path("bad")).expect("a file");
    let result = file.write_all(&pattern(1, MIB)).and_then(|()| file.sync_all());
    assert_eq!(result.expect_err("a failed write").raw_os_error(), Some(libc::EIO));
    fault.disarm();
    assert!(scratch.store.latched());
    let mut later = File::create(scratch.path("later")).expect("names are in memory");
    let result: io::Result<()> = later.write_all(b"x").and_then(|()| later.sync_all());
    assert_eq!(result.expect_err("the store has stopped").raw_os_error(), Some(libc::EIO));
}
