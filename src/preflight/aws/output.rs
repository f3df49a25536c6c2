//! Tries an output in S3 as publishing will use it, and leaves nothing behind: an upload is begun, gets one byte, and
//! is aborted.

use super::probe::{self, Probe};
use super::trouble::{Attempt, Trouble};
use crate::aws::{Answer, CallError, Cause, Cloud, Encryption, Page, PageStart, UploadSettings};
use crate::preflight::report::{Check, Code, Finding, Outcome};
use crate::spec::{Arn, S3Uri, SAVED};

/// How the names of probes begin.
const PROBE: &str = ".runseal-preflight-";

/// What was found out about the output.
#[derive(Default)]
pub(super) struct Trial {
    /// How results will be encrypted, if an upload could be begun.
    pub(super) encryption: Option<Encryption>,
    /// Whether a part was accepted too.
    pub(super) writable: bool,
    /// What holds something already.
    pub(super) occupied: Option<Finding>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) checks: Vec<Check>,
}

/// Tries `prefix`, whose key is empty or ends with a slash, with the settings that every upload will have.
pub(super) async fn attempt(cloud: &Cloud, prefix: &S3Uri, settings: &UploadSettings) -> std::io::Result<Trial> {
    let target = prefix.below(&format!("{PROBE}{:016x}", getrandom::u64()?));
    // Two: the marker of the prefix itself may be one of them.
    let (mut trial, listed) =
        futures_util::future::join(upload(cloud, prefix, &target, settings), contents(cloud, prefix)).await;
    trial.note_contents(prefix, settings.overwrite, listed);
    Ok(trial)
}

/// The first objects below `prefix`, without those of runs whose command failed: they are in nobody's way.
async fn contents(cloud: &Cloud, prefix: &S3Uri) -> Result<Answer<Page>, CallError> {
    let saved = format!("{}{SAVED}", prefix.key);
    let mut listed = cloud.objects().list(&prefix.bucket, &prefix.key, None, 2).await?;
    if listed.value.objects.iter().any(|object| object.key.starts_with(&saved)) {
        // Behind all of them. What sorts before them was in the first answer.
        let after = PageStart::After(format!("{saved}\u{10ffff}"));
        let mut behind = cloud.objects().list(&prefix.bucket, &prefix.key, Some(&after), 2).await?;
        listed.value.objects.retain(|object| !object.key.starts_with(&saved));
        listed.value.objects.append(&mut behind.value.objects);
    }
    Ok(listed)
}

async fn upload(cloud: &Cloud, prefix: &S3Uri, target: &S3Uri, settings: &UploadSettings) -> Trial {
    let mut trial = Trial::default();
    let begun = cloud.objects().begin_upload(target, settings).await;
    let (upload, encryption) = match begun {
        Ok(Answer { value: (upload, encryption), request_id }) => {
            let detail = format!("an upload can be begun, encrypted by {encryption}");
            trial.note(Probe::Begin, prefix, &encryption, Outcome::Passed, detail, request_id);
            (upload, encryption)
        }
        Err(error) => {
            let asked = Encryption { key: settings.kms_key.clone(), ..Encryption::default() };
            trial.fail(Probe::Begin, Attempt::Begin, prefix, &asked, error);
            return trial;
        }
    };
    match probe::part(cloud, target, &upload).await {
        Ok(answer) => {
            trial.writable = true;
            let detail = "a part can be sent".to_owned();
            trial.note(Probe::Part, prefix, &encryption, Outcome::Passed, detail, answer.request_id);
        }
        Err(error) => trial.fail(Probe::Part, Attempt::Part, prefix, &encryption, error),
    }
    trial.note_abort(prefix, target, &upload, &encryption, cloud.objects().abort_upload(target, &upload).await);
    if let Some(unlike) = contradiction(settings, &encryption) {
        trial.note(Probe::Begin, prefix, &encryption, Outcome::Warning, unlike, String::new());
    }
    trial.encryption = Some(encryption);
    trial
}

/// S3 does as it is told, or refuses; a store that does neither is worth a word.
fn contradiction(settings: &UploadSettings, got: &Encryption) -> Option<String> {
    let algorithm = settings.sse.as_ref().filter(|asked| **asked != got.algorithm).is_some();
    // Anything but an ARN cannot be compared: the answer has the ARN always.
    let key =
        settings.kms_key.as_ref().filter(|asked| Arn::of_key(asked).is_some() && got.key.as_ref() != Some(*asked));
    (algorithm || key.is_some()).then(|| format!("results will be encrypted by {got}, which is not what was asked for"))
}

impl Trial {
    fn note(
        &mut self,
        probe: Probe,
        prefix: &S3Uri,
        encryption: &Encryption,
        outcome: Outcome,
        detail: String,
        request_id: String,
    ) {
        let (subject, key) = (prefix.to_string(), encryption.key.clone());
        self.checks.push(Check { probe: probe.name(), subject, key, outcome, detail, request_id });
    }

    fn fail(&mut self, probe: Probe, attempt: Attempt, prefix: &S3Uri, encryption: &Encryption, error: CallError) {
        self.note(probe, prefix, encryption, Outcome::Failed, error.to_string(), error.request_id.clone());
        let trouble = Trouble { uri: Some(prefix.clone()), ..Trouble::new(attempt, error) };
        self.troubles.push(trouble.under(encryption));
    }

    /// An upload that stays costs money and holds nothing but a byte: no reason not to run, but to be told.
    fn note_abort(
        &mut self,
        prefix: &S3Uri,
        target: &S3Uri,
        upload: &str,
        encryption: &Encryption,
        aborted: Result<Answer<()>, CallError>,
    ) {
        match aborted {
            Ok(answer) => {
                let detail = "the upload was aborted, nothing is left".to_owned();
                self.note(Probe::Abort, prefix, encryption, Outcome::Passed, detail, answer.request_id);
            }
            Err(error) => {
                let detail = format!(
                    "upload {upload} of {target} could not be aborted and stays: {error}; allow \
                     s3:AbortMultipartUpload, and give the bucket a lifecycle rule with AbortIncompleteMultipartUpload"
                );
                self.note(Probe::Abort, prefix, encryption, Outcome::Warning, detail, error.request_id.clone());
            }
        }
    }

    /// Without the right to list, each key is still refused when it exists.
    fn note_contents(&mut self, prefix: &S3Uri, overwrite: bool, listed: Result<Answer<Page>, CallError>) {
        let none = Encryption::default();
        let page = match listed {
            Ok(Answer { value, request_id }) => {
                let detail = "can be listed".to_owned();
                self.note(Probe::List, prefix, &none, Outcome::Passed, detail, request_id);
                value
            }
            Err(error) => {
                let what = match error.cause {
                    Cause::Denied => {
                        "may not be listed; results that exist are refused one by one when they are published"
                    }
                    _ => "could not be listed",
                };
                self.note(
                    Probe::List,
                    prefix,
                    &none,
                    Outcome::Unknown,
                    format!("{what}: {error}"),
                    error.request_id.clone(),
                );
                return;
            }
        };
        let mut others = page.objects.iter().filter(|listed| listed.key != prefix.key || listed.size > 0);
        if let Some(first) = others.next().filter(|_| !overwrite) {
            let problem = format!("holds objects already, the first is `{}`", first.key.escape_debug());
            let remedy = "choose an empty or new prefix, or allow replacing with --overwrite".to_owned();
            self.occupied = Some(Finding::new(Code::OutputNotEmpty, prefix.to_string(), problem, remedy));
        }
    }
}
