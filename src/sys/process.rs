//! Processes: fork without exec, and what a child must give back between fork and exec.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Pid, getppid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::capability;
use super::mount::PrivateView;

/// Which side of [`fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that forked, and the child it got.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks without exec. Fails with [`io::ErrorKind::Other`] if this process has more than one thread: the child would
/// inherit locks nobody ever unlocks.
pub fn fork() -> io::Result<Side> {
    alone("fork")?;
    // SAFETY: the process has one thread (checked above, and no other can start one), so the child may run any code.
    // No safe wrapper exists because none can check this.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Has the kernel kill this process when `parent`, which has forked it, ends (the very thread, if it has several); at
/// once, if it has ended already.
pub fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Who had ended before that sends no signal.
    if getppid() == parent { Ok(()) } else { Ok(raise(Signal::SIGKILL)?) }
}

/// Takes back [`die_with`]. To be called by the same thread.
pub fn outlive_parent() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(None)?)
}

/// What a process may (credentials(7), capabilities(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Effective capabilities, one bit each.
    pub effective: u64,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The credentials of a process or thread, numbered as in this `/proc`; `None` if it cannot be seen.
pub fn credentials(process: u32) -> Option<Credentials> {
    parse_credentials(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

/// Has the kernel count this process, and all it starts, as any other when memory runs out, if it was to be spared
/// (proc_pid_oom_score_adj(5)).
pub fn give_up_oom_protection() -> io::Result<()> {
    const KNOB: &str = "/proc/self/oom_score_adj";
    let adjusted: i32 = std::fs::read_to_string(KNOB)?.trim().parse().map_err(io::Error::other)?;
    // Opened without O_CREAT.
    if adjusted < 0 { std::fs::OpenOptions::new().write(true).open(KNOB)?.write_all(b"0") } else { Ok(()) }
}

fn parse_credentials(status: &str) -> Option<Credentials> {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let groups = field("Groups:")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Credentials { effective: u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?, groups })
}

/// A descriptor of `process` that becomes readable when it ends (pidfd_open(2), Linux 5.3). `ESRCH`: it has ended.
pub fn watch(process: Pid) -> io::Result<OwnedFd> {
    pidfd_open(process, 0)
}

/// As [`watch`], but readable as soon as the first thread of the process has ended, though others may linger. Needs Linux
/// 6.9.
pub fn watch_first_thread(process: Pid) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    pidfd_open(process, PIDFD_THREAD)
}

fn pidfd_open(process: Pid, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: this system call takes two integers and touches no memory. nix has no wrapper for it.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), flags) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for this process; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as RawFd) })
}

/// Sends `signal` to the process behind a descriptor of [`watch`], which cannot mean another one (pidfd_send_signal(2),
/// Linux 5.1). `ESRCH`: it has ended.
pub fn signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let (fd, none) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the descriptor is open, and without a siginfo the kernel reads no memory. nix has no wrapper for it.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, none, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What proc_pid_stat(5) says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Name of its program.
    pub name: String,
    /// `R`, `S`, `D`, `T`, `Z`, ...
    pub state: char,
    /// When it started, in clock ticks since the boot: with the id, this means one process.
    pub born: u64,
}

impl ProcessStat {
    /// Of `process`, as long as it exists.
    pub fn of(process: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may have parentheses and spaces in it.
        let (head, tail) = text.rsplit_once(") ")?;
        let mut fields = tail.split(' ');
        let state = fields.next()?.chars().next()?;
        // The state is the third field, the start the 22nd.
        let born = fields.nth(18)?.parse().ok()?;
        Some(Self { name: head.split_once('(')?.1.to_owned(), state, born })
    }
}

/// Waits for the end of a process behind a descriptor of [`watch`]. To be called in a tokio runtime.
pub async fn ended(process: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is owned by the value that is registered, so it stays open until it is deregistered. The
    // safe constructor cannot know that of every type and is deprecated.
    let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.map_err(io::Error::from)?;
    process.readable().await?.retain_ready();
    Ok(())
}

