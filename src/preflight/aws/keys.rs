//! What KMS says of keys: their state, and dry runs that explain what S3 refused.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::{StreamExt, stream};

use super::probe::{CONCURRENCY, Probe};
use crate::aws::{Answer, CallError, Cloud, EncryptionContext, KeyFacts};
use crate::preflight::report::{Check, Outcome};
use crate::spec::{Arn, S3Uri, s3_arn};
use crate::units::rfc3339;

/// Imported material that expires sooner than this is worth a warning, in seconds.
const SOON: i64 = 7 * 24 * 3600;

/// What a data key of S3 is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// `kms:GenerateDataKey`.
    Generate,
    /// `kms:Decrypt`.
    Decrypt,
}

impl Use {
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Generate => Probe::Generate.operation(),
            Self::Decrypt => Probe::Decrypt.operation(),
        }
    }
}

/// A dry run: this use of this key, with `aws:s3:arn` in the encryption context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DryRun {
    pub(super) purpose: Use,
    pub(super) key: String,
    pub(super) arn: String,
}

impl DryRun {
    /// As S3 asks for an object at `uri`: with a bucket key the context is the bucket's ARN, else the object's.
    pub(super) fn new(purpose: Use, key: &str, uri: &S3Uri, bucket_key: bool) -> Self {
        let partition = Arn::parse(key).map_or("aws", |arn| arn.partition);
        let bucket = s3_arn(partition, &uri.bucket);
        let arn = if bucket_key { bucket } else { format!("{bucket}/{}", uri.key) };
        Self { purpose, key: key.to_owned(), arn }
    }

    async fn ask(&self, cloud: &Cloud) -> Result<Answer<()>, CallError> {
        let context = EncryptionContext::from([("aws:s3:arn".to_owned(), self.arn.clone())]);
        match self.purpose {
            Use::Generate => cloud.keys().try_generate(&self.key, &context).await,
            Use::Decrypt => cloud.keys().try_decrypt(&self.key, &context).await,
        }
    }
}

/// Everything KMS said.
#[derive(Default)]
pub(super) struct Answers {
    facts: BTreeMap<String, Result<Answer<KeyFacts>, CallError>>,
    dry_runs: BTreeMap<DryRun, Result<Answer<()>, CallError>>,
}

impl Answers {
    /// [`Probe::Describe`] for every key not asked about yet.
    pub(super) async fn describe(&mut self, cloud: &Cloud, keys: impl IntoIterator<Item = String>) {
        let mut new: Vec<String> = keys.into_iter().filter(|key| !self.facts.contains_key(key)).collect();
        new.sort();
        new.dedup();
        let answers: Vec<_> =
            stream::iter(&new).map(|key| cloud.keys().describe(key)).buffered(CONCURRENCY).collect().await;
        self.facts.extend(new.into_iter().zip(answers));
    }

    /// ARNs of keys that may be given by id or alias: the answers of S3 have nothing else, and what an alias stands for
    /// may change during a run. Where KMS does not tell, a key stays as given: the calls that use it take that too, and
    /// say more about what is wrong.
    pub(super) async fn resolve<const N: usize>(
        &mut self,
        cloud: &Cloud,
        keys: [Option<&str>; N],
    ) -> [Option<String>; N] {
        self.describe(cloud, keys.into_iter().flatten().filter(|key| Arn::of_key(key).is_none()).map(str::to_owned))
            .await;
        let arns = keys.map(|key| Some(self.facts(key?).map_or(key?, |facts| &facts.arn).to_owned()));
        // What is known by another name needs not be asked for by its ARN.
        let described = std::mem::take(&mut self.facts).into_iter();
        self.facts = described
            .map(|(key, described)| (described.as_ref().map_or(key, |answer| answer.value.arn.clone()), described))
            .collect();
        arns
    }

    /// [`Probe::Generate`] and [`Probe::Decrypt`]. Keys that AWS manages answer to nobody but S3: asking them directly would tell nothing.
    pub(super) async fn try_out(&mut self, cloud: &Cloud, dry_runs: impl IntoIterator<Item = DryRun>) {
        let mut new: Vec<DryRun> = dry_runs.into_iter().filter(|dry| !self.is_managed(&dry.key)).collect();
        new.sort();
        new.dedup();
        let answers: Vec<_> = stream::iter(&new).map(|dry| dry.ask(cloud)).buffered(CONCURRENCY).collect().await;
        self.dry_runs.extend(new.into_iter().zip(answers));
    }

