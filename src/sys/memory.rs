//! Memory for secrets: pages outside swap, core dumps and child processes; locking of the whole process.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::mman::{self, MapFlags, MlockAllFlags, MmapAdvise, ProtFlags};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use parking_lot::Mutex;
use zeroize::Zeroize;

/// What keeps a [`SecretPages`] out of other hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// `memfd_secret(2)`: never swapped, absent from the kernel's direct map, unreadable through `/proc/PID/mem`.
    MemfdSecret,
    /// `mlock(2)`: never swapped.
    Locked,
    /// Neither: the pages may be swapped out. They are still left out of core dumps and child processes.
    Unlocked,
}

impl Protection {
    /// Name as reports show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemfdSecret => "memfd_secret",
            Self::Locked => "mlock",
            Self::Unlocked => "unlocked",
        }
    }
}

/// Whether [`Allocator`] overwrites what is given back to it.
static WIPES: AtomicBool = AtomicBool::new(false);

/// From now on the buffers of this process are overwritten when they are freed, those of libraries too. Costs a pass over
/// each. Needs [`Allocator`].
pub fn wipe_freed() {
    WIPES.store(true, Ordering::Relaxed);
}

/// The allocator of the system, which [`wipe_freed`] makes overwrite what is freed.
pub struct Allocator;

// SAFETY: memory comes from the system's allocator and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if WIPES.load(Ordering::Relaxed) {
            // SAFETY: the block is `layout.size()` bytes long, and the caller gives it up.
            unsafe { memory.write_bytes(0, layout.size()) };
            // The compiler must not take the stores for dead because the block is freed.
            std::hint::black_box(memory);
        }
        // SAFETY: the caller vouches that the block is one of this allocator, made with this layout.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !WIPES.load(Ordering::Relaxed) {
            // SAFETY: the caller vouches for block, layout and size.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller vouches that the size is not zero and does not overflow when rounded up to the alignment; the
        // new block is as long as what is copied, and another one.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(memory, layout.size().min(size));
                self.dealloc(memory, layout);
            }
            moved
        }
    }
}

/// Address and number of words of all [`SecretPages`] of this process.
static LIVE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Overwrites all [`SecretPages`] of this process, for one that is about to die and will not drop them.
pub fn wipe_all() {
    for &(address, count) in LIVE.lock().iter() {
        // SAFETY: what is listed is mapped: `map` lists it afterwards, and `drop` takes it off, under this lock, before it
        // unmaps. Words are atomic, so whoever uses them meanwhile reads some value.
        let words = unsafe { slice::from_raw_parts(address as *const AtomicU64, count) };
        words.iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }
}

/// Zeroed pages for secrets, read and written as 64-bit words; wiped and unmapped on drop.
///
/// All kinds are left out of core dumps (`MADV_DONTDUMP`) and are not mapped in child processes (`MADV_DONTFORK`).
/// Words are atomic so that a wipe may meet a reader without undefined behaviour; relaxed order suffices for the
/// words themselves, their owner supplies the ordering.
pub struct SecretPages {
    words: NonNull<AtomicU64>,
    count: usize,
    protection: Protection,
}

impl SecretPages {
    /// Locked pages of at least `bytes` bytes: `memfd_secret` where the kernel has it, else `mlock`. Fails where the
    /// limits (`RLIMIT_MEMLOCK`) allow neither.
    pub fn locked(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, Protection::MemfdSecret).or_else(|_| Self::map(bytes, Protection::Locked))
    }

    /// Pages of at least `bytes` bytes that the kernel may swap out, for where locking is refused.
    pub fn unlocked(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, Protection::Unlocked)
    }

    /// The words. Bytes asked for are rounded up to whole pages.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` points to a private mapping of `count` zero-initialised, page-aligned words that lives until
        // drop, which takes `self` exclusively; `AtomicU64` is valid for every bit pattern. No safe wrapper lends out
        // mapped memory.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.count * size_of::<AtomicU64>()
    }

    /// How the pages are protected.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    fn map(bytes: usize, protection: Protection) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes.next_multiple_of(page_size()))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let address = match protection {
            Protection::MemfdSecret => map_memfd_secret(length)?,
            Protection::Locked | Protection::Unlocked => map_anonymous(length)?,
        };
        // From here on drop unmaps, whatever fails.
        let pages = Self { words: address.cast(), count: length.get() / size_of::<AtomicU64>(), protection };
        LIVE.lock().push((pages.words.as_ptr() as usize, pages.count));
        if protection == Protection::Locked {
            // SAFETY: the range is the mapping made above; locking changes no content.
            unsafe { mman::mlock(address, length.get()) }?;
        }
        for advice in [MmapAdvise::MADV_DONTDUMP, MmapAdvise::MADV_DONTFORK] {
            // SAFETY: the range is the mapping made above; neither advice changes what this process reads from it.
            unsafe { mman::madvise(address, length.get(), advice) }?;
        }
        Ok(pages)
    }
}

