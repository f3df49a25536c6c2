//! Looks at every input in S3, all at once: what is there, how it is encrypted, whether it can be read.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};

use super::probe::{self, CONCURRENCY, Probe};
use super::trouble::{Attempt, Trouble, directory};
use crate::aws::{Answer, CallError, Cause, Cloud, Encryption, Object, ObjectSummary};
use crate::preflight::report::{Check, Outcome};
use crate::preflight::tree::RemoteObject;
use crate::spec::S3Uri;
use crate::units::ByteSize;

/// Keys that a page of a listing has at most (S3 API Reference, `ListObjectsV2`).
const PAGE: u16 = 1000;

/// What was found out about all inputs in S3.
#[derive(Default)]
pub(super) struct Survey {
    /// What can be staged, in the order of inputs and keys.
    pub(super) found: Vec<InputObject>,
    /// Objects that are alike in who may read them.
    pub(super) groups: Vec<Group>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) checks: Vec<Check>,
}

/// A key below an input, or the input itself.
pub(in crate::preflight) struct InputObject {
    pub(super) object: RemoteObject,
    /// What its path is relative to: a prefix, or the key itself.
    pub(super) base: String,
}

/// Objects of one bucket and prefix under one key: who may read one, may read all.
pub(super) struct Group {
    /// The one that was read.
    pub(super) sample: S3Uri,
    pub(super) encryption: Encryption,
}

/// An input, and the keys it turned out to be.
struct Input {
    input: u32,
    base: String,
    keys: Vec<Candidate>,
}

struct Candidate {
    uri: S3Uri,
    listed: Option<ObjectSummary>,
    seen: Option<Object>,
}

/// Surveys `inputs`: position on the command line and URI of each.
pub(super) async fn survey(cloud: &Cloud, inputs: &[(u32, &S3Uri)]) -> Survey {
    let mut survey = Survey::default();
    let resolved: Vec<_> =
        stream::iter(inputs).map(|&(input, uri)| resolve(cloud, input, uri)).buffered(CONCURRENCY).collect().await;
    let mut known = Vec::new();
    for (&(_, uri), resolved) in inputs.iter().zip(resolved) {
        match resolved {
            Ok(resolved) => {
                survey.checks.extend(resolved.keys.first().and_then(|first| first.listed.as_ref()).map(|_| Check {
                    probe: Probe::List.name(),
                    subject: uri.to_string(),
                    key: None,
                    outcome: Outcome::Passed,
                    detail: format!("{} keys", resolved.keys.len()),
                    request_id: String::new(),
                }));
                known.push(resolved);
            }
            Err(trouble) => survey.troubles.push(*trouble),
        }
    }
    look(cloud, known, &mut survey).await;
    read_samples(cloud, &mut survey).await;
    survey
}

/// One object if it exists, else everything below it.
async fn resolve(cloud: &Cloud, input: u32, uri: &S3Uri) -> Result<Input, Box<Trouble>> {
    if uri.is_prefix() {
        return below(cloud, input, uri.clone()).await;
    }
    let error = match probe::head(cloud, uri).await {
        Ok(Answer { value, .. }) => {
            let candidate = Candidate { uri: uri.clone(), listed: None, seen: Some(value) };
            return Ok(Input { input, base: uri.key.clone(), keys: vec![candidate] });
        }
        Err(error) => error,
    };
    match error.cause {
        Cause::NotFound if error.code != "NoSuchBucket" => below(cloud, input, uri.clone().into_prefix()).await,
        Cause::Denied => tell_apart(cloud, input, uri, error).await,
        _ => Err(Box::new(Trouble::of_input(Attempt::Head, input, uri, error))),
    }
}

/// Without the right to list, S3 says "denied" of what does not exist, too (S3 API Reference, `HeadObject`).
async fn tell_apart(cloud: &Cloud, input: u32, uri: &S3Uri, error: CallError) -> Result<Input, Box<Trouble>> {
    match cloud.objects().list(&uri.bucket, &uri.key, None, 1).await {
        Ok(Answer { value: page, .. }) if page.objects.iter().any(|listed| listed.key == uri.key) => {
            Err(Box::new(Trouble::of_input(Attempt::Head, input, uri, error)))
        }
        Ok(_) => below(cloud, input, uri.clone().into_prefix()).await,
        Err(_) => Err(Box::new(Trouble::of_input(Attempt::HeadOrList, input, uri, error))),
    }
}

/// Everything below a prefix.
async fn below(cloud: &Cloud, input: u32, prefix: S3Uri) -> Result<Input, Box<Trouble>> {
    let mut keys = Vec::new();
    let mut start = None;
    loop {
        let page = match cloud.objects().list(&prefix.bucket, &prefix.key, start.as_ref(), PAGE).await {
            Ok(answer) => answer.value,
            Err(error) => return Err(Box::new(Trouble::of_input(Attempt::List, input, &prefix, error))),
        };
        keys.extend(page.objects.into_iter().map(|listed| {
            let uri = prefix.with_key(listed.key.clone());
            Candidate { uri, listed: Some(listed), seen: None }
        }));
        match page.next {
            next @ Some(_) => start = next,
            None => break,
        }
    }
    if keys.is_empty() {
        return Err(Box::new(Trouble::of_input(Attempt::List, input, &prefix, nothing_there())));
    }
    Ok(Input { input, base: prefix.key, keys })
}

