//! Contents: what is written is what is read, whichever way.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::{Whence, lseek};

use crate::scratch_mount::{eventually, mount, pattern};

const MIB: usize = 1 << 20;

#[test]
fn a_file_reads_back_after_the_cache_is_dropped() {
    let Some(scratch) = mount() else { return };
    let data = pattern(1, 5 * MIB + 123);
    fs::write(scratch.path("file"), &data).expect("a write");
    let file = File::open(scratch.path("file")).expect("it exists");
    forget_cached(&file);
    assert!(fs::read(scratch.path("file")).expect("a read") == data);
    let root = scratch.scratch.lookup(1, b"file").expect("the server knows it");
    assert_eq!(root.size, data.len() as u64);
}

// promise: S-40
#[test]
fn after_fsync_and_after_close_the_server_has_everything() {
    let Some(scratch) = mount() else { return };
    let (first, second) = (pattern(1, MIB), pattern(2, MIB));
    let mut file = File::create(scratch.path("file")).expect("a file");
    let ino = scratch.scratch.lookup(1, b"file").expect("the server knows it").ino;
    let arrived = |offset: usize| {
        let mut bytes = vec![0; MIB];
        let length = scratch.scratch.read(ino, offset as u64, &mut bytes).expect("a read beside the kernel");
        (length == MIB).then_some(bytes)
    };
    file.write_all(&first).and_then(|()| file.sync_all()).expect("fsync");
    assert!(arrived(0) == Some(first));
    file.write_all(&second).expect("a write");
    drop(file);
    assert!(arrived(MIB) == Some(second));
}

/// Writers through libaio, readers through the page cache.
const ASYNCHRONOUS: &str = r"
import ctypes, mmap, random, struct, threading
path, rounds = 'f', 1000
PAGES, PAGE = 16, 4096
libc = ctypes.CDLL(None, use_errno=True)
IO_SETUP, IO_GETEVENTS, IO_SUBMIT = (206, 208, 209) if os.uname().machine == 'x86_64' else (0, 4, 2)
def call(*args):
    answer = libc.syscall(*args)
    if answer < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
with open(path, 'wb') as file: file.write(bytes(PAGES * PAGE))
direct = os.open(path, os.O_RDWR | os.O_DIRECT)
context = ctypes.c_ulong(0)
call(IO_SETUP, PAGES, ctypes.byref(context))
buffers = [mmap.mmap(-1, PAGE) for _ in range(PAGES)]
addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
blocks = [ctypes.create_string_buffer(64) for _ in range(PAGES)]
events = ctypes.create_string_buffer(32 * PAGES)
def write_all(value):
    for n in range(PAGES):
        buffers[n][:8] = struct.pack('<Q', value)
        # data, key, rw_flags, opcode (PWRITE), priority, fd, buffer, bytes, offset
        struct.pack_into('<QIIHhIQQq', blocks[n], 0, n, 0, 0, 1, 0, direct, addresses[n], PAGE, n * PAGE)
    pointers = (ctypes.c_void_p * PAGES)(*[ctypes.addressof(block) for block in blocks])
    assert call(IO_SUBMIT, context, ctypes.c_long(PAGES), pointers) == PAGES
    assert call(IO_GETEVENTS, context, ctypes.c_long(PAGES), ctypes.c_long(PAGES), events, None) == PAGES
    for n in range(PAGES):
        assert struct.unpack_from('<QQq', events, 32 * n)[2] == PAGE
done = False
def read_on():
    fd = os.open(path, os.O_RDONLY)
    while not done:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for n in random.sample(range(PAGES), PAGES): os.pread(fd, 8, n * PAGE)
readers = [threading.Thread(target=read_on) for _ in range(2)]
for reader in readers: reader.start()
look, stale = os.open(path, os.O_RDONLY), 0
for value in range(1, rounds + 1):
    write_all(value)
    stale += sum(struct.unpack('<Q', os.pread(look, 8, n * PAGE))[0] != value for n in range(PAGES))
done = True
for reader in readers: reader.join()
assert stale == 0, f'{stale} reads are older than the write they follow'
";

// promise: S-10
#[test]
fn readers_see_what_was_written_asynchronously() {
    let Some(scratch) = mount() else { return };
    scratch.python(ASYNCHRONOUS);
}

