//! Everything that is asked of AWS, all at once, and what it comes to.

mod explain;
mod inputs;
mod keys;
mod output;
mod paths;
mod probe;
pub(super) mod profiles;
mod repair;
mod trouble;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join3;

use super::local::inputs::Tagged;
use super::report::{AwsDetails, Check, Code, Evidence, Finding, Outcome};
use super::{OutputPrefix, Request};
use crate::aws::{Answer, CallError, Cause, Cloud, Encryption, Identity, UploadSettings, run_context};
use crate::spec::{Arn, InputSpec, Location, S3Uri};
use crate::units::SECTOR_U64;
use explain::{Hints, explain};
use inputs::{InputObject, Survey};
use keys::{Answers, DryRun, Use};
use output::Trial;
use probe::Probe;
use trouble::{Attempt, Trouble, merged};

use super::tree::{NameConflict, Tree};

/// What came of it.
#[derive(Default)]
pub(super) struct Remote {
    pub(super) found: Vec<InputObject>,
    /// Output in S3. `None` if it cannot be used.
    pub(super) output: Option<OutputPrefix>,
    /// ARN of the key that takes part in the run key.
    pub(super) run_key: Option<String>,
    /// Of inputs.
    pub(super) inputs: Vec<Tagged>,
    /// Of everything else.
    pub(super) others: Vec<Finding>,
    pub(super) evidence: Evidence,
}

/// Asks AWS everything. Nothing that fails keeps the rest from being asked.
pub(super) fn ask(request: &Request<'_>, cloud: &Cloud) -> Remote {
    cloud.block_on(Inquiry { request, cloud, region: &cloud.region }.make())
}

/// Without AWS, what needs it cannot be cleared.
pub(super) fn without_cloud(request: &Request<'_>) -> Vec<Finding> {
    let remote = |location: &Location| match location {
        Location::S3(uri) => Some(uri.to_string()),
        Location::Path(_) => None,
    };
    let missing = |code, subject: String| {
        let remedy = "start it with AWS configured, in a build with the feature `aws`".to_owned();
        Finding::new(code, subject, "needs AWS, which this run does not speak to".to_owned(), remedy)
    };
    let inputs = request.inputs.iter().filter_map(|input| remote(&input.source)).map(|uri| (Code::ImportFailed, uri));
    let output = request.output.and_then(remote).map(|uri| (Code::ExportFailed, uri));
    let run_key = request.run_key.map(|key| (Code::RunKeyFailed, key.to_owned()));
    inputs.chain(output).chain(run_key).map(|(code, subject)| missing(code, subject)).collect()
}

struct Inquiry<'a> {
    request: &'a Request<'a>,
    cloud: &'a Cloud,
    region: &'a str,
}

/// Who asks, then the three that do not depend on one another.
struct First {
    identity: Result<Answer<Identity>, CallError>,
    survey: Survey,
    trial: Trial,
    settings: UploadSettings,
    run_key: Option<String>,
    tried_run_key: Option<Result<Answer<()>, CallError>>,
}

impl<'a> Inquiry<'a> {
    async fn make(self) -> Remote {
        let mut answers = Answers::default();
        let first = self.first(&mut answers).await;
        self.ask_keys(&first, &mut answers).await;
        let (regions, identity) =
            (self.regions(&first).await, first.identity.as_ref().ok().map(|answer| &answer.value));
        let hints = Hints {
            region: self.region,
            identity,
            answers: &answers,
            regions: &regions,
            run_key: first.run_key.as_deref(),
            now: now(),
        };
        self.conclude(&first, &hints).with(first, &answers)
    }

    async fn first(&self, answers: &mut Answers) -> First {
        let inputs: Vec<(u32, &S3Uri)> = (0..)
            .zip(self.request.inputs)
            .filter_map(|(position, input)| match &input.source {
                Location::S3(uri) => Some((position, uri)),
                Location::Path(_) => None,
            })
            .collect();
        // Before anything else: the trail names the caller of all that follows.
        let identity = self.cloud.identity().whoami().await;
        let mut settings = self.request.uploads.clone();
        let [run_key, kms_key] = answers.resolve(self.cloud, [self.request.run_key, settings.kms_key.as_deref()]).await;
        settings.kms_key = kms_key;
        let (tried_run_key, survey, trial) = join3(
            self.try_run_key(run_key.as_deref()),
            inputs::survey(self.cloud, &inputs),
            self.try_output(&mut settings),
        )
        .await;
        let survey = self.with_reasons(survey).await;
        First { identity, survey, trial, settings, run_key, tried_run_key }
    }

