//! The first phase of a run, `runseal preflight`, which is that phase alone, and the check of one key.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cloud;
use super::error::RunError;
use super::seal::Room;
use crate::audit::Trail;
use crate::aws::{Cloud, Credentials, Gate};
use crate::family::{AwsFacts, message, state};
use crate::preflight::{self, Cleared, Evidence, Profile};
use crate::spec::{DataSpec, KmsKey, RunId, StoreSpec};

/// What the first phase has found.
pub struct Ready {
    /// The proof.
    pub cleared: Cleared,
    /// Where the scratch goes.
    pub room: Room,
    /// What speaks to AWS, if the run does.
    pub cloud: Option<Arc<Cloud>>,
}

impl Ready {
    /// Finds room, connects, and checks inputs and output. Blocks.
    pub fn make(
        run: &RunId,
        store: &StoreSpec,
        data: &DataSpec,
        gate: &Gate,
        credentials: Option<Credentials>,
        explain: bool,
    ) -> Result<Self, RunError> {
        let room = Room::find(store)?;
        let cloud = if data.uses_aws() { Some(connect(run, data, gate, credentials)?) } else { None };
        let request = preflight::Request {
            run,
            inputs: &data.inputs,
            output: data.output.as_ref(),
            uploads: &cloud::uploads(data),
            rules: data.rules,
            on_behalf: data.on_behalf.as_ref(),
            run_key: data.aws.run_key.as_ref().map(KmsKey::as_str),
            explain,
            space: room.size,
        };
        let cleared = preflight::check(&request, cloud.as_deref())?;
        Ok(Self { cleared, room, cloud })
    }
}

/// Checks what `runseal run` would check, and answers with what was tried; what stands in the way is an error. Nothing
/// is started.
pub fn preflight(run: &RunId, store: &StoreSpec, data: &DataSpec, explain: bool) -> Result<Evidence, RunError> {
    if let Some(output) = &data.output {
        state::check_output(output, run.as_str())?;
    }
    let trail = Arc::new(trail(run, data)?);
    let ready = Ready::make(run, store, data, &Gate::new(trail.clone()), None, explain);
    tell_gap(&trail);
    Ok(ready?.cleared.evidence().clone())
}

/// Checks the output of `data` alone, as [`Ready::make`] does. `replacing` is for this check only. Blocks.
pub fn check_output(
    run: &RunId,
    data: &DataSpec,
    replacing: bool,
    cloud: Option<&Cloud>,
) -> Result<Cleared, preflight::Report> {
    let uploads = cloud::uploads(&DataSpec { overwrite: replacing, ..data.clone() });
    let output = preflight::Request {
        run,
        inputs: &[],
        output: data.output.as_ref(),
        uploads: &uploads,
        rules: data.rules,
        on_behalf: data.on_behalf.as_ref(),
        run_key: None,
        explain: false,
        space: u64::MAX,
    };
    preflight::check(&output, cloud)
}

/// Checks that `key` is what a system of AWS asks of one.
pub fn check_key(run: &RunId, data: &DataSpec, key: &str, profile: Profile) -> Result<Evidence, RunError> {
    let trail = Arc::new(trail(run, data)?);
    let cloud = connect(run, data, &Gate::new(trail.clone()), None)?;
    let checked = preflight::check_key(key, profile, &cloud);
    tell_gap(&trail);
    Ok(checked?)
}

pub(super) fn tell_gap(trail: &Trail) {
    if let Some(problem) = trail.problem() {
        message::warn(format_args!("the audit trail has a gap: {problem}"));
    }
}

/// The audit trail of a run; one that takes nothing if none is to be kept.
pub(super) fn trail(run: &RunId, data: &DataSpec) -> Result<Trail, RunError> {
    Ok(data.audit.as_ref().map(|audit| Trail::of(audit, run.as_str())).transpose()?.unwrap_or_default())
}

pub(super) fn connect(
    run: &RunId,
    data: &DataSpec,
    gate: &Gate,
    credentials: Option<Credentials>,
) -> Result<Arc<Cloud>, RunError> {
    cloud::connect(run, &data.aws, gate, credentials).map_err(|source| RunError::Aws { source })
}

impl AwsFacts {
    /// What the proof says, which a connection in `region` made.
    pub fn of(cleared: &Cleared, region: &str) -> Self {
        let evidence = cleared.evidence();
        let encryption = cleared.result_encryption();
        let probed = evidence.checks.iter().filter_map(|check| check.key.clone());
        let keys = probed.chain(encryption.and_then(|found| found.key.clone()));
        let keys = keys.chain(cleared.run_key().map(str::to_owned));
        Self {
            identity: evidence.identity.as_ref().map(|identity| identity.arn.clone()),
            region: region.to_owned(),
            keys: keys.collect::<BTreeSet<_>>().into_iter().collect(),
            result_encryption: encryption.map(ToString::to_string),
        }
    }
}
