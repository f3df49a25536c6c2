//! Listings and objects as a server of S3 tells them: refused by preflight, or staged below the input and nowhere else.
#![no_main]

use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use libfuzzer_sys::fuzz_target;
use runseal::audit::Trail;
use runseal::aws::{
    Answer, CallError, Cause, Cloud, DataKey, Encryption, EncryptionContext, Gate, Grant, Identity, IdentityService,
    KeyFacts, KeyService, Object, ObjectStore, ObjectSummary, Page, PageStart, Part, Pieces, Services, Stored,
    UploadSettings,
};
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, ROOT, Scratch, ScratchOptions};
use runseal::preflight::{Request, check};
use runseal::spec::{EngineChoice, InputSpec, MemoryLock, RunId, S3Uri, StagingRules};
use runseal::stage::{Progress, Stager};
use runseal::store::Store;

/// Pages of keys with their sizes.
type Pages = Vec<Vec<(String, u8)>>;

/// A bucket of which only reading is thought through.
#[derive(Default)]
struct Server(Mutex<Pages>);

fn answer<T>(value: T) -> Result<Answer<T>, CallError> {
    Ok(Answer { value, request_id: String::new() })
}

fn refusal<T>(operation: &'static str) -> Result<Answer<T>, CallError> {
    Err(CallError::unanswered(operation, Cause::Denied, "not here"))
}

impl Server {
    fn object(&self, key: &str) -> Result<Object, CallError> {
        let pages = self.0.lock().expect("no panic");
        let found = pages.iter().flatten().find(|(name, _)| name == key);
        let missing = || CallError::unanswered("s3:HeadObject", Cause::NotFound, "no such key");
        found.map(|(_, size)| Object { size: u64::from(*size), ..Object::default() }).ok_or_else(missing)
    }
}

#[async_trait]
impl ObjectStore for Server {
    async fn list(&self, _: &str, _: &str, start: Option<&PageStart>, _: u16) -> Result<Answer<Page>, CallError> {
        let pages = self.0.lock().expect("no panic");
        let number = match start {
            Some(PageStart::Token(number)) => number.parse().expect("a token of this server"),
            _ => 0,
        };
        let listed = pages.get(number).into_iter().flatten();
        let objects = listed.map(|(key, size)| ObjectSummary { key: key.clone(), size: u64::from(*size), etag: None });
        let next = (number + 1 < pages.len()).then(|| PageStart::Token((number + 1).to_string()));
        answer(Page { objects: objects.collect(), next })
    }

    async fn head(&self, _: &str, key: &str) -> Result<Answer<Object>, CallError> {
        answer(self.object(key)?)
    }

    async fn checksums(&self, _: &str, key: &str, _: Option<&str>) -> Result<Answer<Object>, CallError> {
        answer(self.object(key)?)
    }

    async fn get(
        &self,
        _: &str,
        key: &str,
        _: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<Answer<(Object, Pieces)>, CallError> {
        let object = self.object(key)?;
        let length = range.map_or(object.size, |range| range.end.min(object.size) - range.start.min(object.size));
        let body = Bytes::from(vec![b'x'; length as usize]);
        answer((object, stream::iter([Ok(body)]).boxed()))
    }

    async fn put(&self, _: &S3Uri, _: &UploadSettings, _: Bytes, _: u64) -> Result<Answer<Stored>, CallError> {
        refusal("s3:PutObject")
    }

    async fn begin_upload(&self, _: &S3Uri, _: &UploadSettings) -> Result<Answer<(String, Encryption)>, CallError> {
        refusal("s3:CreateMultipartUpload")
    }

    async fn upload_part(&self, _: &S3Uri, _: &str, _: u16, _: Bytes, _: u64) -> Result<Answer<Part>, CallError> {
        refusal("s3:UploadPart")
    }

    async fn complete_upload(
        &self,
        _: &S3Uri,
        _: &UploadSettings,
        _: &str,
        _: &[Part],
        _: u64,
        _: u64,
    ) -> Result<Answer<Stored>, CallError> {
        refusal("s3:CompleteMultipartUpload")
    }

    async fn abort_upload(&self, _: &S3Uri, _: &str) -> Result<Answer<()>, CallError> {
        refusal("s3:AbortMultipartUpload")
    }

    async fn remove(&self, _: &S3Uri, _: &Stored) -> Result<Answer<()>, CallError> {
        refusal("s3:DeleteObject")
    }

    async fn bucket_encryption(&self, _: &str) -> Result<Answer<Encryption>, CallError> {
        refusal("s3:GetBucketEncryption")
    }

    async fn bucket_region(&self, _: &str) -> Result<Answer<String>, CallError> {
        answer("eu-central-1".to_owned())
    }
}

struct Nobody;

#[async_trait]
impl IdentityService for Nobody {
    async fn whoami(&self) -> Result<Answer<Identity>, CallError> {
        answer(Identity::default())
    }
}

#[async_trait]
impl KeyService for Nobody {
    async fn describe(&self, _: &str) -> Result<Answer<KeyFacts>, CallError> {
        refusal("kms:DescribeKey")
    }