    /// `HEAD` has no body: of each kind of refusal, one is asked for again in a way that gives the reason.
    async fn with_reasons(&self, mut survey: Survey) -> Survey {
        survey.troubles = merged(survey.troubles);
        let heads = |trouble: &&mut Trouble| {
            matches!(trouble.attempt, Attempt::Head | Attempt::HeadOrList)
                && matches!(trouble.error.cause, Cause::Denied | Cause::Rejected)
        };
        for trouble in survey.troubles.iter_mut().filter(heads) {
            let Some(uri) = trouble.uri.clone() else { continue };
            if let Err(error) = probe::read(self.cloud, &uri, None).await
                && error.cause == trouble.error.cause
            {
                trouble.error = error;
            }
        }
        survey
    }

    async fn try_run_key(&self, key: Option<&str>) -> Option<Result<Answer<()>, CallError>> {
        let key = key?;
        Some(self.cloud.keys().try_generate(key, &run_context(self.request.run)).await)
    }

    async fn try_output(&self, settings: &mut UploadSettings) -> Trial {
        let Some(Location::S3(uri)) = self.request.output else { return Trial::default() };
        let prefix = uri.clone().into_prefix();
        let mut trial = output::attempt(self.cloud, &prefix, settings).await.unwrap_or_else(|error| {
            let error = CallError::unanswered("getrandom", Cause::Rejected, error.to_string());
            let trouble = Trouble { uri: Some(prefix.clone()), ..Trouble::new(Attempt::Begin, error) };
            Trial { troubles: vec![trouble], ..Trial::default() }
        });
        self.add_default_key(&mut trial, &uri.bucket).await;
        // Where the key was left to S3 after all, S3 has told which one it is.
        if let (Some(asked), Some(got)) = (&mut settings.kms_key, &trial.encryption)
            && let Some(key) = &got.key
            && Arn::of_key(asked).is_none()
        {
            asked.clone_from(key);
        }
        trial
    }

    /// An upload that cannot be begun does not tell its key: the default of the bucket may.
    async fn add_default_key(&self, trial: &mut Trial, bucket: &str) {
        let keyless = |trouble: &&mut Trouble| {
            trouble.attempt == Attempt::Begin
                && matches!(trouble.error.cause, Cause::Denied | Cause::KeyState | Cause::KeyKind | Cause::NotFound)
                && trouble.encryption.key.is_none()
                && trouble.error.code != "NoSuchBucket"
        };
        if let Some(trouble) = trial.troubles.iter_mut().find(keyless)
            && let Ok(answer) = self.cloud.objects().bucket_encryption(bucket).await
        {
            trouble.encryption = answer.value;
        }
    }

    /// [`Probe::Describe`] for every key there is, then [`Probe::Generate`] and [`Probe::Decrypt`] where they explain something, or everywhere if asked to.
    async fn ask_keys(&self, first: &First, answers: &mut Answers) {
        let of_groups = first.survey.groups.iter().filter_map(|group| group.encryption.key.clone());
        let of_troubles = first.troubles().filter_map(|trouble| trouble.encryption.key.clone());
        let of_output = first.trial.encryption.iter().filter_map(|encryption| encryption.key.clone());
        let of_run = first.run_key.clone();
        let keys: Vec<String> = of_groups.chain(of_troubles).chain(of_output).chain(of_run).collect();
        answers.describe(self.cloud, keys).await;
        answers.try_out(self.cloud, self.dry_runs(first)).await;
    }

    fn dry_runs(&self, first: &First) -> Vec<DryRun> {
        let mut wanted = Vec::new();
        for trouble in first.troubles().filter(|trouble| trouble.error.cause == Cause::Denied) {
            let purpose = match trouble.attempt {
                Attempt::Begin => Use::Generate,
                Attempt::Read | Attempt::Part => Use::Decrypt,
                _ => continue,
            };
            if let (Some(key), Some(uri)) = (&trouble.encryption.key, &trouble.uri) {
                wanted.extend([true, false].map(|bucket_key| DryRun::new(purpose, key, uri, bucket_key)));
            }
        }
        if self.request.explain {
            for group in &first.survey.groups {
                let key = group.encryption.key.as_ref();
                wanted
                    .extend(key.map(|key| DryRun::new(Use::Decrypt, key, &group.sample, group.encryption.bucket_key)));
            }
            if let (Some(Encryption { key: Some(key), bucket_key, .. }), Some(Location::S3(uri))) =
                (&first.trial.encryption, self.request.output)
            {
                let uri = uri.clone().into_prefix();
                wanted
                    .extend([Use::Generate, Use::Decrypt].map(|purpose| DryRun::new(purpose, key, &uri, *bucket_key)));
            }
        }
        wanted
    }