    pub(super) fn facts(&self, key: &str) -> Option<&KeyFacts> {
        self.facts.get(key)?.as_ref().ok().map(|answer| &answer.value)
    }

    pub(super) fn described(&self, key: &str) -> Option<&Result<Answer<KeyFacts>, CallError>> {
        self.facts.get(key)
    }

    pub(super) fn dry_run(&self, dry: &DryRun) -> Option<&Result<Answer<()>, CallError>> {
        self.dry_runs.get(dry)
    }

    /// Whether AWS manages the key, as far as that is known.
    pub(super) fn is_managed(&self, key: &str) -> bool {
        key.contains("alias/aws/") || self.facts(key).is_some_and(|facts| facts.manager == "AWS")
    }

    /// Every key, with what is wrong with it at `now`.
    pub(super) fn defects(&self, now: i64) -> impl Iterator<Item = (&KeyFacts, &str, Defect)> {
        self.facts.values().filter_map(move |described| {
            let Answer { value: facts, request_id } = described.as_ref().ok()?;
            defect(facts, now).map(|defect| (facts, request_id.as_str(), defect))
        })
    }

    /// What was asked and answered, for the table.
    pub(super) fn checks(&self, now: i64) -> Vec<Check> {
        let described = self.facts.iter().map(|(key, described)| description(key, described, now));
        let tried = self.dry_runs.iter().map(|(dry, outcome)| {
            let probe = match dry.purpose {
                Use::Generate => Probe::Generate.name(),
                Use::Decrypt => Probe::Decrypt.name(),
            };
            let (outcome, detail, request_id) = match outcome {
                Ok(answer) => (Outcome::Passed, "KMS would allow it directly".to_owned(), &answer.request_id),
                // Only what S3 answers decides.
                Err(error) => (Outcome::Unknown, error.to_string(), &error.request_id),
            };
            let (subject, key) = (dry.arn.clone(), Some(dry.key.clone()));
            Check { probe, subject, key, outcome, detail, request_id: request_id.clone() }
        });
        described.chain(tried).collect()
    }
}

fn description(key: &str, described: &Result<Answer<KeyFacts>, CallError>, now: i64) -> Check {
    let (outcome, detail, request_id) = match described {
        Ok(Answer { value: facts, request_id }) => match defect(facts, now) {
            Some(defect) => (Outcome::Failed, defect.problem, request_id),
            None => {
                let (outcome, detail) = summary(facts, now);
                (outcome, detail, request_id)
            }
        },
        // Nothing that S3 does needs kms:DescribeKey.
        Err(error) => (Outcome::Unknown, error.to_string(), &error.request_id),
    };
    let (subject, key) = (key.to_owned(), Some(key.to_owned()));
    Check { probe: Probe::Describe.name(), subject, key, outcome, detail, request_id: request_id.clone() }
}

pub(super) fn summary(facts: &KeyFacts, now: i64) -> (Outcome, String) {
    let managed = if facts.manager == "AWS" { "managed by AWS" } else { "customer managed" };
    let text = format!("{}, {}, {managed}", facts.state, facts.spec);
    match facts.valid_to {
        Some(end) if end - now < SOON => (
            Outcome::Warning,
            format!("{text}; its imported material expires on {}: import it again before", date(end)),
        ),
        _ => (Outcome::Passed, text),
    }
}

/// Why a key cannot serve S3.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Defect {
    pub(super) problem: String,
    pub(super) remedy: String,
    /// Whether it is the state; otherwise it is the kind.
    pub(super) state: bool,
}