/// Fails if this process has more than one thread.
pub(super) fn alone(doing: &str) -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!("{doing} with {threads} threads"))),
    }
}

/// Makes the relative paths in these environment variables absolute, so that they still lead where the user meant when
/// this process works elsewhere. `~` is left to whoever reads them. Fails if this process has more than one thread.
#[allow(clippy::disallowed_methods, reason = "what it is disallowed for, a race with other threads, is checked for")]
pub fn make_paths_absolute(variables: &[&str]) -> io::Result<()> {
    alone("changing the environment")?;
    for name in variables {
        let Some(value) = std::env::var_os(name) else { continue };
        let path = std::path::Path::new(&value);
        if path.as_os_str().is_empty() || path.is_absolute() || path.starts_with("~") {
            continue;
        }
        let path = std::path::absolute(path)?;
        // SAFETY: no other thread can read the environment meanwhile: there is none (checked above), and no other can
        // start one. No safe wrapper exists because none can check this.
        unsafe { std::env::set_var(name, path) };
    }
    Ok(())
}

/// Whether `signal` is ignored in this process, as after nohup(1).
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction(2) with a null new action only writes the old one into `old`, a plain C struct for which
    // zeros are valid. nix offers no query that leaves the action in place.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// What a command gets back that this process had changed for itself.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// Signals blocked when this process started.
    pub mask: SigSet,
    /// File-mode creation mask when this process started.
    pub umask: Mode,
}

impl Inherited {
    /// The state of this process now.
    pub fn capture() -> io::Result<Self> {
        let mask = SigSet::thread_get_mask()?;
        let current = umask(Mode::empty());
        umask(current);
        Ok(Self { mask, umask: current })
    }
}

/// As whom a program runs, and what it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As this process.
    Same,
    /// As this process, but without [`capability::REACHING`], for good.
    Bounded,
    /// As the user of this process, without any capability and without a way to get one.
    Plain,
    /// The same as another user, and the group of the same number.
    Other(u32),
}

impl Standing {
    /// Makes system calls only.
    fn take(self) -> io::Result<()> {
        match self {
            Self::Same => Ok(()),
            Self::Bounded => capability::renounce(capability::REACHING),
            Self::Plain => {
                prctl::set_no_new_privs()?;
                capability::Sets::NONE.enter()
            }
            Self::Other(id) => {
                prctl::set_no_new_privs()?;
                become_user(id)?;
                // Gone already if this was root.
                capability::Sets::NONE.enter()
            }
        }
    }
}

/// Group first: only who may change users may change groups. Raw system calls: those of the C library would have other
/// threads follow, and the child of a fork has none.
fn become_user(id: u32) -> io::Result<()> {
    let succeeded = |answer| if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: these system calls take integers, and pointers that are not read: with a length of zero, and no name.
    unsafe {
        // Whoever has a keyring of the session may use its keys. Engines of containers forbid this call, and keyrings.
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>());
        succeeded(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        succeeded(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        succeeded(libc::syscall(libc::SYS_setresuid, id, id, id))
    }
}

/// Prepares `command` to start as the user would have started it: signal mask and umask of `inherited`, a core limit
/// of one byte (no core file, and by core(5) no core pipe either), and `standing`. It starts in `view`; if it cannot be
/// given that, a byte goes to `refused`, for the error of the start does not tell.
pub fn prepare(command: &mut Command, inherited: Inherited, view: PrivateView, refused: OwnedFd, standing: Standing) {
    let setup = move || {
        if let Err(errno) = view.enter() {
            let _ = nix::unistd::write(&refused, &[0]);
            return Err(errno.into());
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&inherited.mask), None)?;
        umask(inherited.umask);
        limit_core(1)?;
        standing.take()
    };
    // SAFETY: the closure runs in the forked child of a process with threads, so it may call async-signal-safe
    // functions only: it makes system calls on values it owns (`PrivateView::enter`, too), takes no lock and allocates
    // nothing (errors are plain errno values). std offers no safe way to set these.
    unsafe { command.pre_exec(setup) };
}