    /// Of buckets for which S3 did not find the key.
    async fn regions(&self, first: &First) -> BTreeMap<String, String> {
        let mut regions = BTreeMap::new();
        for trouble in first.troubles().filter(|trouble| trouble.error.code.starts_with("KMS.NotFound")) {
            let Some(uri) = &trouble.uri else { continue };
            if let Ok(answer) = self.cloud.objects().bucket_region(&uri.bucket).await {
                regions.insert(uri.bucket.clone(), answer.value);
            }
        }
        regions
    }

    fn conclude(&self, first: &First, hints: &Hints<'_>) -> Remote {
        let mut remote = Remote::default();
        let identity = first.identity.as_ref().err().map(|error| Trouble::new(Attempt::Identity, error.clone()));
        // STS that cannot be reached is no reason not to run, as long as S3 can be.
        let identity = identity.filter(|trouble| trouble.is_general() && trouble.error.cause != Cause::Unreachable);
        let run_key = first.tried_run_key.as_ref().and_then(|tried| tried.as_ref().err());
        let run_key = run_key.map(|error| Trouble::new(Attempt::RunKey, error.clone()));
        let all = identity.into_iter().chain(first.troubles().cloned()).chain(run_key).collect();
        for trouble in merged(all) {
            let finding = explain(&trouble, hints);
            match trouble.input {
                Some(input) => remote.inputs.push((input, finding)),
                // Without credentials nothing else is worth reading: it comes before all inputs.
                None if trouble.is_general() => remote.inputs.push((0, finding)),
                None => remote.others.push(finding),
            }
        }
        remote.others.extend(first.trial.occupied.clone());
        self.add_defects(&mut remote, hints);
        if remote.others.is_empty()
            && let Some(Location::S3(uri)) = self.request.output
        {
            let encryption = first.trial.encryption.clone().filter(|_| first.trial.writable);
            let (uri, settings) = (uri.clone().into_prefix(), first.settings.clone());
            remote.output = encryption.map(|encryption| OutputPrefix { uri, settings, encryption });
        }
        remote
    }

    /// A key that cannot be used stops the run even if S3 still has a bucket key of it at hand.
    fn add_defects(&self, remote: &mut Remote, hints: &Hints<'_>) {
        for (facts, request_id, defect) in hints.answers.defects(hints.now) {
            let is_about = |finding: &Finding| {
                finding.aws.as_ref().is_some_and(|aws| {
                    aws.key.as_deref() == Some(&facts.arn) && matches!(aws.cause, Cause::KeyState | Cause::KeyKind)
                })
            };
            if remote.inputs.iter().map(|(_, finding)| finding).chain(&remote.others).any(is_about) {
                continue;
            }
            let of_run = hints.run_key == Some(&facts.arn);
            let details = AwsDetails {
                cause: if defect.state { Cause::KeyState } else { Cause::KeyKind },
                operation: Probe::Describe.operation(),
                action: None,
                key: Some(facts.arn.clone()),
                principal: hints.identity.map(|identity| identity.arn.clone()),
                policy: None,
                explicit_deny: false,
                aws_code: String::new(),
                aws_message: format!("KeyState {}", facts.state),
                request_ids: vec![request_id.to_owned()],
                also: Vec::new(),
                repair: None,
            };
            let code = if of_run { Code::RunKeyFailed } else { Code::ImportFailed };
            let problem = format!("KMS key {}", defect.problem);
            let finding = Finding::new(code, facts.arn.clone(), problem, defect.remedy);
            remote.others.push(Finding { aws: Some(Box::new(details)), ..finding });
        }
    }
}

