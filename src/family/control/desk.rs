//! Where the orders of a sealed process come in, and its events go out.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use crate::family::control::wire::{Delivered, Event, Reply, Request};
use crate::family::error::FamilyError;
use crate::family::message::{self, Voice};
use crate::family::state::facts::Phase;
use crate::family::state::journal::Journal;
use crate::sys::process::Inherited;

/// Something the sealed process is told to do.
pub enum Order {
    /// A signal came to the supervisor.
    Signal {
        /// Which.
        signal: Signal,
        /// Whether the terminal sent it, to the command as well.
        from_terminal: bool,
    },
    /// A client of the control socket asks for something; it waits for the reply.
    Request(Request, oneshot::Sender<Reply>),
    /// The session of the mount is over.
    MountEnded,
    /// The supervisor is gone.
    Orphaned,
}

/// Where orders come in and events go out.
pub struct Desk {
    /// Orders, in the order they came.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Where more orders may come from.
    pub sender: mpsc::UnboundedSender<Order>,
    /// Takes events.
    pub journal: Arc<Journal>,
    /// What the user started runseal with.
    pub inherited: Inherited,
    /// How much to say.
    pub voice: Voice,
    /// Who has ended the run, and wants to hear when it is done.
    pub farewell: Farewell,
}

/// The end of a run as somebody has ordered it.
#[derive(Default)]
pub struct Farewell {
    /// Whether results that are in the output already are to be removed.
    pub remove_published: bool,
    waiting: Option<oneshot::Sender<Reply>>,
}

impl Farewell {
    /// Takes the order; it is answered later.
    pub fn order(&mut self, remove_published: bool, client: oneshot::Sender<Reply>) {
        *self = Self { remove_published, waiting: Some(client) };
    }

    /// Answers, if somebody waits and has not been answered.
    pub fn answer(&mut self, text: impl Into<String>) {
        if let Some(client) = self.waiting.take() {
            let _ = client.send(Reply::done(text));
        }
    }
}

impl Desk {
    /// A new phase begins.
    pub fn phase(&self, phase: Phase) {
        self.journal.record(Event::Phase { phase });
    }

    /// The next order.
    pub async fn next(&mut self) -> Order {
        self.orders.recv().await.unwrap_or(Order::Orphaned)
    }

    /// Does `work`, unless signals or an order end it first: any signal that asks to, or, with results `at_stake`, only
    /// somebody who insists.
    pub async fn guard<T>(
        &mut self,
        doing: &'static str,
        at_stake: Stake,
        work: impl Future<Output = T>,
    ) -> Result<T, FamilyError> {
        let mut work = std::pin::pin!(work);
        let mut insistence = Insistence::default();
        loop {
            let order = tokio::select! {
                done = &mut work => return Ok(done),
                order = self.next() => order,
            };
            match order {
                // The terminal may close: that ends what can be begun again, but loses no results.
                Order::Signal { signal, from_terminal } => match at_stake {
                    Stake::Nothing if asks_to_end(signal) || signal == Signal::SIGHUP => {
                        return Err(FamilyError::Interrupted { signal, doing });
                    }
                    Stake::Results if insistence.hear(signal, from_terminal, Instant::now(), doing) => {
                        return Err(FamilyError::Interrupted { signal, doing });
                    }
                    _ => {}
                },
                Order::Request(Request::End { discard: true, remove_published }, reply) => {
                    self.farewell.order(remove_published, reply);
                    return Err(FamilyError::Ended { doing });
                }
                order => self.decline(order, doing)?,
            }
        }
    }

    /// What every part of a run answers in the same way.
    pub fn decline(&self, order: Order, doing: &'static str) -> Result<(), FamilyError> {
        match order {
            Order::Request(Request::Resume(_), reply) => {
                let _ = reply.send(Reply::refused(format!("nothing is held: {doing}")));
            }
            Order::Request(Request::Exec(_) | Request::Copy(_), reply) => {
                let _ = reply.send(Reply::refused(format!(
                    "not now, {doing}; it can be done while the command runs, or when the run is held"
                )));
            }
            Order::Request(_, reply) => {
                let _ = reply
                    .send(Reply::refused(format!("{doing}; `runseal end --discard` ends the run without results")));
            }
            Order::MountEnded => return Err(FamilyError::MountLost { doing }),
            Order::Orphaned => return Err(FamilyError::Interrupted { signal: Signal::SIGKILL, doing }),
            Order::Signal { .. } => {}
        }
        Ok(())
    }
}

/// What a signal that ends some work would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stake {
    /// Nothing that cannot be had again.
    Nothing,
    /// Results that are nowhere else.
    Results,
}

/// Signals while results are at stake. Programs send them, twice or for all processes of a job; only a person at the
/// terminal who has read what is at stake, and types SIGINT again, gives results up.
#[derive(Default)]
pub struct Insistence {
    first: Option<Instant>,
}

impl Insistence {
    /// Between the two: a key that is held down or hit twice is no decision.
    const THOUGHT: Duration = Duration::from_secs(2);
    /// After this the first is forgotten.
    const MEMORY: Duration = Duration::from_secs(60);

    /// Takes a signal; `true` if the results are given up. Answers people otherwise, saying what is being done.
    pub fn hear(&mut self, signal: Signal, from_terminal: bool, now: Instant, doing: &str) -> bool {
        if !asks_to_end(signal) {
            return false;
        }
        if signal != Signal::SIGINT || !from_terminal {
            message::warn(format_args!("{doing}: {signal} does not end that; `runseal end --discard` does"));
            return false;
        }
        let age = self.first.map(|first| now.saturating_duration_since(first));
        match age.filter(|age| *age < Self::MEMORY) {
            Some(age) if age >= Self::THOUGHT => return true,
            Some(_) => message::warn("so soon is no decision; the same again, a moment later, discards the results"),
            None => {
                self.first = Some(now);
                message::warn(format_args!("{doing}: the same again, a moment later, discards the results"));
            }
        }
        false
    }
}

/// Whether people mean the end by it.
pub fn asks_to_end(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM)
}

/// A thread that turns what the supervisor sends into orders, and its silence into the last one.
pub fn read_link(link: UnixStream, orders: mpsc::UnboundedSender<Order>) {
    std::thread::spawn(move || {
        for line in BufReader::new(link).lines().map_while(Result::ok) {
            if let Ok(Delivered { signal, from_terminal }) = serde_json::from_str(&line)
                && let Ok(signal) = Signal::try_from(signal)
            {
                let _ = orders.send(Order::Signal { signal, from_terminal });
            }
        }
        let _ = orders.send(Order::Orphaned);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_person_who_insists_gives_results_up() {
        let start = Instant::now();
        let mut insistence = Insistence::default();
        let mut hear = |signal, typed, seconds| {
            insistence.hear(signal, typed, start + Duration::from_secs(seconds), "publishing the results")
        };
        for seconds in 0..5 {
            assert!(!hear(Signal::SIGTERM, false, seconds) && !hear(Signal::SIGINT, false, seconds));
            assert!(!hear(Signal::SIGQUIT, true, seconds) && !hear(Signal::SIGHUP, false, seconds));
        }
        assert!(!hear(Signal::SIGINT, true, 10));
        assert!(!hear(Signal::SIGINT, true, 11), "too soon");
        assert!(!hear(Signal::SIGINT, true, 71), "the first is forgotten");
        assert!(hear(Signal::SIGINT, true, 74));
    }
}
