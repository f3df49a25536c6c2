//! A bucket in memory behind the traits of `aws`: counts calls, keeps their order, and fails on order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use runseal::aws::{
    Answer, CallError, Cause, Checksum, ChecksumAlgorithm, Cloud, DataKey, Encryption, EncryptionContext, Gate, Grant,
    Identity, IdentityService, KeyFacts, KeyService, Object, ObjectStore, ObjectSummary, Page, PageStart, Part, Pieces,
    Services, SseAlgorithm, Stored, UploadSettings,
};
use runseal::spec::S3Uri;

/// Name of the only bucket.
pub const BUCKET: &str = "bucket";
/// What its continuation tokens begin with.
const TOKEN: &str = "token:";
/// Pieces in which contents arrive: not a divisor of anything.
const PIECE: usize = 100_003;

/// What a call does instead of succeeding.
#[derive(Clone)]
pub enum Effect {
    /// Nothing but this error.
    Refuse(Cause, &'static str),
    /// Its work, but the answer is lost.
    Lose,
    /// Its work and then this, but the answer is lost and the call was sent again: it meets what it has made.
    Repeat(Arc<dyn Fn() + Send + Sync>),
    /// The body ends with an error after so many bytes.
    Cut(usize),
    /// This first, then its work.
    First(Arc<dyn Fn(&mut State) + Send + Sync>),
}

struct Fault {
    operation: &'static str,
    /// Calls that still go through before it strikes.
    after: u64,
    times: u64,
    effect: Effect,
}

/// An object.
#[derive(Clone, Default)]
pub struct Held {
    pub data: Bytes,
    pub etag: String,
    pub checksums: Vec<Checksum>,
    pub encryption: Encryption,
    pub modified: i64,
}

/// What the bucket holds and has seen.
#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Held>,
    /// By upload id: key, and parts by number.
    pub uploads: BTreeMap<String, (String, BTreeMap<u16, Bytes>)>,
    /// How new objects are encrypted.
    pub encryption: Encryption,
    /// Operation and key of every call, in order.
    pub calls: Vec<(&'static str, String)>,
    /// Bytes of every ranged read asked for.
    pub ranges: Vec<Option<Range<u64>>>,
    /// Bytes of request bodies under way, and the most at once.
    pub in_flight: (usize, usize),
    /// Requests under way, and the most at once.
    pub requests: (usize, usize),
    faults: Vec<Fault>,
    next: u64,
}

/// The bucket.
#[derive(Default)]
pub struct Bucket(pub Mutex<State>);

impl Bucket {
    pub fn new() -> Arc<Self> {
        let bucket = Self::default();
        bucket.0.lock().encryption =
            Encryption { algorithm: SseAlgorithm::Kms, key: Some("arn:key".into()), bucket_key: true };
        Arc::new(bucket)
    }

    /// A connection of its own, as new credentials would make.
    pub fn cloud(self: &Arc<Self>) -> Cloud {
        self.cloud_through(&Gate::default())
    }

    /// The same through this gate.
    pub fn cloud_through(self: &Arc<Self>, gate: &Gate) -> Cloud {
        let services = Services { objects: Arc::clone(self) as _, keys: Arc::new(Nobody), identity: Arc::new(Nobody) };
        Cloud::new(services, "eu-central-1".into(), gate).unwrap()
    }

    /// Puts an object down, with a full-object checksum of CRC-64/NVME.
    pub fn put(&self, key: &str, data: impl Into<Bytes>) {
        let data = data.into();
        let crc = crc64(&data);
        self.put_with(
            key,
            data,
            vec![Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value: crc.to_be_bytes().to_vec() }],
        );
    }

    pub fn put_with(&self, key: &str, data: impl Into<Bytes>, checksums: Vec<Checksum>) {
        let mut state = self.0.lock();
        let (etag, encryption) = (state.etag(), state.encryption.clone());
        let held = Held { data: data.into(), etag, checksums, encryption, modified: 1_700_000_000 };
        state.objects.insert(key.into(), held);
    }

