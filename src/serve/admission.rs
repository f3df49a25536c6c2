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
pub struct Admission {
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
) -> Result<Admission, Problem> {
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
    Ok(Admission { order: MountOrder { spec, service: service.to_owned(), user, volume }, credentials })
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::serve::model::RunView;
    use crate::serve::table::RunRow;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    fn admitted(request: &Value, volume: Option<&str>, caller: Caller) -> Result<Admission, Problem> {
        let roots = Roots::open([Path::new("/")].into_iter()).expect("the root");
        let settings = Settings { config: Config::default(), roots, volumes: None };
        let request: RunRequest = serde_json::from_str(&request.to_string()).expect("a request");
        admit(request, volume.map(str::to_owned), caller, &settings, Path::new("/run/serve.sock"))
    }

    fn everything() -> Value {
        json!({
            "id": "a", "size": 1 << 20, "memory": 1 << 21, "backing": ["/var/tmp"], "mountpoint": "/deep/a",
            "owner": { "uid": 1000, "gid": 100 }, "mode": "0750", "options": ["suid"],
            "inputs": ["s3://inputs/reads/=all"], "output": "s3://outputs/a/",
            "overwrite": true, "keep_old": true, "dereference": true, "allow_empty": true, "shared_output": true,
            "keep_set_id": true,
            "aws": {
                "role_arn": "arn:aws:iam::111122223333:role/runs", "profile": "staging", "region": "eu-central-1",
                "fips": true, "dual_stack": true, "sse": "aws:kms", "sse_kms_key_id": "alias/results",
                "run_key_kms": "alias/runs", "concurrency": 5,
                "credentials": { "access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": SECRET },
            },
        })
    }

    #[test]
    fn what_is_asked_for_is_ordered_and_shown_but_for_secrets() {
        let Admission { order, credentials } =
            admitted(&everything(), None, Caller::ROOT).map_err(|problem| problem.detail).expect("admitted");
        assert_eq!(credentials.expect("handed over").secret_access_key.as_str(), SECRET);
        let text = serde_json::to_string(&order).expect("JSON");
        assert!(!text.contains(SECRET) && !format!("{order:?}").contains(SECRET), "{text}");
        let DataSpec { overwrite, rules, aws, .. } = &order.spec.data;
        let all = StagingRules {
            dereference: true,
            keep_old: true,
            allow_empty: true,
            shared_output: true,
            keep_set_id: true,
        };
        assert!(*overwrite && *rules == all && aws.fips && aws.dual_stack && aws.concurrency == Some(5));
        for word in ["role/runs", "staging", "eu-central-1", "aws:kms", "alias/results", "alias/runs"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        let view = serde_json::to_value(RunView::from(&RunRow::new(order))).expect("JSON");
        let request = everything();
        let shown: Vec<_> =
            request.as_object().expect("an object").iter().filter(|(name, _)| view.get(name).is_some()).collect();
        assert_eq!(shown.len(), 10, "{shown:?}");
        for (name, value) in shown {
            assert_eq!(&view[name], value, "{name}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_what_the_node_says() {
        let alice = Caller { uid: 1000, gid: 100, process: None };
        let order = admitted(&json!({ "id": "a" }), None, alice).unwrap_or_else(|refused| panic!("{refused}")).order;
        let view = serde_json::to_value(RunView::from(&RunRow::new(order))).expect("JSON");
        let expected = json!({
            "state": "starting", "user": 1000, "mountpoint": "/a", "size": 10_u64 << 30, "memory": 64 << 20,
            "backing": ["/var/tmp"], "owner": { "uid": 1000, "gid": 100 }, "mode": "0700", "options": [], "inputs": [],
            "output": null, "volume": null, "supervisor": null,
        });
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&view[name], value, "{name}");
        }
        let order = admitted(&json!({ "owner": { "uid": 1000, "gid": 1 } }), Some("data"), Caller::ROOT);
        let order = order.unwrap_or_else(|refused| panic!("{refused}")).order;
        assert_eq!((order.user, order.volume.as_deref()), (0, Some("data")), "counts as whoever mounts it");
    }

    #[test]
    fn what_only_root_may_have_is_refused_to_others() {
        let alice = Caller { uid: 1000, gid: 100, process: None };
        let key = json!({ "access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": SECRET });
        for (request, word) in [
            (json!({ "owner": { "uid": 0, "gid": 0 } }), "owner 0:0"),
            (json!({ "id": "vol-a" }), "ids that begin with `vol-`"),
            (json!({ "backing": ["/etc"] }), "backing /etc: this node allows /var/tmp"),
            (json!({ "options": ["nodev", "suid"] }), "option `suid`"),
            (json!({ "mountpoint": "/deep/a" }), "users have names in a root of this node"),
            (json!({ "inputs": ["/etc/shadow"] }), "/etc/shadow: only root"),
            (json!({ "output": "s3://outputs/a/" }), "aws.credentials"),
            (json!({ "aws": { "profile": "staging", "credentials": key } }), "aws.profile"),
        ] {
            let problem = admitted(&request, None, alice).err().expect("refused");
            assert_eq!(problem.kind, ProblemKind::Forbidden, "{request}");
            assert!(problem.detail.contains(word), "{request}: {problem}");
        }
        for (request, word) in [
            (json!({ "backing": ["/var/tmp", "/var/tmp"] }), "name each directory once"),
            (json!({ "aws": { "concurrency": 0 } }), "from 1 to 1024"),
            (json!({ "inputs": ["a"] }), "must be absolute"),
            (json!({ "allow_empty": true }), "nothing is staged"),
            (json!({ "aws": { "credentials": key } }), "nothing is staged"),
        ] {
            let problem = admitted(&request, None, Caller::ROOT).err().expect("refused");
            assert_eq!(problem.kind, ProblemKind::Usage, "{request}");
            assert!(problem.detail.contains(word), "{request}: {problem}");
        }
    }
}