impl Drop for SecretPages {
    fn drop(&mut self) {
        let bytes = self.bytes();
        let own = self.words.as_ptr() as usize;
        LIVE.lock().retain(|(address, _)| *address != own);
        // SAFETY: the mapping is `bytes` long and, in drop, nobody else can refer to it.
        unsafe { slice::from_raw_parts_mut(self.words.as_ptr().cast::<u8>(), bytes) }.zeroize();
        // SAFETY: the range is the whole mapping, and no reference into it outlives `self`.
        let unmapped = unsafe { mman::munmap(self.words.cast(), bytes) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

// SAFETY: the pages belong to this value alone and are no thread's property.
unsafe impl Send for SecretPages {}
// SAFETY: shared access goes through atomics only.
unsafe impl Sync for SecretPages {}

fn map_memfd_secret(length: NonZeroUsize) -> io::Result<NonNull<libc::c_void>> {
    // SAFETY: the call takes one flag word and touches no memory; libc and nix have no wrapper.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    nix::unistd::ftruncate(&fd, length.get() as i64)?;
    // SAFETY: no address is asked for, so no existing mapping is replaced; the file has the length mapped and no other
    // user, so nothing else can change or shorten it.
    let address = unsafe {
        mman::mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd.as_fd(), 0)
    };
    Ok(address?)
}

fn map_anonymous(length: NonZeroUsize) -> io::Result<NonNull<libc::c_void>> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so no existing mapping is replaced.
    Ok(unsafe { mman::mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?)
}

fn page_size() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Locks every page this process has touched or will touch into memory (`mlockall`, `MCL_ONFAULT`).
///
/// Refuses with `ENOMEM` where `RLIMIT_MEMLOCK` is finite and binds this process: under `MCL_FUTURE` every later
/// allocation beyond the limit would fail, so a small limit would be worse than none.
pub fn lock_process_memory() -> io::Result<()> {
    if !may_lock_without_limit()? {
        return Err(nix::errno::Errno::ENOMEM.into());
    }
    let flags = MlockAllFlags::from_bits_retain(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    Ok(mman::mlockall(flags)?)
}

/// Whether `RLIMIT_MEMLOCK` does not bind this process. Capabilities do not tell (`CAP_IPC_LOCK` of a user namespace
/// does not count), so this locks an untouched, inaccessible range larger than the limit and sees.
fn may_lock_without_limit() -> io::Result<bool> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if soft == RLIM_INFINITY {
        return Ok(true);
    }
    let probe = (soft as usize).checked_next_multiple_of(page_size()).and_then(|limit| limit.checked_add(page_size()));
    let Some(length) = probe.and_then(NonZeroUsize::new) else { return Ok(true) };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: no address is asked for, so no existing mapping is replaced; the range is never accessed.
    let address = unsafe { mman::mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) }?;
    // SAFETY: the range is the mapping made above. MLOCK_ONFAULT: no page is brought in.
    let locked = unsafe { libc::mlock2(address.as_ptr(), length.get(), libc::MLOCK_ONFAULT) } == 0;
    // SAFETY: the range is the mapping made above and nothing refers to it.
    unsafe { mman::munmap(address, length.get()) }?;
    Ok(locked)
}

/// Whether this machine has swap space in use, where unlocked memory could be written to.
pub fn swap_active() -> io::Result<bool> {
    match fs::read_to_string("/proc/swaps") {
        Ok(table) => Ok(lists_swap(&table)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a `/proc/swaps` table has a line after its heading.
fn lists_swap(table: &str) -> bool {
    table.lines().skip(1).any(|line| !line.trim().is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::FileExt;
    use std::process::{Command, Stdio};
    use std::sync::atomic::Ordering::Relaxed;

    use nix::sys::resource::setrlimit;
    use nix::unistd::{Uid, setresuid};

    use super::*;

    /// Set in the children that [`rerun_in_child`] starts.
    pub(crate) const CHILD: &str = "RUNSEAL_TEST_CHILD";

    #[test]
    fn pages_start_zeroed_and_hold_what_is_written() {
        for protection in [Protection::MemfdSecret, Protection::Locked, Protection::Unlocked] {
            let Some(pages) = map_or_skip(protection) else { continue };
            assert_eq!((pages.protection(), pages.bytes() % page_size()), (protection, 0));
            assert!(pages.bytes() >= 10_000);
            assert!(pages.words().iter().all(|word| word.load(Relaxed) == 0));
            pages.words()[1].store(7, Relaxed);
            assert_eq!(pages.words()[1].load(Relaxed), 7);
        }
        assert!(SecretPages::unlocked(0).is_err());
    }

    // promise: T-11
    #[test]
    fn pages_are_left_out_of_dumps_and_forks() {
        for protection in [Protection::MemfdSecret, Protection::Locked, Protection::Unlocked] {
            let Some(pages) = map_or_skip(protection) else { continue };
            let address = pages.words().as_ptr() as usize;
            let flags = vm_flags(address).expect("mapped");
            for flag in ["dd", "dc"] {
                assert!(flags.split(' ').any(|f| f == flag), "{protection:?}: {flag} missing in {flags}");
            }
            let locked = flags.split(' ').any(|f| f == "lo");
            assert_eq!(locked, protection != Protection::Unlocked, "{protection:?}: {flags}");
        }
    }

    // promise: T-12
    #[test]
    fn memfd_secret_pages_cannot_be_read_through_proc() {
        let Some(secret) = map_or_skip(Protection::MemfdSecret) else { return };
        let plain = SecretPages::unlocked(10).expect("anonymous memory");
        let memory = fs::File::open("/proc/self/mem").expect("own memory");
        let mut buffer = [0; 8];
        plain.words()[0].store(0x5EA1, Relaxed);
        secret.words()[0].store(0x5EA1, Relaxed);
        memory.read_exact_at(&mut buffer, plain.words().as_ptr() as u64).expect("control: ordinary pages are readable");
        assert_eq!(u64::from_ne_bytes(buffer), 0x5EA1);
        assert!(memory.read_exact_at(&mut buffer, secret.words().as_ptr() as u64).is_err());
    }

    /// Fills secret pages, and says on standard output, when this process aborts, whether they were wiped before.
    pub(crate) fn tell_at_abort() {
        static PAGES: std::sync::OnceLock<SecretPages> = std::sync::OnceLock::new();
        extern "C" fn tell(_: i32) {
            let wiped = PAGES.get().is_some_and(|pages| pages.words().iter().all(|word| word.load(Relaxed) == 0));
            let said: &[u8] = if wiped { b"wiped" } else { b"left" };
            let _ = nix::unistd::write(io::stdout(), said);
        }
        let pages = PAGES.get_or_init(|| SecretPages::unlocked(10_000).expect("anonymous memory"));
        pages.words().iter().for_each(|word| word.store(7, Relaxed));
        // SAFETY: the handler reads memory that is never unmapped and makes one system call.
        unsafe {
            nix::sys::signal::signal(nix::sys::signal::Signal::SIGABRT, nix::sys::signal::SigHandler::Handler(tell))
        }
        .expect("a handler");
    }

    #[test]
    fn a_small_limit_refuses_locked_pages_and_process_locking() {
        if std::env::var_os(CHILD).is_none() {
            return rerun_in_child("sys::memory::tests::a_small_limit_refuses_locked_pages_and_process_locking");
        }
        setrlimit(Resource::RLIMIT_MEMLOCK, 4096, 4096).expect("lowering a limit");
        let nobody = Uid::from_raw(65534);
        if Uid::current().is_root() {
            setresuid(nobody, nobody, nobody).expect("dropping root, which no limit binds");
        }
        assert!(SecretPages::locked(1 << 20).is_err());
        assert!(SecretPages::unlocked(1 << 20).is_ok());
        assert_eq!(lock_process_memory().unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn process_memory_locks_where_no_limit_binds() {
        if std::env::var_os(CHILD).is_none() {
            return rerun_in_child("sys::memory::tests::process_memory_locks_where_no_limit_binds");
        }
        if !may_lock_without_limit().expect("probe") {
            return println!("SKIP: RLIMIT_MEMLOCK binds this process");
        }
        lock_process_memory().expect("no limit binds");
        let later = vec![1_u8; 1 << 20];
        let flags = vm_flags(later.as_ptr() as usize).expect("mapped");
        assert!(flags.split(' ').any(|f| f == "lo"), "{flags}");
    }

    #[test]
    fn swap_tables_are_understood() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!lists_swap(heading));
        assert!(!lists_swap(""));
        assert!(lists_swap(&format!("{heading}/dev/sda2                               partition\t1000\t0\t-2\n")));
        swap_active().expect("readable on every Linux");
    }

    /// Pages of 10 000 bytes, or a visible skip where this machine has no such protection.
    fn map_or_skip(protection: Protection) -> Option<SecretPages> {
        match SecretPages::map(10_000, protection) {
            Ok(pages) => Some(pages),
            Err(error) => {
                assert_ne!(protection, Protection::Unlocked, "{error}");
                println!("SKIP: no {} here: {error}", protection.name());
                None
            }
        }
    }

    /// `VmFlags` (see proc(5), smaps) of the mapping that holds `address`.
    fn vm_flags(address: usize) -> Option<String> {
        let maps = fs::read_to_string("/proc/self/smaps").expect("own mappings");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|field| field.split_once('-'));
            let bound = |hex: &str| usize::from_str_radix(hex, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| bound(start).zip(bound(end))) {
                inside = (start..end).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags: ")) {
                return Some(flags.trim().to_owned());
            }
        }
        None
    }

    /// Runs one test of this binary in a process of its own, whose limits and identity it may change.
    pub(crate) fn rerun_in_child(test: &str) {
        let mut child = Command::new(std::env::current_exe().expect("test binary"));
        child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1").stdin(Stdio::null());
        let output = child.output().expect("child process");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "the child ran no test: {text}");
        text.lines().filter(|line| line.contains("SKIP")).for_each(|line| println!("{line}"));
    }
}