// promise: S-10
#[test]
fn read_mmap_and_direct_io_see_each_other() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
    file.set_len(MIB as u64).expect("a size");

    let length = NonZeroUsize::new(MIB).expect("not zero");
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh shared mapping of a file of that size; unmapped below, after the last use of the slice.
    let address = unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0) }.expect("a mapping");
    // SAFETY: the mapping is MIB bytes long; changes by the write below are what is being tested.
    let map = unsafe { std::slice::from_raw_parts_mut(address.as_ptr().cast::<u8>(), MIB) };

    map[10_000..10_005].copy_from_slice(b"map-1");
    let mut five = [0; 5];
    file.read_exact_at(&mut five, 10_000).expect("a read");
    assert_eq!(&five, b"map-1");
    file.write_all_at(b"write", 500_000).expect("a write");
    assert_eq!(&map[500_000..500_005], b"write");

    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).expect("O_DIRECT");
    let mut buffer = Aligned::new(8192);
    direct.read_exact_at(buffer.bytes(), 8192).expect("a direct read");
    assert_eq!(&buffer.bytes()[10_000 - 8192..][..5], b"map-1");
    buffer.bytes().copy_from_slice(&pattern(2, 8192));
    direct.write_all_at(buffer.bytes(), 65_536).expect("a direct write");
    assert_eq!(&map[65_536..65_536 + 8192], pattern(2, 8192));

    map[65_536..65_540].copy_from_slice(b"last");
    // SAFETY: the mapping is still there, and is not used after munmap.
    unsafe {
        msync(address, MIB, MsFlags::MS_SYNC).expect("msync");
        munmap(address, MIB).expect("munmap");
    }
    forget_cached(&file);
    let mut all = Vec::new();
    file.read_to_end(&mut all).expect("a read");
    assert_eq!((&all[65_536..65_540], &all[65_540..65_544]), (&b"last"[..], &pattern(2, 8)[4..]));
}

#[test]
fn direct_io_of_megabytes_reads_back() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("direct");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("O_DIRECT");
    let mut buffer = Aligned::new(3 * MIB);
    buffer.bytes().copy_from_slice(&pattern(3, 3 * MIB));
    file.write_all_at(buffer.bytes(), 4096).expect("a direct write");
    buffer.bytes().fill(0);
    file.read_exact_at(buffer.bytes(), 4096).expect("a direct read");
    assert!(buffer.bytes() == pattern(3, 3 * MIB));
    let cached = fs::read(&path).expect("a read");
    assert_eq!(cached[..4096], [0; 4096]);
    assert!(cached[4096..] == pattern(3, 3 * MIB));
}

// promise: S-14
#[test]
fn appends_of_several_processes_all_arrive_whole() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("log");
    let script =
        "exec >>\"$1\"; i=0; while [ $i -lt 300 ]; do echo \"$2 line $i ------------------\"; i=$((i+1)); done";
    let writers: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| {
            let mut shell = Command::new("sh");
            shell.args(["-euc", script, "sh"]).arg(&path).arg(name).spawn().expect("sh")
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().expect("it ends").success());
    }
    let text = fs::read_to_string(&path).expect("text");
    let mut lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1200);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 1200);
    assert!(lines.iter().all(|line| line.ends_with(" ------------------")));
}

// promise: S-11
#[test]
fn holes_are_zeros_and_take_no_space() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("sparse");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
    file.write_all_at(b"end", (8 << 30) - 3).expect("a write");
    file.sync_all().expect("fsync");
    let metadata = fs::metadata(&path).expect("it exists");
    assert_eq!(metadata.size(), 8 << 30);
    assert!(metadata.blocks() <= 16, "{} blocks", metadata.blocks());

    file.write_all_at(&pattern(4, 10_000), 0).expect("a write");
    file.set_len(5_000).expect("truncate");
    file.set_len(20_000).expect("extend");
    forget_cached(&file);
    let mut all = Vec::new();
    file.read_to_end(&mut all).expect("a read");
    assert_eq!(all[..5_000], pattern(4, 10_000)[..5_000]);
    assert!(all[5_000..].iter().all(|&byte| byte == 0), "bytes cut off came back");
    assert_eq!(all.len(), 20_000);
}

// promise: S-71
#[test]
fn data_not_yet_sent_is_not_taken_for_a_hole() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("dirty");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
    file.write_all_at(&pattern(5, 4096), MIB as u64).expect("a write");
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(MIB as i64));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(0));
    assert_eq!(lseek(&file, MIB as i64, Whence::SeekHole), Ok(MIB as i64 + 4096));
    assert_eq!(lseek(&file, MIB as i64 + 4096, Whence::SeekData), Err(Errno::ENXIO));
    file.seek(SeekFrom::Start(0)).expect("seek");
    scratch.sh("cp --sparse=always dirty copy && cmp dirty copy && tar -cSf t.tar dirty && tar -df t.tar");
}