    /// Lets calls of `operation` fail: after `after` more of them, `times` in a row.
    pub fn fault(&self, operation: &'static str, after: u64, times: u64, effect: Effect) {
        self.0.lock().faults.push(Fault { operation, after, times, effect });
    }

    pub fn count(&self, operation: &str) -> usize {
        self.0.lock().calls.iter().filter(|(name, _)| *name == operation).count()
    }

    pub fn forget_calls(&self) {
        let mut state = self.0.lock();
        state.calls.clear();
        state.ranges.clear();
        state.faults.clear();
    }

    pub fn contents(&self, key: &str) -> Option<Bytes> {
        Some(self.0.lock().objects.get(key)?.data.clone())
    }

    pub fn keys(&self) -> Vec<String> {
        self.0.lock().objects.keys().cloned().collect()
    }

    /// Counts a call; answers with what is to go wrong with it.
    fn called(&self, operation: &'static str, key: &str) -> Result<Option<Effect>, CallError> {
        let mut state = self.0.lock();
        state.calls.push((operation, key.to_owned()));
        let mut effect = None;
        for fault in state.faults.iter_mut().filter(|fault| fault.operation == operation && fault.times > 0) {
            if fault.after > 0 {
                fault.after -= 1;
            } else {
                fault.times -= 1;
                effect = Some(fault.effect.clone());
                break;
            }
        }
        match effect {
            Some(Effect::Refuse(cause, code)) => Err(error(operation, cause, code)),
            Some(Effect::First(change)) => {
                change(&mut state);
                Ok(None)
            }
            effect => Ok(effect),
        }
    }

    fn object(&self, key: &str, etag: Option<&str>) -> Result<Held, CallError> {
        let state = self.0.lock();
        let held = state.objects.get(key).ok_or_else(|| error("s3:GetObject", Cause::NotFound, "NoSuchKey"))?;
        match etag {
            Some(etag) if etag != held.etag => Err(error("s3:GetObject", Cause::Precondition, "PreconditionFailed")),
            _ => Ok(held.clone()),
        }
    }

    fn body(&self, delta: isize, bytes: usize) {
        let mut state = self.0.lock();
        let change = |(now, most): &mut (usize, usize), by: usize| {
            *now = if delta > 0 { *now + by } else { *now - by };
            *most = (*most).max(*now);
        };
        change(&mut state.in_flight, bytes);
        change(&mut state.requests, 1);
    }
}

impl State {
    fn etag(&mut self) -> String {
        self.next += 1;
        format!("\"{}\"", self.next)
    }

    fn store(&mut self, key: &str, data: Bytes, crc: u64, settings: &UploadSettings) -> Result<Stored, CallError> {
        if !settings.overwrite && self.objects.contains_key(key) {
            return Err(error("s3:PutObject", Cause::Precondition, "PreconditionFailed"));
        }
        if crc64(&data) != crc {
            return Err(error("s3:PutObject", Cause::Corrupt, "BadDigest"));
        }
        let (etag, encryption) = (self.etag(), self.encryption.clone());
        let value = crc.to_be_bytes().to_vec();
        let checksums = vec![Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value }];
        let held = Held { data, etag: etag.clone(), checksums, encryption: encryption.clone(), modified: 0 };
        self.objects.insert(key.into(), held);
        Ok(Stored { etag: Some(etag), version: Some(format!("v{}", self.next)), encryption })
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn list(
        &self,
        _: &str,
        prefix: &str,
        start: Option<&PageStart>,
        most: u16,
    ) -> Result<Answer<Page>, CallError> {
        self.called("ListObjectsV2", prefix)?;
        let state = self.0.lock();
        let after = start.map(|start| match start {
            PageStart::After(key) => key.as_str(),
            PageStart::Token(token) => token.strip_prefix(TOKEN).expect("a token of this bucket"),
        });
        let behind = |key: &str| after.is_none_or(|after| key > after);
        let found = state.objects.iter().filter(|(key, _)| key.starts_with(prefix) && behind(key));
        let listed = found.map(|(key, held)| ObjectSummary {
            key: key.clone(),
            size: held.data.len() as u64,
            etag: Some(held.etag.clone()),
        });
        let (all, most): (Vec<_>, usize) = (listed.collect(), most.into());
        let next = all.get(most).and_then(|_| Some(PageStart::Token(format!("{TOKEN}{}", all[..most].last()?.key))));
        answer(Page { objects: all.into_iter().take(most).collect(), next }, None)
    }

