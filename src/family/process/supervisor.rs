//! The supervisor: the process the user started. It has no key, starts the sealed process, passes signals on, and
//! tells what was lost if the sealed process dies.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::family::{
    Event, FamilyError, Kind, Outcome, Phase, Report, SignalMessage, control::desk::asks_to_end, error::system,
};
use crate::sys::mount::{abort_fuse_connection, mount_table_of};
use crate::sys::own_mount::connection_of;
use crate::sys::process::{ProcessStat, is_ignored, watch_first_thread};

/// How long the sealed process may take to end after the second signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signals that ask to end and come within this time of the same one are the same request: timeout(1) sends each to its
/// child and then to the group, and schedulers to every process of a job.
const ECHO: Duration = Duration::from_secs(1);
/// `siginfo_t.si_code` of signals the kernel sends: those of the terminal (`asm-generic/siginfo.h`).
const SI_KERNEL: i32 = 0x80;

/// How often the supervisor looks whether the sealed process has died and not ended where the kernel does not tell (before
/// Linux 6.9): seldom, since many idle runs must cost nothing.
const LOOK: Duration = Duration::from_secs(5);
/// How long it may take to end then. One of its threads may wait for the kernel to hear from its own mount, and keeps the
/// connection alive meanwhile.
const LINGER: Duration = Duration::from_secs(1);

/// Signals that are passed on.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// Signals of the terminal that must not stop or end the sealed process; the supervisor keeps their usual meaning.
const OF_THE_TERMINAL: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// The signals of this process, read from a descriptor.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks the signals that are read here; children inherit that. Signals the user had ignored stay ignored.
    pub fn take() -> Result<Self, FamilyError> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        FORWARDED.into_iter().filter(|&signal| !is_ignored(signal)).for_each(|signal| set.add(signal));
        set.thread_block().map_err(system("blocking signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).map_err(system("signalfd"))?;
        Ok(Self { fd })
    }

    /// Called in the sealed process: the terminal's stop signals are not for it.
    pub fn shield_from_terminal() -> Result<(), FamilyError> {
        OF_THE_TERMINAL.into_iter().collect::<SigSet>().thread_block().map_err(system("blocking signals"))
    }
}

/// What a supervisor needs before it forks: its signals, its end of the link, and the end of the sealed process.
pub fn connections() -> Result<(Signals, UnixStream, UnixStream), FamilyError> {
    let signals = Signals::take()?;
    let (link, sealed) = UnixStream::pair().map_err(system("socketpair"))?;
    link.set_nonblocking(true).map_err(system("socketpair"))?;
    Ok((signals, link, sealed))
}

/// The supervisor's view of the sealed process.
pub struct Supervisor {
    /// Process id of the sealed process.
    pub sealed: Pid,
    /// Signals to pass on.
    pub signals: Signals,
    /// Socket to the sealed process.
    pub link: UnixStream,
}

impl Supervisor {
    /// Waits until the sealed process has ended; what it tells goes into `report`, after `on_event` saw it. Returns
    /// its exit status, or [`FamilyError::Lost`] if it died.
    pub fn watch(mut self, report: &mut Report, mut on_event: impl FnMut(&Event)) -> Result<u8, FamilyError> {
        let mut inbox = Inbox::default();
        let mut echoes = Echoes::default();
        let mut end = Escalation::default();
        let first_thread = watch_first_thread(self.sealed).ok();
        let mut died = None;
        let mut take = |events: Vec<Event>, end: &mut Escalation, report: &mut Report| {
            for event in events {
                end.on_event(&event);
                on_event(&event);
                report.apply(event);
            }
        };
        let status = loop {
            if let Some(status) = self.sealed_status()? {
                break status;
            }
            // Once it has ended it stays readable.
            let alive = first_thread.as_ref().filter(|_| died.is_none());
            let look = if died.is_some() { LINGER } else { LOOK };
            self.wait(end.deadline, look, inbox.open, alive);
            if self.lingers(&mut died) {
                self.cut_off(report);
            }
            if end.overdue() {
                self.kill_sealed(&mut end);
            }
            while let Ok(Some(info)) = self.signals.fd.read_signal() {
                let (number, from_terminal) = (info.ssi_signo as i32, info.ssi_code == SI_KERNEL);
                if let Ok(signal) = Signal::try_from(number)
                    && (from_terminal || !echoes.repeats(signal, Instant::now()))
                {
                    self.pass_on(signal, from_terminal, &mut end);
                }
            }
            take(inbox.read(&mut self.link), &mut end, report);
        };
        // What it said last may still be in the socket.
        take(inbox.read(&mut self.link), &mut end, report);
        judge(status, end.killed_for, report)
    }

    fn sealed_status(&self) -> Result<Option<WaitStatus>, FamilyError> {
        match waitpid(self.sealed, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(None),
            Ok(status) => Ok(Some(status)),
            Err(errno) => Err(system("waiting for the sealed process")(errno)),
        }
    }