    async fn try_generate(&self, _: &str, _: &EncryptionContext) -> Result<Answer<()>, CallError> {
        refusal("kms:GenerateDataKey")
    }

    async fn try_decrypt(&self, _: &str, _: &EncryptionContext) -> Result<Answer<()>, CallError> {
        refusal("kms:Decrypt")
    }

    async fn try_grant(&self, _: &str, _: &str, _: &[&str]) -> Result<Answer<()>, CallError> {
        refusal("kms:CreateGrant")
    }

    async fn grants(&self, _: &str) -> Result<Answer<Vec<Grant>>, CallError> {
        refusal("kms:ListGrants")
    }

    async fn generate(&self, _: &str, _: &EncryptionContext) -> Result<Answer<DataKey>, CallError> {
        refusal("kms:GenerateDataKey")
    }
}

struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &'static str, _files: u64, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn file_done(&self) {}
    fn finish(&self) {}
}

static SERVER: LazyLock<Arc<Server>> = LazyLock::new(Arc::default);
static CLOUD: LazyLock<Cloud> = LazyLock::new(|| {
    let services = Services { objects: SERVER.clone(), keys: Arc::new(Nobody), identity: Arc::new(Nobody) };
    Cloud::new(services, "eu-central-1".to_owned(), &Gate::default()).expect("threads")
});

/// Names of the root of a scratch, and files below it.
fn contents(scratch: &Scratch) -> (Vec<Vec<u8>>, u64) {
    let mut names = Vec::new();
    scratch
        .readdir(ROOT, 2, &mut |entry| {
            names.push(entry.name.to_owned());
            true
        })
        .expect("the root can be read");
    (names, scratch.inodes())
}

fuzz_target!(|pages: Pages| {
    *SERVER.0.lock().expect("no panic") = pages;
    let inputs = [InputSpec::parse("s3://bucket/p/".as_ref(), |_| false).expect("an input")];
    let run: RunId = "fuzz".parse().expect("a name");
    let request = Request {
        run: &run,
        inputs: &inputs,
        output: None,
        uploads: &UploadSettings::default(),
        rules: StagingRules::default(),
        on_behalf: None,
        run_key: None,
        explain: false,
        space: 1 << 20,
    };
    let Ok(cleared) = check(&request, Some(&CLOUD)) else { return };
    let keyring = Keyring::new(EngineChoice::Portable, MemoryLock::Try).expect("keys");
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 20);
    let options = ScratchOptions { memory: 1 << 24, uid: 0, gid: 0, mode: 0o755 };
    let scratch = Arc::new(Scratch::new(store, options));
    let into = scratch.mkdir(ROOT, b"input", 0o755, &Creator { uid: 0, gid: 0, umask: 0o022 }).expect("made").ino;
    let stager = Stager::new(cleared, scratch.clone(), run, Arc::new(Silent), Arc::new(Trail::off()));
    let fetched = stager.fetch(into, Some(&CLOUD));
    let (names, inodes) = contents(&scratch);
    assert_eq!(names, [b"input".to_vec()], "nothing is made beside the input");
    if let Ok(totals) = fetched {
        assert!(inodes >= totals.files, "{inodes} inodes for {} files", totals.files);
    }
    scratch.check();
});