    async fn head(&self, _: &str, key: &str) -> Result<Answer<Object>, CallError> {
        let effect = self.called("HeadObject", key)?;
        answer(Object { checksums: Vec::new(), ..described(&self.object(key, None)?) }, effect)
    }

    async fn checksums(&self, _: &str, key: &str, etag: Option<&str>) -> Result<Answer<Object>, CallError> {
        let effect = self.called("Checksums", key)?;
        answer(described(&self.object(key, etag)?), effect)
    }

    async fn get(
        &self,
        _: &str,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<Answer<(Object, Pieces)>, CallError> {
        let effect = self.called("GetObject", key)?;
        self.0.lock().ranges.push(range.clone());
        let held = self.object(key, etag)?;
        let mut object = described(&held);
        let mut data = held.data;
        if let Some(range) = range {
            assert!(!range.is_empty(), "a range must not be empty");
            data = data.slice(range.start as usize..range.end as usize);
            object.checksums = Vec::new();
        }
        let (len, broken) = match effect {
            Some(Effect::Cut(len)) => (len.min(data.len()), true),
            _ => (data.len(), false),
        };
        let pieces: Vec<_> = (0..len).step_by(PIECE).map(|at| Ok(data.slice(at..(at + PIECE).min(len)))).collect();
        let end = broken.then(|| Err(error("s3:GetObject", Cause::Corrupt, "")));
        let lost = match effect {
            Some(Effect::Lose) => Some(Effect::Lose),
            _ => None,
        };
        answer((object, stream::iter(pieces.into_iter().chain(end)).boxed()), lost)
    }

    async fn put(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        let effect = self.called("PutObject", &target.key)?;
        self.body(1, body.len());
        tokio::task::yield_now().await;
        self.body(-1, body.len());
        let stored = self.0.lock().store(&target.key, body, crc64nvme, settings)?;
        answer(stored, effect)
    }

    async fn begin_upload(
        &self,
        target: &S3Uri,
        _: &UploadSettings,
    ) -> Result<Answer<(String, Encryption)>, CallError> {
        let effect = self.called("CreateMultipartUpload", &target.key)?;
        let mut state = self.0.lock();
        let id = state.etag();
        state.uploads.insert(id.clone(), (target.key.clone(), BTreeMap::new()));
        answer((id, state.encryption.clone()), effect)
    }

    async fn upload_part(
        &self,
        target: &S3Uri,
        upload: &str,
        number: u16,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Part>, CallError> {
        let effect = self.called("UploadPart", &target.key)?;
        assert_eq!(crc64(&body), crc64nvme, "BadDigest");
        self.body(1, body.len());
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        self.body(-1, body.len());
        let mut state = self.0.lock();
        let (_, parts) = state.uploads.get_mut(upload).ok_or_else(|| lost("s3:UploadPart"))?;
        parts.insert(number, body);
        answer(Part { number, etag: format!("\"p{number}\""), crc64nvme }, effect)
    }

    async fn complete_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        upload: &str,
        parts: &[Part],
        size: u64,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        let effect = self.called("CompleteMultipartUpload", &target.key)?;
        let mut state = self.0.lock();
        let (_, sent) = state.uploads.get(upload).ok_or_else(|| lost("s3:CompleteMultipartUpload"))?;
        assert!(parts.iter().map(|part| part.number).eq(1..=parts.len() as u16), "every part, in order");
        let data: Vec<&[u8]> = parts.iter().map(|part| &sent[&part.number][..]).collect();
        let data = data.concat();
        assert_eq!(data.len() as u64, size);
        let stored = state.store(&target.key, data.into(), crc64nvme, settings)?;
        state.uploads.remove(upload);
        answer(stored, effect)
    }

    async fn abort_upload(&self, target: &S3Uri, upload: &str) -> Result<Answer<()>, CallError> {
        let effect = self.called("AbortMultipartUpload", &target.key)?;
        self.0.lock().uploads.remove(upload);
        answer((), effect)
    }

    async fn remove(&self, target: &S3Uri, stored: &Stored) -> Result<Answer<()>, CallError> {
        let effect = self.called("DeleteObject", &target.key)?;
        let mut state = self.0.lock();
        match state.objects.get(&target.key) {
            Some(held) if Some(&held.etag) == stored.etag.as_ref() => state.objects.remove(&target.key),
            _ => return Err(error("s3:DeleteObject", Cause::Precondition, "PreconditionFailed")),
        };
        answer((), effect)
    }

    async fn bucket_encryption(&self, _: &str) -> Result<Answer<Encryption>, CallError> {
        answer(self.0.lock().encryption.clone(), None)
    }

    async fn bucket_region(&self, _: &str) -> Result<Answer<String>, CallError> {
        answer("eu-central-1".into(), None)
    }
}

fn described(held: &Held) -> Object {
    Object {
        size: held.data.len() as u64,
        etag: Some(held.etag.clone()),
        modified: held.modified,
        encryption: held.encryption.clone(),
        checksums: held.checksums.clone(),
        ..Object::default()
    }
}

fn answer<T>(value: T, effect: Option<Effect>) -> Result<Answer<T>, CallError> {
    match effect {
        Some(Effect::Lose) => Err(error("s3:Any", Cause::Unreachable, "")),
        Some(Effect::Repeat(then)) => {
            then();
            Err(CallError { repeated: true, ..error("s3:Any", Cause::Precondition, "PreconditionFailed") })
        }
        _ => Ok(Answer { value, request_id: "R1".into() }),
    }
}

fn lost(operation: &'static str) -> CallError {
    error(operation, Cause::NotFound, "NoSuchUpload")
}

fn error(operation: &'static str, cause: Cause, code: &str) -> CallError {
    CallError { code: code.into(), request_id: "R2".into(), ..CallError::unanswered(operation, cause, "on order") }
}

fn crc64(data: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, data)
}

