//! sd_notify(3) and sd_listen_fds(3): how a service talks with the service manager that started it.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::time::{ClockId, clock_gettime};

use crate::units::text::Shown;

/// First descriptor of socket activation (sd_listen_fds(3)).
const FIRST_LISTENER: RawFd = 3;
/// Most descriptors taken; more is no sensible unit.
const MOST_LISTENERS: RawFd = 64;
/// How long a manager that does not read may hold this process up.
const PATIENCE: Duration = Duration::from_secs(1);
/// What the manager sets, and no child may inherit: it would speak in the name of this process.
const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The manager's ear. Without a manager every message goes nowhere.
#[derive(Debug, Default)]
pub struct Notifier {
    target: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

/// What a service manager gave this process: where to report, and the sockets it listens on for it.
#[derive(Debug, Default)]
pub struct Manager {
    /// Where to report.
    pub notifier: Notifier,
    /// Listening sockets, in the order of the socket unit.
    pub listeners: Vec<OwnedFd>,
}

impl Manager {
    /// Reads what the environment says and removes it from there, so that no child inherits it. Call it once, before
    /// the first thread starts; fails with [`io::ErrorKind::Other`] after that, and if `NOTIFY_SOCKET` is no address.
    pub fn take() -> io::Result<Self> {
        if VARIABLES.iter().all(|name| env::var_os(name).is_none()) {
            return Ok(Self::default());
        }
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads != 1 {
            return Err(io::Error::other(format!(
                "taking the environment of the service manager with {threads} threads"
            )));
        }
        let [socket, usec, watched, listening, count, _] = VARIABLES.map(env::var_os);
        for name in VARIABLES {
            // SAFETY: this is the only thread (checked above), so nobody reads the environment meanwhile. No safe
            // function removes a variable, and clearing it in every `Command` would miss some day.
            unsafe { env::remove_var(name) };
        }
        let own = std::process::id();
        let notifier = Notifier::new(socket, watchdog(usec.as_deref(), watched.as_deref(), own))?;
        let count = listener_count(count.as_deref(), listening.as_deref(), own);
        let listeners = (FIRST_LISTENER..FIRST_LISTENER + count).map(listener).collect::<io::Result<_>>()?;
        Ok(Self { notifier, listeners })
    }
}

impl Notifier {
    /// Reports to `socket`, an absolute path or, after `@`, a name of the abstract name space.
    fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> io::Result<Self> {
        let Some(socket) = socket.filter(|name| !name.is_empty()) else { return Ok(Self::default()) };
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(&socket)?,
            _ => {
                let problem = format!(
                    "NOTIFY_SOCKET={}: neither a path nor an abstract name",
                    crate::sys::path::shown(socket.as_ref())
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
        };
        let from = UnixDatagram::unbound()?;
        from.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { target: Some((from, address)), watchdog })
    }

    /// The service is up (or has reloaded); `status` is a line for people.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The service reads its configuration anew; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The service has begun to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A line for people who ask how the service is doing.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", one_line(text)));
    }

