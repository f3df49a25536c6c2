//! Capabilities (capabilities(7)): what a process gives up before it becomes another program, and for itself.
#![allow(unsafe_code)]

use std::io;

/// A set of capabilities, one bit each.
pub type Set = u64;

/// `CAP_CHOWN`
pub const CHOWN: Set = 1 << 0;
/// `CAP_DAC_OVERRIDE`
pub const DAC_OVERRIDE: Set = 1 << 1;
/// `CAP_DAC_READ_SEARCH`
pub const DAC_READ_SEARCH: Set = 1 << 2;
/// `CAP_FOWNER`
pub const FOWNER: Set = 1 << 3;
/// `CAP_FSETID`
pub const FSETID: Set = 1 << 4;
/// `CAP_KILL`
pub const KILL: Set = 1 << 5;
/// `CAP_SETGID`
pub const SETGID: Set = 1 << 6;
/// `CAP_SETUID`
pub const SETUID: Set = 1 << 7;
/// `CAP_SETPCAP`
pub const SETPCAP: Set = 1 << 8;
/// `CAP_LINUX_IMMUTABLE`
pub const LINUX_IMMUTABLE: Set = 1 << 9;
/// `CAP_IPC_LOCK`
pub const IPC_LOCK: Set = 1 << 14;
/// `CAP_SYS_MODULE`
pub const SYS_MODULE: Set = 1 << 16;
/// `CAP_SYS_RAWIO`
pub const SYS_RAWIO: Set = 1 << 17;
/// `CAP_SYS_PTRACE`
pub const SYS_PTRACE: Set = 1 << 19;
/// `CAP_SYS_ADMIN`
pub const SYS_ADMIN: Set = 1 << 21;
/// `CAP_SYS_BOOT`
pub const SYS_BOOT: Set = 1 << 22;
/// `CAP_SYS_RESOURCE`
pub const SYS_RESOURCE: Set = 1 << 24;
/// `CAP_SETFCAP`
pub const SETFCAP: Set = 1 << 31;
/// `CAP_PERFMON`
pub const PERFMON: Set = 1 << 38;
/// `CAP_BPF`
pub const BPF: Set = 1 << 39;
/// `CAP_CHECKPOINT_RESTORE`
pub const CHECKPOINT_RESTORE: Set = 1 << 40;

/// Those with which a program reads, traces or replaces any process of its user namespace, or the kernel below it.
pub const REACHING: Set =
    SYS_PTRACE | PERFMON | CHECKPOINT_RESTORE | SYS_ADMIN | BPF | SYS_RAWIO | SYS_MODULE | SYS_BOOT;

/// Effective, permitted and inheritable set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// Effective.
    pub effective: Set,
    /// Permitted.
    pub permitted: Set,
    /// Inheritable.
    pub inheritable: Set,
}

impl Sets {
    /// None in any.
    pub const NONE: Self = Self::all(0);

    /// The same in each.
    pub const fn all(set: Set) -> Self {
        Self { effective: set, permitted: set, inheritable: set }
    }

    /// Those of this thread.
    pub fn own() -> io::Result<Self> {
        let (header, mut data) = (HEADER, [0_u32; 6]);
        // SAFETY: capget(2) reads a header and, for version 3, writes two structs of three u32 each; both outlive the
        // call. No dependency wraps it.
        succeeded(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
        let set = |at: usize| Set::from(data[at]) | Set::from(data[at + 3]) << 32;
        Ok(Self { effective: set(0), permitted: set(1), inheritable: set(2) })
    }

    /// Makes them those of this thread. Async-signal-safe.
    pub fn enter(self) -> io::Result<()> {
        let header = HEADER;
        let Self { effective, permitted, inheritable } = self;
        let (low, high) = (|set: Set| set as u32, |set: Set| (set >> 32) as u32);
        let data =
            [low(effective), low(permitted), low(inheritable), high(effective), high(permitted), high(inheritable)];
        // SAFETY: capset(2) reads a header and, for version 3, two structs of three u32 each; both outlive the call. No
        // dependency wraps it.
        succeeded(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
    }

    /// Only those of `set`.
    pub fn within(self, set: Set) -> Self {
        let Self { effective, permitted, inheritable } = self;
        Self { effective: effective & set, permitted: permitted & set, inheritable: inheritable & set }
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Version 3, this thread.
const HEADER: Header = Header { version: 0x2008_0522, pid: 0 };

/// Gives up `set` for this thread and every program it becomes, root or not. Async-signal-safe.
pub fn renounce(set: Set) -> io::Result<()> {
    let mut bound = true;
    for number in (0..Set::BITS).filter(|number| set & 1 << number != 0) {
        bound &= drop_from_bounding_set(number)?;
    }
    // Without CAP_SETPCAP the bounding set stays, but then a program gets at most what this process has.
    if !bound {
        nix::sys::prctl::set_no_new_privs()?;
    }
    // Ambient capabilities go with the inheritable ones.
    Sets::own()?.within(!set).enter()
}

/// `false` if this process may not.
fn drop_from_bounding_set(number: u32) -> io::Result<bool> {
    // SAFETY: this prctl takes plain integers and touches no memory. nix has no wrapper for it.
    let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
    // EINVAL: the kernel does not know it.
    if present != 1 {
        return Ok(true);
    }
    // SAFETY: as above.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    match succeeded(dropped.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Hands `set`, which is permitted here, on to the programs this thread becomes, also to those of a user who is not
/// root. Async-signal-safe.
pub fn hand_on(set: Set) -> io::Result<()> {
    // Ambient capabilities survive execve(2); they must be permitted and inheritable first (capabilities(7)).
    Sets::all(set).enter()?;
    for number in (0..Set::BITS).filter(|number| set & 1 << number != 0) {
        // SAFETY: this prctl takes plain integers and touches no memory. nix has no wrapper for it.
        let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        succeeded(raised.into())?;
    }
    Ok(())
}

fn succeeded(answer: libc::c_long) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_capabilities_are_those_that_proc_shows() {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("own status");
        let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).expect("a field");
        let set = |name| Set::from_str_radix(field(name).trim(), 16).expect("hexadecimal");
        let own = Sets::own().expect("version 3 is known");
        assert_eq!(own.effective, set("CapEff:"));
        assert_eq!(own.permitted, set("CapPrm:"));
        assert_eq!(own.inheritable, set("CapInh:"));
        own.enter().expect("what one has, one may have");
        assert_eq!(own.within(KILL).effective & !KILL, 0);
    }
}