/// KMS that describes one good key, STS that knows one caller.
struct Nobody;

#[async_trait]
impl IdentityService for Nobody {
    async fn whoami(&self) -> Result<Answer<Identity>, CallError> {
        answer(Identity { arn: "arn:me".into(), account: "111122223333".into(), user_id: "me".into() }, None)
    }
}

#[async_trait]
impl KeyService for Nobody {
    async fn describe(&self, key: &str) -> Result<Answer<KeyFacts>, CallError> {
        let facts = KeyFacts {
            arn: key.into(),
            state: "Enabled".into(),
            spec: "SYMMETRIC_DEFAULT".into(),
            usage: "ENCRYPT_DECRYPT".into(),
            manager: "CUSTOMER".into(),
            origin: "AWS_KMS".into(),
            ..KeyFacts::default()
        };
        answer(facts, None)
    }

    async fn try_generate(&self, _: &str, _: &EncryptionContext) -> Result<Answer<()>, CallError> {
        answer((), None)
    }

    async fn try_decrypt(&self, _: &str, _: &EncryptionContext) -> Result<Answer<()>, CallError> {
        answer((), None)
    }

    async fn try_grant(&self, _: &str, _: &str, _: &[&str]) -> Result<Answer<()>, CallError> {
        answer((), None)
    }

    async fn grants(&self, _: &str) -> Result<Answer<Vec<Grant>>, CallError> {
        answer(Vec::new(), None)
    }

    async fn generate(&self, _: &str, _: &EncryptionContext) -> Result<Answer<DataKey>, CallError> {
        answer(DataKey(zeroize::Zeroizing::new(vec![7; 32])), None)
    }
}
