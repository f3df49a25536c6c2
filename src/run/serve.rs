//! A run for a mount that others see: it serves until it is told to end, and publishes when it is asked.

use std::convert::Infallible;
use std::future::pending;

use super::decide::Results;
use super::error::RunError;
use super::hear::{Memory, Scene, Turn};
use super::life::{Inside, Run};
use super::publish::Attempt;
use crate::family::{Outcome, Phase, Reply};

impl Run {
    /// Serves, and leaves the output in order whatever ends it.
    pub(super) async fn serve(&mut self, inside: &Inside<'_>) -> Result<(Outcome, u8), RunError> {
        let result = self.attend(inside).await;
        self.leave(&inside.stager).await;
        result
    }

    async fn attend(&mut self, inside: &Inside<'_>) -> Result<(Outcome, u8), RunError> {
        let mut results = match &self.spec.data {
            data if data.output.is_some() => Results::Pending,
            data if data.is_nothing() => Results::Never,
            _ => Results::Settled,
        };
        self.desk.phase(Phase::Serving);
        loop {
            let scene = Scene::Serving { results, seal: inside.seal };
            match self.hear(&scene, &mut Memory::default(), pending::<Infallible>()).await? {
                Turn::Resumed(order, client) => {
                    let answer = match self.publish_again(inside, *order).await? {
                        Attempt::Published(published) => {
                            results = Results::Settled;
                            self.desk.phase(Phase::Serving);
                            published.reply()
                        }
                        Attempt::Held(error) => {
                            self.hold(&error, &inside.stager);
                            Reply::refused(format!("held: {error}"))
                        }
                    };
                    // Whoever asked may have left.
                    let _ = client.send(answer);
                }
                Turn::Left => break,
                Turn::More => {}
                Turn::Done(never) => match never {},
            }
        }
        Ok((if results == Results::Pending { Outcome::Discarded } else { Outcome::Succeeded }, 0))
    }
}
