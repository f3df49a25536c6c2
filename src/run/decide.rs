//! What a run does with an order, by what it is doing: one table, without processes, clocks or channels.
//!
//! `hear.rs` asks it for every order and applies the answer. A new order is a variant of [`Ask`] and a line for each
//! [`Doing`]; the compiler asks for them.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::family::control::desk::asks_to_end;

/// Between two signals that give results up: a key that is held down or hit twice is no decision.
const THOUGHT: Duration = Duration::from_secs(2);
/// After this the first of them is forgotten.
const MEMORY: Duration = Duration::from_secs(60);

/// What a run is doing when an order comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Some work that ends by itself.
    Work(Stake),
    Command(Insistence),
    Serving(Results),
    /// Results, or what a failed command left, are held.
    Held(Cause),
}

/// What a signal that ends some work would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stake {
    /// Nothing that cannot be had again.
    Nothing,
    /// Results that are nowhere else.
    Results,
}

/// Whether somebody has asked the command to end before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insistence {
    First,
    Again,
}

/// Results of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Results {
    /// It has no data: there is nothing to publish, ever.
    Never,
    /// They are not published yet.
    Pending,
    /// There are none, or they are out.
    Settled,
}

/// Why a run is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its results could not be published.
    Unpublished,
    /// The same, and programs of `runseal exec` still run in it.
    Visited,
    /// Its command ended with a failure.
    Failed,
}

/// An order, without whoever waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Signal {
        signal: Signal,
        sender: Sender,
        /// How long ago the terminal asked to end what is done now, if it did.
        asked: Option<Duration>,
    },
    Resume,
    /// `runseal exec` and `runseal cp`.
    Visit,
    /// `runseal end`, of results that may still be wanted.
    End,
    Discard,
    /// A question that is answered before it gets here.
    Status,
    Unmounted,
    CutOff,
    Orphaned,
}

/// Where a signal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A key was hit: every process in the foreground of the terminal has the signal.
    Terminal,
    /// Some program.
    Program,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Ignore,
    /// Tell whoever asked why not.
    Refuse(Refusal),
    /// Tell people what does not end this, or what would.
    Warn(Warning),
    /// Pass the signal on to the command; with this, another one ends the run.
    PassOn(Insistence),
    /// Ask the command to end, and see that it does.
    Terminate,
    /// Let the visitor in.
    Admit,
    /// Try to publish, and answer then.
    Publish,
    /// Go on to the end.
    Leave,
    /// Break off.
    Break(Break),
}

/// Why an order is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotHeld,
    NoVisit,
    Open,
    NotDiscarded,
    NoResults,
    Settled,
    Pending,
    Held,
    Failed,
    Visited,
}

/// What people are told of a signal that does not end what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    NotThus,
    OnceMore,
    TooSoon,
}

/// How a run is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    Interrupted(Signal),
    Ended,
    MountLost,
    CutOff,
}

/// What to do about `ask` while `doing`.
pub fn decide(doing: Doing, ask: Ask) -> Decision {
    match doing {
        Doing::Work(stake) => in_work(stake, ask),
        Doing::Command(insistence) => in_command(insistence, ask),
        Doing::Serving(results) => in_service(results, ask),
        Doing::Held(cause) => in_hold(cause, ask),
    }
}

fn in_work(stake: Stake, ask: Ask) -> Decision {
    match ask {
        Ask::Signal { signal, sender, asked } => match stake {
            // The terminal may close: that ends what can be begun again, but loses no results.
            Stake::Nothing if ends_a_service(signal) => Decision::Break(Break::Interrupted(signal)),
            Stake::Nothing => Decision::Ignore,
            Stake::Results => giving_up(signal, sender, asked, Decision::Break(Break::Interrupted(signal))),
        },
        Ask::Resume => Decision::Refuse(Refusal::NotHeld),
        Ask::Visit => Decision::Refuse(Refusal::NoVisit),
        Ask::Discard => Decision::Break(Break::Ended),
        Ask::End | Ask::Status => Decision::Refuse(Refusal::NotDiscarded),
        Ask::Unmounted | Ask::CutOff => Decision::Break(Break::MountLost),
        Ask::Orphaned => Decision::Break(Break::Interrupted(Signal::SIGKILL)),
    }
}