    /// The service is well. Due at least every [`Self::watchdog_period`].
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often to call [`Self::watchdog`], if the manager wants that: half of the time after which it acts.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// A manager that does not read is no reason to fail: it notices by itself.
    fn send(&self, state: &str) {
        if let Some((from, address)) = &self.target
            && let Err(error) = from.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

/// Lines are what separates assignments.
fn one_line(text: &str) -> String {
    Shown(text).to_string()
}

/// `WATCHDOG_USEC`, if it is meant for this process (sd_watchdog_enabled(3)).
fn watchdog(usec: Option<&OsStr>, pid: Option<&OsStr>, own: u32) -> Option<Duration> {
    let meant = pid.is_none_or(|pid| number(Some(pid)) == Some(u64::from(own)));
    number(usec).filter(|&usec| meant && usec > 0).map(Duration::from_micros)
}

/// `LISTEN_FDS`, if it is meant for this process.
fn listener_count(count: Option<&OsStr>, pid: Option<&OsStr>, own: u32) -> RawFd {
    let meant = number(pid) == Some(u64::from(own));
    let count = number(count).and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    if meant { count.min(MOST_LISTENERS) } else { 0 }
}

fn number(text: Option<&OsStr>) -> Option<u64> {
    text?.to_str()?.parse().ok()
}

/// Takes descriptor `fd` over, which must be a socket.
fn listener(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for two system calls only, which fail on a number that is not open. There is no safe way to a
    // descriptor that comes as a number.
    let given = unsafe { BorrowedFd::borrow_raw(fd) };
    let kind = SFlag::from_bits_truncate(fstat(given)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS: descriptor {fd} is no socket")));
    }
    fcntl(given, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open (fstat succeeded), and the manager opened it for this process to own; nothing else here knows
    // the number, and it is taken once, for the variables that name it are gone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn speak(notifier: &Notifier, ear: &UnixDatagram) {
        notifier.ready("2 runs\nSTOPPING=1");
        assert_eq!(heard(ear), "READY=1\nSTATUS=2 runs\\nSTOPPING=1", "a status cannot smuggle assignments in");
        notifier.reloading();
        let text = heard(ear);
        let usec = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the time of the reload");
        assert!(usec.parse::<u64>().expect("a number") > 0);
        notifier.status("busy");
        assert_eq!(heard(ear), "STATUS=busy");
        notifier.watchdog();
        assert_eq!(heard(ear), "WATCHDOG=1");
        notifier.stopping();
        assert_eq!(heard(ear), "STOPPING=1");
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify");
        let ear = UnixDatagram::bind(&path).expect("bound");
        speak(&Notifier::new(Some(path.into()), None).expect("an address"), &ear);

        let name = format!("runseal-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let ear = UnixDatagram::bind_addr(&address).expect("bound");
        speak(&Notifier::new(Some(format!("@{name}").into()), None).expect("an address"), &ear);
    }

    #[test]
    fn without_a_manager_nothing_happens_and_a_deaf_one_does_no_harm() {
        for none in [None, Some(OsString::new())] {
            let notifier = Notifier::new(none, None).expect("nothing to open");
            assert!(notifier.target.is_none());
            notifier.ready("up");
        }
        Notifier::new(Some("/nonexistent/notify".into()), None).expect("an address").ready("up");
        assert!(Notifier::new(Some("relative".into()), None).is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_does_not_stop_the_service() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify");
        let _ear = UnixDatagram::bind(&path).expect("bound");
        let notifier = Notifier::new(Some(path.into()), None).expect("an address");
        let (from, address) = notifier.target.as_ref().expect("active");
        from.set_nonblocking(true).expect("set");
        while from.send_to_addr(b"x", address).is_ok() {}
        from.set_nonblocking(false).expect("set");
        notifier.watchdog();
    }

    #[test]
    fn variables_of_another_process_are_not_ours() {
        let text = |text: &'static str| Some(OsStr::new(text));
        assert_eq!(watchdog(text("3000000"), text("7"), 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), None, 7), Some(Duration::from_secs(3)));
        for (usec, pid) in [(text("3000000"), text("8")), (text("0"), None), (text("x"), None), (None, text("7"))] {
            assert_eq!(watchdog(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
        assert_eq!(listener_count(text("2"), text("7"), 7), 2);
        assert_eq!(listener_count(text("9999999999"), text("7"), 7), 0);
        assert_eq!(listener_count(text("9999"), text("7"), 7), MOST_LISTENERS);
        for (count, pid) in [(text("2"), text("8")), (text("2"), None), (text("-2"), text("7")), (None, text("7"))] {
            assert_eq!(listener_count(count, pid, 7), 0, "{count:?} {pid:?}");
        }
    }

    #[test]
    fn only_sockets_are_taken_over() {
        use std::os::fd::{AsRawFd, IntoRawFd};
        let file = std::fs::File::open("/dev/null").expect("opened");
        assert_eq!(listener(file.as_raw_fd()).expect_err("no socket").kind(), io::ErrorKind::InvalidInput);
        assert!(listener(RawFd::MAX).is_err(), "not open");
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let taken = listener(near.into_raw_fd()).expect("a socket");
        let flags = FdFlag::from_bits_truncate(fcntl(&taken, FcntlArg::F_GETFD).expect("flags"));
        assert!(flags.contains(FdFlag::FD_CLOEXEC), "{}", taken.as_raw_fd());
    }
}
