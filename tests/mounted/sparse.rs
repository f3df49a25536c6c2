//! Holes: found by SEEK_DATA and SEEK_HOLE, whatever the kernel has not sent yet.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::scratch_mount::{Mounted, has, mount, pattern};

const PAGE: u64 = 4096;
/// Pages of the files that are made here.
const PAGES: u64 = 4096;

/// What may happen to a file, in pages and bytes.
#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, bytes: u64 },
    Sync,
    Punch { page: u64, pages: u64 },
    Reserve { page: u64, pages: u64 },
    Truncate { size: u64 },
    Drop,
}

fn change() -> impl Strategy<Value = Change> {
    let byte = 0..PAGES * PAGE;
    prop_oneof![
        6 => (byte.clone(), 1..5 * PAGE).prop_map(|(at, bytes)| Change::Write { at, bytes }),
        2 => Just(Change::Sync),
        1 => (0..PAGES, 1..500u64).prop_map(|(page, pages)| Change::Punch { page, pages }),
        1 => (0..PAGES, 1..50u64).prop_map(|(page, pages)| Change::Reserve { page, pages }),
        1 => byte.prop_map(|size| Change::Truncate { size }),
        1 => Just(Change::Drop),
    ]
}

/// A file, and which of its pages were ever written.
struct Sparse {
    file: File,
    size: u64,
    written: BTreeSet<u64>,
}

impl Sparse {
    fn new(scratch: &Mounted) -> Self {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(scratch.path("sparse"));
        let file = file.expect("a file");
        Self { file, size: 0, written: BTreeSet::new() }
    }

    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Write { at, bytes } => {
                self.file.write_all_at(&pattern(at, bytes as usize), at).expect("a write");
                self.written.extend(at / PAGE..=(at + bytes - 1) / PAGE);
                self.size = self.size.max(at + bytes);
            }
            Change::Sync => self.file.sync_all().expect("fsync"),
            Change::Punch { page, pages } => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&self.file, flags, (page * PAGE) as i64, (pages * PAGE) as i64).expect("a hole");
                self.written.retain(|written| !(page..page + pages).contains(written));
            }
            Change::Reserve { page, pages } => {
                let (at, bytes) = (page * PAGE, pages * PAGE);
                fallocate(&self.file, FallocateFlags::empty(), at as i64, bytes as i64).expect("room");
                self.size = self.size.max(at + bytes);
            }
            Change::Truncate { size } => {
                self.file.set_len(size).expect("a size");
                self.written.retain(|page| page * PAGE < size);
                self.size = size;
            }
            Change::Drop => {
                self.file.sync_all().expect("fsync");
                let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                nix::fcntl::posix_fadvise(&self.file, 0, 0, advice).expect("fadvise");
            }
        }
    }

    /// What lseek(2) must answer.
    fn expected(&self, from: u64, whence: Whence) -> Result<i64, Errno> {
        let is = |at: u64| self.written.contains(&(at / PAGE)) == matches!(whence, Whence::SeekData);
        let later = (from / PAGE + 1..).map(|page| page * PAGE);
        let found = std::iter::once(from).chain(later).take_while(|at| *at < self.size).find(|at| is(*at));
        match whence {
            Whence::SeekHole if from < self.size => Ok(found.unwrap_or(self.size) as i64),
            _ => found.map(|at| at as i64).ok_or(Errno::ENXIO),
        }
    }
}

// promise: S-71
#[test]
fn holes_are_found_as_if_everything_had_been_sent() {
    let Some(scratch) = mount() else { return };
    let strategy = (prop::collection::vec(change(), 1..40), prop::collection::vec(0..PAGES * PAGE, 6));
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(changes, places)| {
        let mut sparse = Sparse::new(&scratch);
        for change in &changes {
            sparse.apply(change);
        }
        for from in places.into_iter().chain([0, sparse.size.saturating_sub(1), sparse.size]) {
            for whence in [Whence::SeekHole, Whence::SeekData] {
                prop_assert_eq!(
                    lseek(&sparse.file, from as i64, whence),
                    sparse.expected(from, whence),
                    "{:?} from {}, size {}",
                    whence,
                    from,
                    sparse.size
                );
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// In a process of its own: a store can wait for the server, which must be able to change its memory meanwhile.
const STORES: &str = "import mmap, random, subprocess
PAGE, PAGES = 4096, 4096
random.seed(1)
fd = os.open('sparse', os.O_RDWR | os.O_CREAT)
os.set_inheritable(fd, True)
os.ftruncate(fd, PAGE * PAGES)
file, written = mmap.mmap(fd, PAGE * PAGES), set()
def store():
    page = random.randrange(PAGES)
    file[page * PAGE + random.randrange(PAGE)] = 1
    written.add(page)
def expected(at, data):
    page = at // PAGE
    while page < PAGES and (page in written) != data: page += 1
    if page == PAGES: return None if data else PAGE * PAGES
    return max(at, page * PAGE)
def found(at, whence):
    try: return os.lseek(fd, at, whence)
    except OSError as e: assert e.errno == errno.ENXIO, e
for n in range(400):
    store()
    at = random.randrange(PAGE * PAGES)
    assert found(at, os.SEEK_DATA) == expected(at, True), (n, at)
    assert found(at, os.SEEK_HOLE) == expected(at, False), (n, at)
# Programs inherit the descriptor: closing it would send everything.
for command in sys.argv[1:]:
    for _ in range(40): store()
    os.pwrite(fd, b'written', random.randrange(PAGE * (PAGES - 1)))
    subprocess.run(['sh', '-euc', command], check=True, close_fds=False)
    assert open('copy', 'rb').read() == file[:], command
    os.unlink('copy')";

// promise: S-71
#[test]
fn what_is_only_in_the_kernel_is_found_and_copied() {
    let Some(scratch) = mount() else { return };
    let mut commands = vec![
        "exec cp --sparse=auto sparse copy",
        "exec cp --reflink=never --sparse=always sparse copy",
        "tar -cSf t.tar sparse && tar -xOf t.tar >copy",
    ];
    if has("rsync") {
        commands.push("exec rsync -S sparse copy");
    }
    let list = format!("sys.argv[1:] = {commands:?}\n{STORES}");
    scratch.python(&list);
}