/// What is wrong with a key at `now` (KMS Developer Guide, "Key states of AWS KMS keys").
pub(super) fn defect(facts: &KeyFacts, now: i64) -> Option<Defect> {
    let state = |problem: String, remedy: String| Some(Defect { problem, remedy, state: true });
    let arn = &facts.arn;
    let another = "encrypt under another key: symmetric, for encryption and decryption";
    if facts.usage != "ENCRYPT_DECRYPT" || facts.spec != "SYMMETRIC_DEFAULT" {
        let problem =
            format!("is a {} key for {}; S3 needs SYMMETRIC_DEFAULT for ENCRYPT_DECRYPT", facts.spec, facts.usage);
        return Some(Defect { problem, remedy: another.to_owned(), state: false });
    }
    match facts.state.as_str() {
        "Enabled" | "Updating" => {}
        "Disabled" => return state("is disabled".into(), format!("enable it: aws kms enable-key --key-id {arn}")),
        "PendingDeletion" | "PendingReplicaDeletion" => {
            let when = facts.deletion.map(|at| format!(" on {}", date(at))).unwrap_or_default();
            let remedy = format!(
                "keep it: aws kms cancel-key-deletion --key-id {arn}, then aws kms enable-key --key-id {arn} (it comes \
                 back disabled)"
            );
            return state(format!("is to be deleted{when}"), remedy);
        }
        "PendingImport" => {
            return state("has no key material".into(), "import its material (aws kms import-key-material)".into());
        }
        "Unavailable" => {
            return state(
                "is unavailable: its key store cannot be reached".into(),
                "connect the key store, then try again".into(),
            );
        }
        "Creating" => return state("is still being made".into(), "try again in a minute".into()),
        other => return state(format!("is in state {other}"), "see the key in the KMS console".into()),
    }
    match facts.valid_to {
        Some(end) if end <= now => {
            state(format!("has imported material that expired on {}", date(end)), "import its material again".into())
        }
        _ => None,
    }
}

/// Seconds since 1970, for people.
fn date(seconds: i64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> KeyFacts {
        KeyFacts {
            arn: "arn:aws:kms:r:1:key/k".into(),
            state: "Enabled".into(),
            spec: "SYMMETRIC_DEFAULT".into(),
            usage: "ENCRYPT_DECRYPT".into(),
            manager: "CUSTOMER".into(),
            ..KeyFacts::default()
        }
    }

    #[test]
    fn every_state_has_its_verdict_and_remedy() {
        for (state, problem, remedy) in [
            ("Disabled", "disabled", "enable-key"),
            ("PendingDeletion", "deleted on 1970-01-02T00:00:00Z", "cancel-key-deletion"),
            ("PendingReplicaDeletion", "deleted", "cancel-key-deletion"),
            ("PendingImport", "material", "import"),
            ("Unavailable", "unavailable", "key store"),
            ("Creating", "being made", "again"),
            ("Something", "Something", "console"),
        ] {
            let facts = KeyFacts { state: state.into(), deletion: Some(86_400), ..key() };
            let found = defect(&facts, 0).unwrap();
            assert!(found.state && found.problem.contains(problem) && found.remedy.contains(remedy), "{found:?}");
        }
        for state in ["Enabled", "Updating"] {
            assert_eq!(defect(&KeyFacts { state: state.into(), ..key() }, 0), None);
        }
    }

    #[test]
    fn only_symmetric_keys_for_encryption_serve() {
        for (spec, usage) in
            [("RSA_2048", "ENCRYPT_DECRYPT"), ("HMAC_256", "GENERATE_VERIFY_MAC"), ("ECC_NIST_P256", "SIGN_VERIFY")]
        {
            let found = defect(&KeyFacts { spec: spec.into(), usage: usage.into(), ..key() }, 0).unwrap();
            assert!(!found.state && found.problem.contains(spec), "{found:?}");
        }
    }

    #[test]
    fn imported_material_expires_now_or_soon_or_not() {
        let until = |end| KeyFacts { valid_to: Some(end), ..key() };
        assert!(defect(&until(100), 100).unwrap().problem.contains("expired"));
        assert_eq!(defect(&until(101), 100), None);
        assert_eq!(summary(&until(100 + SOON - 1), 100).0, Outcome::Warning);
        assert_eq!(summary(&until(100 + SOON), 100).0, Outcome::Passed);
    }

    #[test]
    fn the_encryption_context_is_that_of_s3() {
        let uri = S3Uri { bucket: "b".into(), key: "p/x".into() };
        let arn = |key: &str, bucket_key| DryRun::new(Use::Decrypt, key, &uri, bucket_key).arn;
        assert_eq!(arn("arn:aws:kms:r:1:key/k", true), "arn:aws:s3:::b");
        assert_eq!(arn("arn:aws:kms:r:1:key/k", false), "arn:aws:s3:::b/p/x");
        assert_eq!(arn("arn:aws-cn:kms:r:1:key/k", true), "arn:aws-cn:s3:::b");
        assert_eq!(arn("alias/x", false), "arn:aws:s3:::b/p/x");
    }
}
