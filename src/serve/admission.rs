//! Admission: what a request becomes for this caller on this node, before anything is made.
//!
//! The service is root. Paths of the node, its AWS configuration and its identity are therefore for root, or every user
//! would have what root has. Names of root are looked at and groups are looked up here: this blocks.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::model::{AwsRequest, Mode, Owner, RunRequest};
use super::mountpoint::Roots;
use super::peer::Caller;
use super::problem::{Problem, ProblemKind};
use super::runs::Settings;
use crate::run::{Credentials, MountOrder};
use crate::spec::{
    AwsSpec, DataSpec, Identity, InputSpec, Location, Purpose, RootSpec, RunId, RunSpec, ServeSpec, StagingRules,
    StoreSpec,
};
use crate::sys::identity::groups_of;
use crate::sys::path::shown;

/// What the ids of runs behind volumes begin with, and no others.
pub const OF_VOLUMES: &str = "vol-";
/// Most requests to S3 at once.
const CONCURRENCY_MAX: u16 = 1024;

/// A run that may be made.
pub struct Admitted {
    /// What to make.
    pub order: MountOrder,
    /// Credentials that came with the request.
    pub credentials: Option<Credentials>,
}

/// Checks a request against what the caller may have; fills in what it leaves out. `volume`: the name of the volume it is
/// for, if it is for one. The run will belong to this `service`.
pub fn admit(
    mut request: RunRequest,
    volume: Option<String>,
    caller: Caller,
    settings: &Settings,
    service: &Path,
) -> Result<Admitted, Problem> {
    let (config, roots) = (&settings.config, settings.roots_of(volume.as_deref()));
    let credentials = request.aws.credentials.take().map(|own| own.0);
    let data = data(&mut request, credentials.as_ref(), config, caller)?;
    let owner = caller.owner(request.owner)?;
    let id = name(request.id, volume.as_deref())?;
    check_backing(&request.backing, config)?;
    check_options(&request.options, caller)?;
    let mountpoint = mountpoint(request.mountpoint, &id, roots, caller)?;
    let backing = match request.backing.is_empty() {
        true => config.backing().take(1).map(Path::to_owned).collect(),
        false => request.backing,
    };
    let store = StoreSpec {
        backing,
        size: Some(request.size.unwrap_or(config.defaults.size).0),
        memory: Some(request.memory.unwrap_or(config.defaults.memory).0),
        ..StoreSpec::default()
    };
    let root = RootSpec { owner: Some((owner.uid, owner.gid)), mode: Some(request.mode.unwrap_or(Mode(0o700)).0) };
    let purpose = Purpose::Serve(ServeSpec { options: request.options, root, ..ServeSpec::new(mountpoint) });
    let user = if volume.is_some() { caller.uid } else { owner.uid };
    let spec = RunSpec { id, store, data, purpose };
    Ok(Admitted { order: MountOrder { spec, service: service.to_owned(), user, volume }, credentials })
}

fn name(wanted: Option<RunId>, volume: Option<&str>) -> Result<RunId, Problem> {
    let random =
        || RunId::random().map_err(|error| Problem::new(ProblemKind::System, format!("random numbers: {error}")));
    let id = wanted.map_or_else(random, Ok)?;
    if volume.is_none() && id.as_str().starts_with(OF_VOLUMES) {
        return Err(forbidden(format!(
            "id `{id}`: ids that begin with `{OF_VOLUMES}` are those of volumes; choose another"
        )));
    }
    Ok(id)
}

fn check_backing(wanted: &[PathBuf], config: &Config) -> Result<(), Problem> {
    if wanted.len() > config.backing().count() {
        return Err(usage("backing: name each directory once"));
    }
    match config.foreign_backing(wanted) {
        Some(foreign) => Err(forbidden(format!("backing {foreign}"))),
        None => Ok(()),
    }
}

/// What lets programs gain rights is for root only; so are options this list does not know.
fn check_options(options: &[String], caller: Caller) -> Result<(), Problem> {
    const HARMLESS: [&str; 10] =
        ["nosuid", "nodev", "exec", "noexec", "atime", "noatime", "nodiratime", "relatime", "strictatime", "lazytime"];
    let may_use = |option: &str| caller.is_root() || HARMLESS.contains(&option);
    match options.iter().find(|option| !may_use(option)) {
        None => Ok(()),
        Some(option) => {
            Err(forbidden(format!("option `{option}`: only root may have it, one option in each element of the list")))
        }
    }
}

fn mountpoint(wanted: Option<PathBuf>, id: &RunId, roots: &Roots, caller: Caller) -> Result<PathBuf, Problem> {
    let default = roots.default_for(id.as_str());
    match wanted {
        Some(deep) if !caller.is_root() && !roots.holds(&deep) => Err(forbidden(format!(
            "mountpoint {}: users have names in a root of this node, such as {}",
            shown(&deep),
            shown(&default)
        ))),
        wanted => Ok(wanted.unwrap_or(default)),
    }
}

/// Takes what is to be staged out of `request`.
fn data(
    request: &mut RunRequest,
    credentials: Option<&Credentials>,
    config: &Config,
    caller: Caller,
) -> Result<DataSpec, Problem> {
    let exists = |path: &Path| caller.is_root() && path.symlink_metadata().is_ok();
    let parse = |text: &String| InputSpec::parse(OsStr::new(text), exists).map_err(usage);
    let inputs = request.inputs.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let output = request.output.take().map(|text| Location::parse_output(OsStr::new(&text), exists).map_err(usage));
    let output = output.transpose()?;
    let places = inputs.iter().map(|input| &input.source).chain(&output);
    places.clone().try_for_each(|place| may_name(place, caller))?;

    let wanted = std::mem::take(&mut request.aws);
    check_aws(&wanted, caller)?;
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
    let local = places.clone().any(|place| place.s3().is_none());
    let on_behalf = if local { identity(caller.owner(request.owner)?)? } else { None };
    let data = DataSpec { inputs, output, overwrite, rules, on_behalf, aws, audit: None };
    if data.uses_aws() && credentials.is_none() && !config.aws.node_credentials && !caller.is_root() {
        return Err(forbidden(
            "aws.credentials: runs in S3 use credentials of yours, not those of this node: give access_key_id, \
             secret_access_key and session_token, or ask the administrator to set aws.node_credentials",
        ));
    }
    if data.is_nothing() && (overwrite || rules != StagingRules::default() || credentials.is_some()) {
        return Err(usage("nothing is staged: give inputs or an output"));
    }
    Ok(data)
}

fn check_aws(wanted: &AwsRequest, caller: Caller) -> Result<(), Problem> {
    if wanted.profile.is_some() && !caller.is_root() {
        return Err(forbidden("aws.profile: only root may name a profile of this node; hand over `aws.credentials`"));
    }
    if wanted.concurrency.is_some_and(|requests| !(1..=CONCURRENCY_MAX).contains(&requests)) {
        return Err(usage(format!("aws.concurrency: a number from 1 to {CONCURRENCY_MAX}")));
    }
    Ok(())
}

/// Root reads and writes for somebody else with nothing but the rights of that user.
fn identity(owner: Owner) -> Result<Option<Identity>, Problem> {
    let Owner { uid, gid } = owner;
    if uid == 0 {
        return Ok(None);
    }
    let unknown = |error| Problem::new(ProblemKind::System, format!("looking up the groups of user {uid}: {error}"));
    Ok(Some(Identity { uid, gid, groups: groups_of(uid, gid).map_err(unknown)? }))
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
    Problem::new(ProblemKind::Usage, problem.to_string())
}

fn forbidden(problem: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Forbidden, problem)
}