fn in_command(insistence: Insistence, ask: Ask) -> Decision {
    match ask {
        Ask::Signal { signal, .. } => match (asks_to_end(signal), insistence) {
            (true, Insistence::Again) => Decision::Break(Break::Interrupted(signal)),
            (true, Insistence::First) => Decision::PassOn(Insistence::Again),
            (false, insistence) => Decision::PassOn(insistence),
        },
        Ask::Visit => Decision::Admit,
        Ask::Discard => Decision::Terminate,
        Ask::Resume | Ask::End | Ask::Status | Ask::Unmounted | Ask::CutOff | Ask::Orphaned => {
            in_work(Stake::Nothing, ask)
        }
    }
}

fn in_service(results: Results, ask: Ask) -> Decision {
    match (ask, results) {
        (Ask::Signal { signal, .. }, _) if ends_a_service(signal) => Decision::Leave,
        (Ask::Signal { .. }, _) => Decision::Ignore,
        (Ask::Resume, Results::Pending) => Decision::Publish,
        (Ask::Resume | Ask::Status, Results::Never) => Decision::Refuse(Refusal::NoResults),
        (Ask::Resume | Ask::Status, _) => Decision::Refuse(Refusal::Settled),
        (Ask::Visit, _) => Decision::Refuse(Refusal::Open),
        (Ask::End, Results::Pending) => Decision::Refuse(Refusal::Pending),
        (Ask::End | Ask::Discard | Ask::Unmounted, _) => Decision::Leave,
        (Ask::CutOff | Ask::Orphaned, _) => Decision::Break(Break::CutOff),
    }
}

fn in_hold(cause: Cause, ask: Ask) -> Decision {
    match (ask, cause) {
        (Ask::Signal { signal, sender, asked }, _) => giving_up(signal, sender, asked, Decision::Leave),
        (Ask::Resume, Cause::Unpublished) => Decision::Publish,
        (Ask::Resume, Cause::Visited) => Decision::Refuse(Refusal::Visited),
        (Ask::Resume, Cause::Failed) => Decision::Refuse(Refusal::Failed),
        (Ask::Visit, _) => Decision::Admit,
        (Ask::End | Ask::Status, _) => Decision::Refuse(Refusal::Held),
        // Results are read from the scratch itself: publishing does not need the mount.
        (Ask::Unmounted | Ask::CutOff, _) => Decision::Ignore,
        (Ask::Discard | Ask::Orphaned, _) => Decision::Leave,
    }
}

/// Signals while results are at stake. Programs send them, twice or for all processes of a job; only a person at the
/// terminal who has read what is at stake, and types SIGINT again, gives results up: then `end` is the decision.
fn giving_up(signal: Signal, sender: Sender, asked: Option<Duration>, end: Decision) -> Decision {
    match asked.filter(|age| *age < MEMORY) {
        _ if !asks_to_end(signal) => Decision::Ignore,
        _ if signal != Signal::SIGINT || sender == Sender::Program => Decision::Warn(Warning::NotThus),
        None => Decision::Warn(Warning::OnceMore),
        Some(age) if age < THOUGHT => Decision::Warn(Warning::TooSoon),
        Some(_) => end,
    }
}