impl First {
    fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.survey.troubles.iter().chain(&self.trial.troubles)
    }

    fn checks(self, answers: &Answers) -> (Vec<InputObject>, Evidence) {
        let mut checks = vec![match &self.identity {
            Ok(answer) => {
                check(Probe::Identity.name(), &answer.value.arn, Outcome::Passed, String::new(), &answer.request_id)
            }
            Err(error) => check(Probe::Identity.name(), "AWS", Outcome::Unknown, error.to_string(), &error.request_id),
        }];
        checks.extend(self.survey.troubles.iter().filter(|trouble| trouble.attempt != Attempt::Read).map(|trouble| {
            let subject = trouble.uri.as_ref().map(ToString::to_string).unwrap_or_default();
            check(
                trouble.error.operation,
                &subject,
                Outcome::Failed,
                trouble.error.to_string(),
                &trouble.error.request_id,
            )
        }));
        checks.extend(self.survey.checks);
        checks.extend(self.trial.checks);
        checks.extend(answers.checks(now()));
        // Of the run key: here the direct call decides, for it is the one that will be made.
        checks.extend(self.tried_run_key.map(|tried| match tried {
            Ok(answer) => {
                check(Probe::Generate.name(), "run key", Outcome::Passed, "can be made".to_owned(), &answer.request_id)
            }
            Err(error) => {
                check(Probe::Generate.name(), "run key", Outcome::Failed, error.to_string(), &error.request_id)
            }
        }));
        (self.survey.found, Evidence { identity: self.identity.ok().map(|answer| answer.value), checks })
    }
}

fn check(probe: &'static str, subject: &str, outcome: Outcome, detail: String, request_id: &str) -> Check {
    Check { probe, subject: subject.to_owned(), key: None, outcome, detail, request_id: request_id.to_owned() }
}

impl Remote {
    fn with(mut self, first: First, answers: &Answers) -> Self {
        self.run_key.clone_from(&first.run_key);
        (self.found, self.evidence) = first.checks(answers);
        self
    }
}

/// Puts what was found into the tree; answers with the bytes it takes in the scratch.
pub(super) fn graft(
    tree: &mut Tree,
    request: &Request<'_>,
    found: Vec<InputObject>,
    findings: &mut Vec<Tagged>,
) -> u64 {
    let mut needed = 0;
    for InputObject { object, base } in found {
        let (input, uri) = (object.input, object.uri.clone());
        let target = &request.inputs[input as usize].target;
        let place = match paths::place(&uri.key, &base) {
            Ok(place) if place.directory && object.seen.size > 0 => {
                Err("it ends with a slash like a directory, but has contents")
            }
            place => place,
        };
        let size = object.seen.size;
        let grafted = match &place {
            Err(why) => {
                findings.push((input, no_path(&uri, why)));
                continue;
            }
            Ok(place) if place.directory => paths::graft_directory(tree, target, place),
            Ok(place) => paths::graft(tree, target, place, object),
        };
        match grafted {
            Ok(()) => needed += size.div_ceil(SECTOR_U64) * SECTOR_U64,
            Err(NameConflict(there)) => findings.push((input, conflict(tree, there, &uri))),
        }
    }
    needed
}

fn no_path(uri: &S3Uri, why: &str) -> Finding {
    let problem = format!("its key cannot be a path: {why}");
    let remedy = "copy the object to another key, or name the prefixes to be staged one by one".to_owned();
    Finding::new(Code::ImportFailed, uri.to_string().escape_debug().to_string(), problem, remedy)
}

fn conflict(tree: &Tree, there: u32, uri: &S3Uri) -> Finding {
    let (other, at) = (tree.source(there), tree.target(there));
    let problem = format!("{} and {uri} both claim this path", crate::sys::path::shown(&other));
    let remedy = "a key cannot be a file and a directory at once, nor two things be one: give an input another place \
                  (--input URI=OTHER/PATH), or stage fewer keys"
        .to_owned();
    Finding::new(Code::InputConflict, crate::sys::path::shown(&at), problem, remedy)
}

/// Results must not mix with inputs.
pub(super) fn overlap(output: &S3Uri, inputs: &[InputSpec]) -> Option<Finding> {
    let prefix = output.clone().into_prefix();
    let meets = |uri: &&S3Uri| {
        let input = (*uri).clone().into_prefix();
        uri.bucket == prefix.bucket && (input.key.starts_with(&prefix.key) || prefix.key.starts_with(&input.key))
    };
    let remote = inputs.iter().filter_map(|input| match &input.source {
        Location::S3(uri) => Some(uri),
        Location::Path(_) => None,
    });
    let input = remote.into_iter().find(meets)?;
    let problem = format!("output and input {input} contain one another: results would mix with inputs");
    let remedy = "choose an --output outside of every input".to_owned();
    Some(Finding::new(Code::ExportFailed, output.to_string(), problem, remedy))
}

pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