/// Has `command` lead a session of its own; with `terminal`, its standard input is the terminal that controls it.
pub fn lead_session(command: &mut Command, terminal: bool) {
    let setup = move || {
        nix::unistd::setsid()?;
        // SAFETY: TIOCSCTTY takes an integer: 0, not to steal the terminal of another session. nix has no wrapper for it.
        if terminal && unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: as in `prepare`: only system calls on plain integers. std offers no safe way to set these.
    unsafe { command.pre_exec(setup) };
}

/// Sets the soft and hard limit of core files to `bytes`, or to the hard limit if that is lower.
pub fn limit_core(bytes: rlim_t) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    let limit = bytes.min(hard);
    Ok(setrlimit(Resource::RLIMIT_CORE, limit, limit)?)
}

/// Lets `command`, which is not root, keep the right to open any file that a user namespace gave this process.
pub fn hand_on_file_rights(command: &mut Command) {
    let setup = || capability::hand_on(capability::DAC_OVERRIDE | capability::DAC_READ_SEARCH);
    // SAFETY: as in `prepare`: only system calls on plain integers. std offers no safe way to set these.
    unsafe { command.pre_exec(setup) };
}

/// Waits until there is something to read, or the end; `false` if that does not come before `deadline`.
pub fn is_readable(fd: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], time) {
            Err(Errno::EINTR) => {}
            answer => return Ok(answer? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fork_is_refused_with_threads() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(fork().is_err());
        drop(stop);
        let _ = thread.join();
    }

    #[test]
    fn credentials_are_read_as_proc_shows_them() {
        let status = "Name:\tx\nGroups:\t4 27 1000 \nCapEff:\t0000000000000010\n";
        assert_eq!(parse_credentials(status), Some(Credentials { effective: 16, groups: vec![4, 27, 1000] }));
        assert_eq!(parse_credentials("Groups:\t\nCapEff:\t0\n"), Some(Credentials { effective: 0, groups: vec![] }));
        assert_eq!(parse_credentials("Name:\tx\n"), None);
        assert!(credentials(std::process::id()).is_some());
        assert_eq!(credentials(u32::MAX), None);
    }

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let own = ProcessStat::of(std::process::id()).expect("this one lives");
        assert_eq!(Some(&own.born), ProcessStat::of(std::process::id()).as_ref().map(|again| &again.born));
        let line = "7 (a) b (c)) T 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1";
        let expected = ProcessStat { name: "a) b (c)".into(), state: 'T', born: 4242 };
        assert_eq!(ProcessStat::parse(line), Some(expected));
        assert_eq!(ProcessStat::parse("7 (a"), None);
    }

    #[test]
    fn a_signal_goes_to_the_very_process() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let watched = watch(Pid::from_raw(child.id() as i32)).expect("it lives");
        signal(&watched, Signal::SIGKILL).expect("sent");
        child.wait().expect("waited for");
        assert_eq!(signal(&watched, Signal::SIGKILL).map_err(|e| e.raw_os_error()), Err(Some(libc::ESRCH)));
    }

    #[test]
    fn a_prepared_command_has_a_core_limit_of_one_byte_and_the_old_umask() {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c; ulimit -H -c; umask; grep SigBlk /proc/self/status"]);
        let inherited = Inherited { mask: SigSet::empty(), umask: Mode::from_bits_truncate(0o027) };
        let (_, refused) = nix::unistd::pipe().expect("a pipe");
        prepare(&mut command, inherited, PrivateView::default(), refused, Standing::Same);
        let output = command.output().expect("sh starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, hard) = getrlimit(Resource::RLIMIT_CORE).expect("limit");
        if hard >= 1 {
            // The shell counts in blocks of 512 or 1024 bytes: one byte shows as 0, as the kernel's file does not.
            assert!(text.starts_with("0\n0\n"), "{text}");
        }
        assert!(text.contains("0027"), "{text}");
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    }
}
