//! `runseal preflight`: the first phase of a run without the rest, and the check of one key.

use std::sync::Arc;

use super::cloud::{self, Switch};
use super::error::RunError;
use super::message;
use super::seal::Room;
use crate::audit::Trail;
use crate::preflight::{self, Evidence, Profile};
use crate::s3::Cloud;
use crate::spec::RunSpec;

/// Checks what `runseal run` would check, and answers with what was tried; what stands in the way is an error. Nothing
/// is started, and the command of `spec` plays no part.
pub fn preflight(spec: &RunSpec, explain: bool) -> Result<Evidence, RunError> {
    let trail = trail(spec)?;
    let room = Room::find(&spec.store)?;
    let cloud = if spec.uses_aws() { Some(connect(spec, &trail)?) } else { None };
    let run_key = spec.aws.run_key.as_ref().map(|key| cloud::key_arn(key, cloud.as_deref(), &trail));
    let request = preflight::Request {
        run: &spec.id,
        inputs: &spec.inputs,
        output: spec.output.as_ref(),
        uploads: &cloud::uploads(spec, cloud.as_deref(), &trail),
        run_key: run_key.as_deref(),
        explain,
        space: room.size,
        trail: &trail,
    };
    let checked = preflight::check(&request, cloud.as_deref());
    tell_gap(&trail);
    Ok(checked?.evidence().clone())
}

/// Checks that `key` is what a system of AWS asks of one.
pub fn check_key(spec: &RunSpec, key: &str, profile: Profile) -> Result<Evidence, RunError> {
    let trail = trail(spec)?;
    let cloud = connect(spec, &trail)?;
    let checked = preflight::check_key(key, profile, &cloud, &trail);
    tell_gap(&trail);
    Ok(checked?)
}

fn tell_gap(trail: &Trail) {
    if let Some(problem) = trail.problem() {
        message::warn(format_args!("the audit trail has a gap: {problem}"));
    }
}

fn trail(spec: &RunSpec) -> Result<Trail, RunError> {
    Ok(spec.audit.as_ref().map(|to| Trail::open(to, spec.id.as_str())).transpose()?.unwrap_or_default())
}

fn connect(spec: &RunSpec, trail: &Trail) -> Result<Arc<Cloud>, RunError> {
    let cloud = Switch::new().connector().connect(spec, None).map_err(|source| RunError::Aws { source })?;
    cloud::identify(&cloud, trail);
    Ok(cloud)
}