/// Whether a signal ends what loses nothing: the terminal may close, too.
fn ends_a_service(signal: Signal) -> bool {
    asks_to_end(signal) || signal == Signal::SIGHUP
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Doing; 10] = [
        Doing::Work(Stake::Nothing),
        Doing::Work(Stake::Results),
        Doing::Command(Insistence::First),
        Doing::Command(Insistence::Again),
        Doing::Serving(Results::Never),
        Doing::Serving(Results::Pending),
        Doing::Serving(Results::Settled),
        Doing::Held(Cause::Unpublished),
        Doing::Held(Cause::Visited),
        Doing::Held(Cause::Failed),
    ];

    fn signal(signal: Signal, sender: Sender, asked: Option<u64>) -> Ask {
        Ask::Signal { signal, sender, asked: asked.map(Duration::from_secs) }
    }

    /// One row for each order, one column for each of [`ALL`].
    #[test]
    fn every_order_has_an_answer_whatever_the_run_does() {
        use Decision::{Admit, Ignore, Leave, Publish, Terminate};
        let no = Decision::Refuse;
        let stop = Decision::Break;
        let (lost, cut) = (stop(Break::MountLost), stop(Break::CutOff));
        let dead = stop(Break::Interrupted(Signal::SIGKILL));
        let (nothing_held, busy, end) = (no(Refusal::NotHeld), no(Refusal::NoVisit), no(Refusal::NotDiscarded));
        let (never, settled, held, open) =
            (no(Refusal::NoResults), no(Refusal::Settled), no(Refusal::Held), no(Refusal::Open));
        let ended = stop(Break::Ended);
        let rows: [(Ask, [Decision; 10]); 8] = [
            (
                Ask::Resume,
                [
                    nothing_held,
                    nothing_held,
                    nothing_held,
                    nothing_held,
                    never,
                    Publish,
                    settled,
                    Publish,
                    no(Refusal::Visited),
                    no(Refusal::Failed),
                ],
            ),
            (Ask::Visit, [busy, busy, Admit, Admit, open, open, open, Admit, Admit, Admit]),
            (Ask::End, [end, end, end, end, Leave, no(Refusal::Pending), Leave, held, held, held]),
            (Ask::Discard, [ended, ended, Terminate, Terminate, Leave, Leave, Leave, Leave, Leave, Leave]),
            (Ask::Status, [end, end, end, end, never, settled, settled, held, held, held]),
            (Ask::Unmounted, [lost, lost, lost, lost, Leave, Leave, Leave, Ignore, Ignore, Ignore]),
            (Ask::CutOff, [lost, lost, lost, lost, cut, cut, cut, Ignore, Ignore, Ignore]),
            (Ask::Orphaned, [dead, dead, dead, dead, cut, cut, cut, Leave, Leave, Leave]),
        ];
        for (ask, decisions) in rows {
            for (doing, expected) in ALL.into_iter().zip(decisions) {
                assert_eq!(decide(doing, ask), expected, "{ask:?} while {doing:?}");
            }
        }
    }

    #[test]
    fn every_signal_has_an_answer_whatever_the_run_does() {
        use Decision::{Ignore, Leave, PassOn};
        use Insistence::{Again, First};
        let stop = |signal| Decision::Break(Break::Interrupted(signal));
        let warned = Decision::Warn(Warning::NotThus);
        for (number, columns) in [
            (
                Signal::SIGTERM,
                [
                    stop(Signal::SIGTERM),
                    warned,
                    PassOn(Again),
                    stop(Signal::SIGTERM),
                    Leave,
                    Leave,
                    Leave,
                    warned,
                    warned,
                    warned,
                ],
            ),
            (
                Signal::SIGINT,
                [
                    stop(Signal::SIGINT),
                    warned,
                    PassOn(Again),
                    stop(Signal::SIGINT),
                    Leave,
                    Leave,
                    Leave,
                    warned,
                    warned,
                    warned,
                ],
            ),
            (
                Signal::SIGHUP,
                [
                    stop(Signal::SIGHUP),
                    Ignore,
                    PassOn(First),
                    PassOn(Again),
                    Leave,
                    Leave,
                    Leave,
                    Ignore,
                    Ignore,
                    Ignore,
                ],
            ),
            (
                Signal::SIGUSR1,
                [Ignore, Ignore, PassOn(First), PassOn(Again), Ignore, Ignore, Ignore, Ignore, Ignore, Ignore],
            ),
        ] {
            for (doing, expected) in ALL.into_iter().zip(columns) {
                assert_eq!(
                    decide(doing, signal(number, Sender::Program, Some(5))),
                    expected,
                    "{number} while {doing:?}"
                );
            }
        }
    }

    #[test]
    fn only_a_person_who_insists_gives_results_up() {
        let held = Doing::Held(Cause::Unpublished);
        for (number, sender, asked, expected) in [
            (Signal::SIGTERM, Sender::Terminal, Some(5), Decision::Warn(Warning::NotThus)),
            (Signal::SIGQUIT, Sender::Terminal, Some(5), Decision::Ignore),
            (Signal::SIGINT, Sender::Program, Some(5), Decision::Warn(Warning::NotThus)),
            (Signal::SIGINT, Sender::Terminal, None, Decision::Warn(Warning::OnceMore)),
            (Signal::SIGINT, Sender::Terminal, Some(1), Decision::Warn(Warning::TooSoon)),
            (Signal::SIGINT, Sender::Terminal, Some(61), Decision::Warn(Warning::OnceMore)),
            (Signal::SIGINT, Sender::Terminal, Some(3), Decision::Leave),
        ] {
            assert_eq!(decide(held, signal(number, sender, asked)), expected, "{number} {sender:?} {asked:?}");
            let work = decide(Doing::Work(Stake::Results), signal(number, sender, asked));
            let ends = expected == Decision::Leave;
            assert_eq!(work == Decision::Break(Break::Interrupted(number)), ends, "{number} {sender:?} {asked:?}");
            assert!(ends || work == expected);
        }
    }
}
