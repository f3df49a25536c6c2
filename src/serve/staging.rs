//! Inputs, output and credentials of a run: what a caller may name.
//!
//! The service is root. Paths of the node, its AWS configuration and its identity are therefore for root, or every user
//! would have what root has.

use std::ffi::OsStr;
use std::path::Path;

use super::model::{Owner, RunRequest};
use super::peer::Caller;
use super::problem::{Kind, Problem};
use crate::spec::{AwsSpec, Identity, InputSpec, Location, StagingRules, StagingSpec};
use crate::sys::identity::groups_of;
use crate::sys::path::shown;

/// Most requests to S3 at once.
const CONCURRENCY_MAX: u16 = 1024;

/// Takes what is to be staged out of `request`; `None` if nothing is. `handed`: credentials came with it. `node`: users
/// may use those of the node.
pub fn plan(
    request: &mut RunRequest,
    handed: bool,
    node: bool,
    caller: Caller,
) -> Result<Option<StagingSpec>, Problem> {
    let exists = |path: &Path| caller.is_root() && path.symlink_metadata().is_ok();
    let parse = |text: &String| InputSpec::parse(OsStr::new(text), exists).map_err(usage);
    let inputs = request.inputs.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let output = request.output.take().map(|text| Location::parse_output(OsStr::new(&text), exists).map_err(usage));
    let output = output.transpose()?;
    let places = inputs.iter().map(|input| &input.source).chain(&output);
    places.clone().try_for_each(|place| may_name(place, caller))?;

    let wanted = std::mem::take(&mut request.aws);
    if wanted.profile.is_some() && !caller.is_root() {
        return Err(forbidden("aws.profile: only root may name a profile of this node; hand over `aws.credentials`"));
    }
    if wanted.concurrency.is_some_and(|requests| !(1..=CONCURRENCY_MAX).contains(&requests)) {
        return Err(usage(format!("aws.concurrency: a number from 1 to {CONCURRENCY_MAX}")));
    }
    let remote = places.clone().any(|place| place.s3().is_some()) || wanted.run_key_kms.is_some();
    let needs_cloud = remote || wanted.role_arn.is_some();
    if needs_cloud && !handed && !node && !caller.is_root() {
        return Err(forbidden(
            "aws.credentials: runs in S3 use credentials of yours, not those of this node: give access_key_id, \
             secret_access_key and session_token, or ask the administrator to set aws.node_credentials",
        ));
    }
    let aws = AwsSpec {
        role: wanted.role_arn,
        profile: wanted.profile,
        region: wanted.region,
        fips: wanted.fips,
        dual_stack: wanted.dual_stack,
        concurrency: wanted.concurrency,
        run_key: wanted.run_key_kms,
        ..AwsSpec::default()
    };
    let aws = aws.with_encryption(wanted.sse, wanted.sse_kms_key_id, output.as_ref()).map_err(usage)?;
    let RunRequest { overwrite, keep_old, dereference, allow_empty, shared_output, keep_set_id, .. } = *request;
    let rules = StagingRules { dereference, keep_old, allow_empty, shared_output, keep_set_id };
    if inputs.is_empty() && output.is_none() && !needs_cloud {
        return if overwrite || rules != StagingRules::default() || handed {
            Err(usage("nothing is staged: give inputs or an output"))
        } else {
            Ok(None)
        };
    }
    let local = places.clone().any(|place| place.s3().is_none());
    let on_behalf = if local { identity(caller.owner(request.owner)?)? } else { None };
    Ok(Some(StagingSpec { inputs, output, overwrite, rules, aws, on_behalf }))
}

/// Root reads and writes for somebody else with nothing but the rights of that user.
fn identity(owner: Owner) -> Result<Option<Identity>, Problem> {
    let Owner { uid, gid } = owner;
    if uid == 0 {
        return Ok(None);
    }
    let unknown = |error| Problem::new(Kind::System, format!("looking up the groups of user {uid}: {error}"));
    Ok(Some(Identity { uid, gid, groups: groups_of(uid, gid).map_err(unknown)? }))
}

/// Inputs as they are shown.
pub fn inputs(staging: &StagingSpec) -> Vec<String> {
    let shown = |input: &InputSpec| format!("{}={}", input.source, shown(&input.target));
    staging.inputs.iter().map(shown).collect()
}

fn may_name(place: &Location, caller: Caller) -> Result<(), Problem> {
    match place {
        Location::S3(_) => Ok(()),
        Location::Path(path) if !caller.is_root() => Err(forbidden(format!(
            "{}: only root may name paths of this node, for the service reads and writes as root; use s3://, or copy \
             into and out of the mount",
            shown(path)
        ))),
        Location::Path(path) if path.is_absolute() => Ok(()),
        Location::Path(path) => Err(usage(format!("{}: a path of this node must be absolute", shown(path)))),
    }
}

fn usage(problem: impl ToString) -> Problem {
    Problem::new(Kind::Usage, problem.to_string())
}

fn forbidden(problem: impl std::fmt::Display) -> Problem {
    Problem::new(Kind::Forbidden, problem)
}
