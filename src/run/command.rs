//! A run for a command: it starts, and what it leaves is published or told.

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::decide::Stake;
use super::error::{RunError, system};
use super::hear::{COMMAND, Memory, Scene, Turn};
use super::life::{Inside, Run};
use super::publish::Completeness;
use super::seal::Seal;
use super::{cloud, flush};
use crate::family::{
    Event, FamilyError, Outcome, Phase,
    command::{self, Surroundings},
    message,
    process::sealed::beside,
};
use crate::fs::ROOT;
use crate::spec::{CommandSpec, OnFailure, SAVED, TmpPolicy};
use crate::stage::Stager;

impl Run {
    /// Runs the command, and publishes what it leaves if it succeeds.
    pub(super) async fn command(
        &mut self,
        command: &CommandSpec,
        inside: &Inside<'_>,
    ) -> Result<(Outcome, u8), RunError> {
        let seal = inside.seal;
        let status = self.wait_for_command(command, seal).await?;
        self.clear();
        self.take_over(inside.output, seal);
        if status != 0 {
            self.command_failed(command, status, inside).await?;
            return Ok((Outcome::CommandFailed, status));
        }
        if self.spec.data.output.is_none() && inside.stager.results(inside.output).is_empty() {
            return Ok((Outcome::Succeeded, 0));
        }
        match self.publish_or_hold(inside).await {
            Ok(Completeness::Whole) => Ok((Outcome::Published, 0)),
            Ok(Completeness::Lacks(missing)) => Err(RunError::Incomplete(missing)),
            Err(error) => {
                self.leave(&inside.stager).await;
                Err(error)
            }
        }
    }

    /// Starts the command and waits for it; orders reach it as signals.
    async fn wait_for_command(&mut self, command: &CommandSpec, seal: &Seal) -> Result<u8, RunError> {
        let mut children = signal(SignalKind::child()).map_err(system("watching children"))?;
        self.desk.phase(Phase::Command);
        let pid = command::start(&command.argv, self.surroundings())?;
        let scene = Scene::Command { command: pid, apart: self.user_of_command().is_some(), seal };
        let guests = self.guests.clone();
        let end = async {
            loop {
                children.recv().await;
                let mut status = None;
                command::reap(
                    |child, ended| if child == pid { status = Some(ended) } else { guests.ended(child, ended) },
                );
                if let Some(status) = status {
                    return status;
                }
            }
        };
        match self.hear(&scene, &mut Memory::default(), end).await? {
            Turn::Done(status) => {
                self.desk.journal.record(Event::CommandEnded { status });
                Ok(status)
            }
            Turn::More | Turn::Resumed(..) | Turn::Left => Err(FamilyError::Ended { doing: COMMAND }.into()),
        }
    }

    /// Where and as what programs of this run start.
    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        let withheld = self.spec.data.uses_aws() && !self.spec.data.aws.keep_credentials;
        Surroundings {
            scratch: &self.mountpoint,
            run_id: self.spec.id.as_str(),
            tmp: self.spec.command().map_or(TmpPolicy::Host, |command| command.tmp),
            withheld: if withheld { cloud::leads_to_credentials } else { |_| false },
            inherited: self.desk.inherited,
            standing: self.standing,
        }
    }

    /// What a failed command left is told, and held if that was asked for.
    async fn command_failed(&mut self, command: &CommandSpec, status: u8, inside: &Inside<'_>) -> Result<(), RunError> {
        let (rescue, seal) = (&command.rescue, inside.seal);
        let lost = if self.spec.data.output.is_some() { "; nothing was published" } else { "" };
        message::warn(format_args!("the command ended with status {status}{lost}"));
        if !rescue.save.is_empty() {
            self.take_over(ROOT, seal);
            let saved = self.save(inside.stager.clone()).await;
            if self.user_of_command().is_some() {
                seal.hand_over(ROOT, None, 0o7777);
            }
            saved?;
        }
        if rescue.on_failure == OnFailure::Hold {
            self.hold_scratch(status, seal).await?;
        } else if !(inside.stager.results(inside.output).is_empty()
            && inside.stager.elsewhere(inside.output).is_empty())
        {
            let what = if rescue.save.is_empty() { "what" } else { "all else that" };
            message::warn(format_args!(
                "{what} it left in the scratch is gone; next time --save GLOB publishes files such as logs even \
                 then, and --on-failure=hold keeps the scratch for `runseal exec` and `runseal cp`"
            ));
        }
        Ok(())
    }

    /// Publishes what `--save` asks for. That this fails is no reason to hold anything.
    async fn save(&mut self, stager: Arc<Stager>) -> Result<(), RunError> {
        self.desk.phase(Phase::Publish);
        let time: String = self.desk.journal.snapshot().started.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let name = format!("{SAVED}{}.{time}", self.spec.id);
        let (scratch, hands_on_rights) = (self.mountpoint.clone(), self.hands_on_rights);
        let (cloud, rescue) = (self.cloud.clone(), self.rescue());
        let work = beside(move || {
            if let Err(error) = flush::flush_results(&scratch, Path::new(""), hands_on_rights) {
                message::warn(error);
            }
            stager.save(&rescue, &name, cloud.as_deref())
        });
        match self.guard("saving files of the failed command", Stake::Nothing, work).await? {
            Ok(Some((totals, place))) => {
                message::warn(format_args!("saved {} of its files: {place}", totals.files));
                let facts = serde_json::json!({ "files": totals.files, "bytes": totals.bytes, "place": place });
                self.desk.journal.record(Event::Saved { facts });
            }
            Ok(None) => message::warn("it left no file that --save asks for"),
            Err(error) => message::warn(format_args!("what --save asks for could not be saved: {error}")),
        }
        Ok(())
    }
}
