//! The first phase of a run, `runseal preflight`, which is that phase alone, and the check of one key.

use std::sync::Arc;

use super::cloud::{self, Connector, Switch};
use super::error::RunError;
use super::message;
use super::seal::Room;
use super::state;
use crate::audit::Trail;
use crate::aws::{Cloud, Credentials};
use crate::preflight::{self, Cleared, Evidence, Profile};
use crate::spec::{KmsKey, RunSpec};

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
        spec: &RunSpec,
        connector: Connector,
        credentials: Option<Credentials>,
        explain: bool,
        trail: &Trail,
    ) -> Result<Self, RunError> {
        let room = Room::find(&spec.store)?;
        let cloud = if spec.uses_aws() { Some(connect(spec, connector, credentials)?) } else { None };
        let request = preflight::Request {
            run: &spec.id,
            inputs: &spec.inputs,
            output: spec.output.as_ref(),
            uploads: &cloud::uploads(spec),
            rules: spec.rules,
            on_behalf: spec.on_behalf.as_ref(),
            run_key: spec.aws.run_key.as_ref().map(KmsKey::as_str),
            explain,
            space: room.size,
            trail,
        };
        let cleared = preflight::check(&request, cloud.as_deref())?;
        Ok(Self { cleared, room, cloud })
    }
}

/// Checks what `runseal run` would check, and answers with what was tried; what stands in the way is an error. Nothing
/// is started, and the command of `spec` plays no part.
pub fn preflight(spec: &RunSpec, explain: bool) -> Result<Evidence, RunError> {
    if let Some(output) = &spec.output {
        state::check_output(output, spec.id.as_str())?;
    }
    let trail = trail(spec)?;
    let ready = Ready::make(spec, Switch::new().connector(), None, explain, &trail);
    tell_gap(&trail);
    Ok(ready?.cleared.evidence().clone())
}

/// Checks the output of `spec` alone, as [`Ready::make`] does. `replacing` is for this check only. Blocks.
pub fn check_output(
    spec: &RunSpec,
    replacing: bool,
    cloud: Option<&Cloud>,
    trail: &Trail,
) -> Result<Cleared, preflight::Report> {
    let uploads = cloud::uploads(&RunSpec { overwrite: replacing, ..spec.clone() });
    let output = preflight::Request {
        run: &spec.id,
        inputs: &[],
        output: spec.output.as_ref(),
        uploads: &uploads,
        rules: spec.rules,
        on_behalf: spec.on_behalf.as_ref(),
        run_key: None,
        explain: false,
        space: u64::MAX,
        trail,
    };
    preflight::check(&output, cloud)
}

/// Checks that `key` is what a system of AWS asks of one.
pub fn check_key(spec: &RunSpec, key: &str, profile: Profile) -> Result<Evidence, RunError> {
    let trail = trail(spec)?;
    let cloud = connect(spec, Switch::new().connector(), None)?;
    let checked = preflight::check_key(key, profile, &cloud, &trail);
    tell_gap(&trail);
    Ok(checked?)
}

pub(super) fn tell_gap(trail: &Trail) {
    if let Some(problem) = trail.problem() {
        message::warn(format_args!("the audit trail has a gap: {problem}"));
    }
}

pub(super) fn trail(spec: &RunSpec) -> Result<Trail, RunError> {
    Ok(spec.audit.as_ref().map(|audit| Trail::of(audit, spec.id.as_str())).transpose()?.unwrap_or_default())
}

pub(super) fn connect(
    spec: &RunSpec,
    connector: Connector,
    credentials: Option<Credentials>,
) -> Result<Arc<Cloud>, RunError> {
    connector.connect(spec, credentials).map_err(|source| RunError::Aws { source })
}