// promise: S-12, S-72
#[test]
fn fallocate_reserves_punches_and_zeroes() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::empty(), 0, MIB as i64).expect("allocate");
    assert_eq!(fs::metadata(&path).expect("it exists").size(), MIB as u64);
    fallocate(&file, keep, 0, 2 * MIB as i64).expect("allocate beyond the end");
    let metadata = fs::metadata(&path).expect("it exists");
    assert_eq!((metadata.size(), metadata.blocks()), (MIB as u64, 2 * MIB as u64 / 512));

    file.write_all_at(&pattern(6, MIB), 0).expect("a write");
    fallocate(&file, keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE, 5_000, 100_000).expect("punch");
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 300_000, 1_000).expect("zero");
    forget_cached(&file);
    let mut expected = pattern(6, MIB);
    expected[5_000..105_000].fill(0);
    expected[300_000..301_000].fill(0);
    assert!(fs::read(&path).expect("a read") == expected);
    for refused in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        assert_eq!(fallocate(&file, refused, 0, 4096), Err(Errno::EOPNOTSUPP));
    }
}

// promise: S-13
#[test]
fn copies_within_the_scratch_are_equal_and_independent() {
    let Some(scratch) = mount() else { return };
    let data = pattern(7, 3 * MIB + 77);
    fs::write(scratch.path("from"), &data).expect("a write");
    let from = OpenOptions::new().read(true).write(true).open(scratch.path("from")).expect("it exists");
    let to = OpenOptions::new().read(true).write(true).create_new(true).open(scratch.path("to")).expect("a file");
    scratch.python(
        "f, t = os.open('from', os.O_RDONLY), os.open('to', os.O_WRONLY)
left = os.fstat(f).st_size
while left > 0:
    n = os.copy_file_range(f, t, left)
    assert n > 0
    left -= n",
    );
    from.write_all_at(b"changed", MIB as u64).expect("a write");
    to.write_all_at(b"too", 2 * MIB as u64).expect("a write");
    forget_cached(&from);
    forget_cached(&to);
    let (mut expected_from, mut expected_to) = (data.clone(), data);
    expected_from[MIB..MIB + 7].copy_from_slice(b"changed");
    expected_to[2 * MIB..2 * MIB + 3].copy_from_slice(b"too");
    assert!(fs::read(scratch.path("from")).expect("a read") == expected_from);
    assert!(fs::read(scratch.path("to")).expect("a read") == expected_to);
    assert!(scratch.requests("COPY_FILE_RANGE") > 0);
}

// promise: S-06
#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let Some(scratch) = mount() else { return };
    let before = scratch.store.usage().used;
    let path = scratch.path("gone");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
    file.write_all(&pattern(8, MIB)).expect("a write");
    fs::remove_file(&path).expect("unlink");
    file.write_all(&pattern(9, MIB)).expect("a write to the unlinked file");
    forget_cached(&file);
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut all = Vec::new();
    file.read_to_end(&mut all).expect("a read");
    assert!(all == [pattern(8, MIB), pattern(9, MIB)].concat());
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    assert!(scratch.store.usage().used >= before + 512);
    drop(file);
    eventually("the space of the deleted file comes back", || scratch.store.usage().used == before);
}

// promise: S-70
#[test]
fn o_tmpfile_is_refused_so_that_programs_fall_back() {
    let Some(scratch) = mount() else { return };
    let error = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(scratch.root());
    assert_eq!(error.expect_err("not supported").raw_os_error(), Some(libc::EOPNOTSUPP));
    scratch.python("import tempfile\nwith tempfile.TemporaryFile(dir='.') as f:\n  f.write(b'x')\n  f.flush()");
}

// promise: S-42
#[test]
fn locks_hold_between_processes() {
    let Some(scratch) = mount() else { return };
    scratch.python(
        "import fcntl
f = open('lock', 'w')
for lock, again in ((fcntl.flock, fcntl.flock), (fcntl.lockf, fcntl.lockf)):
    lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pid = os.fork()
    if pid == 0:
        try:
            again(open('lock', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    lock(f, fcntl.LOCK_UN)",
    );
    assert_eq!(scratch.requests("SETLK") + scratch.requests("GETLK"), 0, "the kernel keeps locks");
}

/// Writes dirty pages and drops the cached ones of a file, so that the next read asks the server.
pub fn forget_cached(file: &File) {
    file.sync_all().expect("fsync");
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

/// A page-aligned buffer for O_DIRECT.
pub struct Aligned {
    memory: Vec<u8>,
    length: usize,
}

impl Aligned {
    pub fn new(length: usize) -> Self {
        Self { memory: vec![0; length + 4096], length }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(4096);
        &mut self.memory[start..start + self.length]
    }
}