/// [`Probe::Head`] for every object; directory markers have nothing to look at.
async fn look(cloud: &Cloud, inputs: Vec<Input>, survey: &mut Survey) {
    let all = inputs.into_iter().flat_map(|Input { input, base, keys }| {
        keys.into_iter().map(move |candidate| (input, base.clone(), candidate))
    });
    let looked = stream::iter(all).map(async |(input, base, candidate): (u32, String, Candidate)| {
        let seen = match (&candidate.seen, &candidate.listed) {
            (Some(seen), _) => Ok(seen.clone()),
            (None, Some(listed)) if is_marker(listed) => Ok(Object::default()),
            _ => probe::head(cloud, &candidate.uri).await.map(|answer| answer.value),
        };
        (input, base, candidate, seen)
    });
    let mut looked = std::pin::pin!(looked.buffered(CONCURRENCY));
    while let Some((input, base, Candidate { uri, listed, .. }, seen)) = looked.next().await {
        match seen.map_err(|error| vanished(error, listed.is_some())).and_then(|seen| same(listed, seen)) {
            Ok(seen) if seen.archived => {
                let trouble = Trouble::of_input(Attempt::Head, input, &uri, archived(&seen));
                survey.troubles.push(trouble);
            }
            Ok(seen) => survey.found.push(InputObject { object: RemoteObject { input, uri, seen }, base }),
            Err(error) => survey.troubles.push(Trouble::of_input(Attempt::Head, input, &uri, error)),
        }
    }
}

fn is_marker(listed: &ObjectSummary) -> bool {
    listed.size == 0 && listed.key.ends_with('/')
}

/// [`Probe::Read`] for one object of each group.
async fn read_samples(cloud: &Cloud, survey: &mut Survey) {
    let samples = samples(&survey.found);
    let read: Vec<_> = stream::iter(&samples)
        .map(|sample| {
            let RemoteObject { uri, seen, .. } = &survey.found[sample.at].object;
            probe::read(cloud, uri, Some(seen))
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    for (sample, read) in samples.into_iter().zip(read) {
        let RemoteObject { input, uri, seen } = &survey.found[sample.at].object;
        let subject = format!("s3://{}/{}", uri.bucket, sample.prefix);
        survey.checks.push(Check {
            probe: Probe::Head.name(),
            subject,
            key: seen.encryption.key.clone(),
            outcome: Outcome::Passed,
            detail: format!("{} objects, {}, encrypted by {}", sample.objects, ByteSize(sample.bytes), seen.encryption),
            request_id: String::new(),
        });
        let (outcome, detail, request_id) = match &read {
            Ok(answer) => (Outcome::Passed, "can be read".to_owned(), answer.request_id.clone()),
            Err(error) => (Outcome::Failed, error.to_string(), error.request_id.clone()),
        };
        survey.checks.push(Check {
            probe: Probe::Read.name(),
            subject: uri.to_string(),
            key: seen.encryption.key.clone(),
            outcome,
            detail,
            request_id,
        });
        let (sample, encryption) = (uri.clone(), seen.encryption.clone());
        survey.groups.push(Group { sample, encryption });
        if let Err(error) = read {
            survey.troubles.push(Trouble::of_input(Attempt::Read, *input, uri, error).under(&seen.encryption));
        }
    }
}

/// One object of each group: the first that is not empty, else the first.
struct Sample {
    at: usize,
    prefix: String,
    objects: u64,
    bytes: u64,
}

fn samples(found: &[InputObject]) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut of_group = BTreeMap::new();
    for (at, InputObject { object, base }) in found.iter().enumerate() {
        let RemoteObject { uri, seen, .. } = object;
        if seen.etag.is_none() && uri.key.ends_with('/') {
            continue;
        }
        let prefix = directory(base);
        let group = *of_group.entry((&uri.bucket, prefix, &seen.encryption)).or_insert_with(|| {
            samples.push(Sample { at, prefix: prefix.to_owned(), objects: 0, bytes: 0 });
            samples.len() - 1
        });
        let sample = &mut samples[group];
        if found[sample.at].object.seen.size == 0 && seen.size > 0 {
            sample.at = at;
        }
        sample.objects += 1;
        sample.bytes += seen.size;
    }
    samples
}

/// What was listed must be what is seen a moment later.
fn same(listed: Option<ObjectSummary>, seen: Object) -> Result<Object, CallError> {
    let other = |listed: &ObjectSummary| listed.size != seen.size || listed.etag.is_some() && listed.etag != seen.etag;
    match listed {
        Some(listed) if !is_marker(&listed) && other(&listed) => {
            let text = "the object changed between listing and looking at it";
            Err(CallError::unanswered(Probe::Head.name(), Cause::Precondition, text))
        }
        _ => Ok(seen),
    }
}

fn vanished(error: CallError, was_listed: bool) -> CallError {
    if was_listed && error.cause == Cause::NotFound { CallError { cause: Cause::Precondition, ..error } } else { error }
}

fn archived(seen: &Object) -> CallError {
    let class = seen.storage_class.as_deref().unwrap_or("archive");
    CallError::unanswered(Probe::Head.name(), Cause::Archived, format!("storage class {class}, not restored"))
}

fn nothing_there() -> CallError {
    CallError::unanswered(Probe::List.name(), Cause::NotFound, "no key begins so")
}
