//! How long a run in trouble waits for somebody, and when it says so again.

use std::io::IsTerminal;
use std::time::Duration;

use tokio::time::Instant;

use crate::spec::OnHold;

/// How long a run waits where nobody sits at a terminal, unless `--on-hold` says otherwise.
const UNATTENDED: Duration = Duration::from_secs(3600);
/// Before the first reminder; each further one takes twice as long, up to [`RARELY`].
const SOON: Duration = Duration::from_secs(60);
/// Between reminders at most.
const RARELY: Duration = Duration::from_secs(3600);

/// The wait of one hold.
pub struct Patience {
    began: Instant,
    asked: Option<OnHold>,
    /// Whether somebody sits at a terminal.
    attended: bool,
    reminded: u32,
}

/// What a wait has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// It is time to say again that the run waits: since when, and for how long still.
    Remind(Duration, Option<Duration>),
    /// Nobody came in this time.
    Over(Duration),
}

impl Patience {
    /// Begins now, as `--on-hold` asks.
    pub fn new(asked: Option<OnHold>) -> Self {
        Self { began: Instant::now(), asked, attended: std::io::stderr().is_terminal(), reminded: 0 }
    }

    /// Looks again whether anybody sits at a terminal: it may have closed. Then the wait begins anew.
    pub fn look(&mut self) {
        if self.attended && !std::io::stderr().is_terminal() {
            *self = Self { began: Instant::now(), asked: self.asked, attended: false, reminded: 0 };
        }
    }

    /// The longest this may last.
    pub fn limit(&self) -> Option<Duration> {
        match self.asked {
            Some(asked) => asked.limit(),
            None if self.attended => None,
            None => Some(UNATTENDED),
        }
    }

    /// Waits for the next tick.
    pub async fn tick(&mut self) -> Tick {
        let reminder = self.reminder();
        let due = self.limit().map_or(reminder, |limit| reminder.min(limit));
        tokio::time::sleep_until(self.began + due).await;
        self.look();
        let waited = self.began.elapsed();
        match self.limit() {
            Some(limit) if waited >= limit => Tick::Over(limit),
            limit => {
                self.reminded += 1;
                Tick::Remind(waited, limit.map(|limit| limit - waited))
            }
        }
    }

    /// After how long the next reminder is due.
    fn reminder(&self) -> Duration {
        let first = self.limit().map_or(SOON, |limit| SOON.min(limit / 4));
        (0..self.reminded)
            .fold((first, first), |(due, pause), _| {
                let pause = (pause * 2).min(RARELY);
                (due + pause, pause)
            })
            .0
    }
}

/// A time for people, in whole seconds.
pub fn shown(time: Duration) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_secs(time.as_secs_f64().round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(asked: Option<OnHold>, attended: bool) -> Patience {
        Patience { began: Instant::now(), asked, attended, reminded: 0 }
    }

    #[test]
    fn nobody_at_a_terminal_means_a_bound() {
        assert_eq!(patience(None, true).limit(), None);
        assert_eq!(patience(None, false).limit(), Some(UNATTENDED));
        assert_eq!(patience(Some(OnHold::Wait), false).limit(), None);
        assert_eq!(patience(Some(OnHold::Fail), true).limit(), Some(Duration::ZERO));
    }

    #[test]
    fn reminders_become_rare_and_never_end() {
        let mut waiting = patience(Some(OnHold::Wait), false);
        let due: Vec<_> = (0..10)
            .map(|n| {
                waiting.reminded = n;
                waiting.reminder().as_secs() / 60
            })
            .collect();
        assert_eq!(due, [1, 3, 7, 15, 31, 63, 123, 183, 243, 303]);
    }

    #[test]
    fn a_wait_reminds_and_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let limit = Duration::from_millis(80);
            let mut waiting = patience(Some(OnHold::For(limit)), false);
            assert!(matches!(waiting.tick().await, Tick::Remind(_, Some(left)) if left < limit));
            let last = loop {
                if let Tick::Over(after) = waiting.tick().await {
                    break after;
                }
            };
            assert_eq!(last, limit);
        });
    }
}