    /// Whether the sealed process has died and one of its threads has not followed for a while; `since` when it was seen.
    fn lingers(&self, since: &mut Option<Instant>) -> bool {
        let died = ProcessStat::of(self.sealed.as_raw() as u32).is_some_and(|stat| stat.state == 'Z');
        *since = if died { since.or_else(|| Some(Instant::now())) } else { None };
        since.is_some_and(|since| since.elapsed() >= LINGER)
    }

    /// Aborts the connection of the mount: whatever waits for it gets an error, threads of the sealed process too.
    fn cut_off(&self, report: &Report) {
        let Some(mountpoint) = report.mount.as_ref().and_then(|facts| facts["mountpoint"].as_str()) else { return };
        let table = mount_table_of(self.sealed.as_raw() as u32);
        let connection = table.ok().and_then(|table| connection_of(&table, mountpoint.as_ref()));
        if let Some(Err(error)) = connection.map(abort_fuse_connection) {
            tracing::warn!(%error, "the connection of the mount cannot be aborted");
        }
    }

    /// Until there is something to do, or time to look. SIGCHLD, too, arrives at the descriptor.
    fn wait(&self, deadline: Option<Instant>, look: Duration, link_open: bool, alive: Option<&OwnedFd>) {
        let until = deadline.map_or(look, |at| at.saturating_duration_since(Instant::now()).min(look));
        let timeout = PollTimeout::try_from(until.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN)];
        // A closed socket is always readable: then only the end of the process is left to wait for.
        if link_open {
            fds.push(PollFd::new(self.link.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(alive.map(|first_thread| PollFd::new(first_thread.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, timeout);
    }

    fn pass_on(&mut self, signal: Signal, from_terminal: bool, end: &mut Escalation) {
        if signal == Signal::SIGCHLD {
            return;
        }
        let delivered = SignalMessage { signal: signal as i32, from_terminal };
        if let Ok(mut line) = serde_json::to_vec(&delivered) {
            line.push(b'\n');
            let _ = self.link.write_all(&line);
        }
        if asks_to_end(signal) && !end.spares {
            end.count += 1;
            end.last = Some(signal);
            match end.count {
                1 => {}
                2 => end.deadline = Some(Instant::now() + PATIENCE),
                _ => self.kill_sealed(end),
            }
        }
    }

    fn kill_sealed(&self, end: &mut Escalation) {
        end.killed_for = end.last;
        // It is a child not yet waited for, so the number cannot mean another process.
        let _ = kill(self.sealed, Signal::SIGKILL);
    }
}

/// Lines of JSON, as they come in.
struct Inbox {
    bytes: Vec<u8>,
    open: bool,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: Vec::new(), open: true }
    }
}

impl Inbox {
    fn read(&mut self, link: &mut UnixStream) -> Vec<Event> {
        let mut chunk = [0; 16 << 10];
        loop {
            match link.read(&mut chunk) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let whole = self.bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.bytes.drain(..whole).collect();
        lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

/// The sealed process ended in good order only if it said so. `killed_for` is the signal of the user for which the
/// supervisor itself killed it.
fn judge(status: WaitStatus, killed_for: Option<Signal>, report: &mut Report) -> Result<u8, FamilyError> {
    if report.outcome.is_some()
        && let WaitStatus::Exited(_, code) = status
    {
        return Ok(code as u8);
    }
    if let Some(signal) = killed_for {
        let error = FamilyError::Interrupted { signal, doing: "the sealed process did not answer" };
        report.apply(Event::Done { outcome: Outcome::Interrupted, error: Some(error.to_string()) });
        return Err(error);
    }
    let how = match status {
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        WaitStatus::Exited(_, code) => format!("exit status {code}"),
        other => format!("{other:?}"),
    };
    let text = format!("the sealed process died ({how}) {}", loss(report));
    report.outcome = Some(Outcome::Lost);
    report.error = Some(text.clone());
    Err(FamilyError::Lost(text))
}

/// What died with it, for people.
fn loss(report: &Report) -> &'static str {
    if report.kind == Kind::Mount {
        return "and with it its key: everything in the scratch is lost; its mount stays, dead, so that no program goes on \
                below it in the clear, until `runseal end`, umount(8) or the next `runseal mount` there";
    }
    match report.phase() {
        _ if report.published.is_some() => "after the results were published; nothing is lost",
        None | Some(Phase::Preflight | Phase::Seal | Phase::Fetch) => "before the command started; nothing is lost",
        Some(Phase::Publish) => {
            "while it published: every process of the run was killed; what is in the output without a manifest is \
             incomplete, and all else in the scratch is lost"
        }
        _ => "and with it its key: every process of the run was killed, and all it had written to the scratch is lost",
    }
}

/// Tells a signal that asks to end from its echo.
#[derive(Default)]
struct Echoes {
    last: Vec<(Signal, Instant)>,
}

impl Echoes {
    fn repeats(&mut self, signal: Signal, now: Instant) -> bool {
        if !asks_to_end(signal) {
            return false;
        }
        self.last.retain(|(_, at)| now.saturating_duration_since(*at) < ECHO);
        let repeats = self.last.iter().any(|(last, _)| *last == signal);
        if !repeats {
            self.last.push((signal, now));
        }
        repeats
    }
}

/// Counts signals that ask to end within one phase; the sealed process ends at the second, or is made to. While there
/// are results and nowhere else to find them, no number of signals is reason to kill what has them.
#[derive(Default)]
struct Escalation {
    spares: bool,
    count: u32,
    last: Option<Signal>,
    deadline: Option<Instant>,
    killed_for: Option<Signal>,
}

impl Escalation {
    /// A new phase has a new count; the last one does not, for it may be what hangs.
    fn on_event(&mut self, event: &Event) {
        if let Event::Phase { phase } = event {
            match phase {
                Phase::End => self.spares = false,
                phase => *self = Self { spares: matches!(phase, Phase::Publish | Phase::Held), ..Self::default() },
            }
        }
    }

    fn overdue(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: Kind, phases: &[Phase]) -> Report {
        let mut report = Report::new("r".parse().expect("valid id"), kind);
        phases.iter().for_each(|&phase| report.apply(Event::Phase { phase }));
        report
    }

    #[test]
    fn events_arrive_whole_however_the_bytes_come() {
        let (mut near, mut far) = UnixStream::pair().expect("socketpair");
        near.set_nonblocking(true).expect("nonblocking");
        let mut inbox = Inbox::default();
        let line = b"{\"event\":\"phase\",\"phase\":\"held\"}\nnonsense\n{\"event\":\"command-ended\",\"status\":4}\n";
        far.write_all(&line[..20]).expect("written");
        assert!(inbox.read(&mut near).is_empty(), "half a line is no event");
        far.write_all(&line[20..]).expect("written");
        let events = inbox.read(&mut near);
        assert!(
            matches!(events[..], [Event::Phase { phase: Phase::Held }, Event::CommandEnded { status: 4 }]),
            "{events:?}"
        );
        assert!(inbox.open);
        drop(far);
        assert!(inbox.read(&mut near).is_empty() && !inbox.open);
    }

    #[test]
    fn only_a_sealed_process_that_said_so_ended_in_good_order() {
        let pid = Pid::from_raw(1);
        let mut good = report(Kind::Run, &[Phase::Command]);
        good.apply(Event::Done { outcome: Outcome::CommandFailed, error: None });
        assert!(matches!(judge(WaitStatus::Exited(pid, 7), None, &mut good), Ok(7)));
        let mut bad = report(Kind::Run, &[Phase::Command]);
        assert!(matches!(judge(WaitStatus::Exited(pid, 0), None, &mut bad), Err(FamilyError::Lost(_))));
        assert_eq!(bad.outcome, Some(Outcome::Lost));
    }

    #[test]
    fn what_is_lost_depends_on_when() {
        for (phases, word) in [
            (&[Phase::Fetch][..], "before the command started"),
            (&[Phase::Fetch, Phase::Command], "is lost"),
            (&[Phase::Command, Phase::Publish], "incomplete"),
            (&[Phase::Publish, Phase::Held], "is lost"),
        ] {
            assert!(loss(&report(Kind::Run, phases)).contains(word), "{phases:?}");
        }
        let mut published = report(Kind::Run, &[Phase::Publish, Phase::End]);
        published.apply(Event::Published { totals: serde_json::Value::Null });
        assert!(loss(&published).contains("nothing is lost"));
        assert!(loss(&report(Kind::Mount, &[Phase::Serving])).contains("stays, dead"));
    }

    #[test]
    fn a_new_phase_forgets_signals_but_the_last_one_does_not() {
        let mut end = Escalation { count: 2, deadline: Some(Instant::now()), ..Escalation::default() };
        end.on_event(&Event::Phase { phase: Phase::End });
        assert!(end.overdue());
        end.on_event(&Event::Phase { phase: Phase::Held });
        assert!(!end.overdue() && end.count == 0);
        assert!(end.spares, "what holds results is not killed");
        end.on_event(&Event::Phase { phase: Phase::End });
        assert!(!end.spares);
    }

    #[test]
    fn a_signal_that_comes_twice_at_once_is_one() {
        let (mut echoes, start) = (Echoes::default(), Instant::now());
        let mut repeats = |signal, millis| echoes.repeats(signal, start + Duration::from_millis(millis));
        assert!(!repeats(Signal::SIGTERM, 0));
        assert!(repeats(Signal::SIGTERM, 10) && repeats(Signal::SIGTERM, 900));
        assert!(!repeats(Signal::SIGINT, 900), "another signal is another request");
        assert!(!repeats(Signal::SIGTERM, 1001), "the echo of an echo does not prolong it");
        assert!(!repeats(Signal::SIGUSR1, 1002) && !repeats(Signal::SIGUSR1, 1003), "nothing ends by it");
    }
}
