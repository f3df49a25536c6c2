//! What is asked of live runs from outside: how they are, and to publish again.

use std::time::Duration;

use crate::family::{
    FamilyError, Record, Reply, Report, Request, ResumeOrder,
    control::{end::condition, socket},
    state::{self, Survey},
};

/// How long `status` waits for one run.
pub const STATUS_TIME: Duration = Duration::from_secs(3);

/// A live run, and its report or why it does not answer.
pub type LiveRun = (Record, Result<Report, String>);

/// The live runs of this user and the mounts of dead ones, or only the one called `wanted`.
pub fn status(wanted: Option<&str>) -> Result<Vec<LiveRun>, FamilyError> {
    let Survey { live, dead } = state::survey()?;
    let live = live.into_iter().map(|record| {
        let answer = ask(record.run_id.as_str(), &Request::Status, Some(STATUS_TIME));
        let problem = |error: FamilyError| condition(&record).unwrap_or_else(|| error.to_string());
        let report = answer.map_err(problem).and_then(|reply| reply.report.ok_or(reply.message));
        (record, report)
    });
    let dead = dead.into_iter().map(|record| {
        let problem = format!(
            "dead: its processes were killed; the mount stays until `runseal end {}`, umount(8) or the next `runseal mount` there",
            record.run_id
        );
        (record, Err(problem))
    });
    let wanted = |run: &LiveRun| wanted.is_none_or(|wanted| run.0.run_id.as_str() == wanted);
    Ok(live.chain(dead).filter(wanted).collect())
}

/// Has a held run try to publish again.
pub fn resume(run: &str, order: ResumeOrder) -> Result<Reply, FamilyError> {
    if let Some(output) = &order.spec.output {
        state::check_output(output, run)?;
    }
    ask(run, &Request::Resume(order), None)
}

fn ask(run: &str, request: &Request, patience: Option<Duration>) -> Result<Reply, FamilyError> {
    let (record, at) = state::find(run)?;
    socket::ask(&at, request, patience)
        .map_err(|source| FamilyError::Unreachable { run: record.run_id.to_string(), source })
}
