//! The adapter of the AWS SDK, against a plain S3 server in this process.

mod environment;
mod failures;
mod wire;

use std::net::SocketAddr;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use futures_util::TryStreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use runseal::aws::{
    CallError, Cause, ChecksumAlgorithm, Cloud, CloudConfig, Credentials, Gate, Pieces, UploadSettings,
};
use runseal::spec::S3Uri;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

/// A server with an empty bucket, and a cloud that speaks to it.
pub struct Place {
    pub cloud: Cloud,
    _server: tokio::runtime::Runtime,
    _root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("data")).unwrap();
        let server = tokio::runtime::Runtime::new().unwrap();
        let address = server.block_on(serve(root.path()));
        Self {
            cloud: Cloud::connect(&config(&format!("http://{address}")), &Gate::default()).unwrap(),
            _server: server,
            _root: root,
        }
    }
}

fn config(endpoint: &str) -> CloudConfig {
    let mut config = CloudConfig::new("sdk-test".parse().unwrap());
    config.region = Some("eu-central-1".into());
    config.endpoints.s3 = Some(endpoint.into());
    config.credentials = Some(Credentials::new("AKIAIOSFODNN7EXAMPLE", "a-secret-access-key", None));
    config
}

async fn serve(root: &std::path::Path) -> SocketAddr {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single("AKIAIOSFODNN7EXAMPLE", "a-secret-access-key"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    address
}

fn target(key: &str) -> S3Uri {
    S3Uri { bucket: "data".into(), key: key.into() }
}

pub fn crc(data: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, data)
}

pub async fn all(pieces: Pieces) -> Result<Vec<u8>, CallError> {
    let pieces: Vec<Bytes> = pieces.try_collect().await?;
    Ok(pieces.concat())
}

#[test]
fn an_object_goes_up_and_comes_down_whole_and_in_ranges() {
    let place = Place::new();
    let store = place.cloud.objects();
    let data: Bytes = (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    place.cloud.block_on(async {
        store.put(&target("a/b c+d.bin"), &UploadSettings::default(), data.clone(), crc(&data)).await.unwrap();
        let page = store.list("data", "a/", None, 1000).await.unwrap().value;
        assert_eq!(page.objects.len(), 1);
        assert_eq!((page.objects[0].key.as_str(), page.objects[0].size), ("a/b c+d.bin", 400_000));
        let head = store.head("data", "a/b c+d.bin").await.unwrap().value;
        assert_eq!(head.size, 400_000);
        let (object, pieces) = store.get("data", "a/b c+d.bin", head.etag.as_deref(), None).await.unwrap().value;
        assert_eq!(object.size, 400_000);
        assert_eq!(all(pieces).await.unwrap(), data);
        let whole = object.checksums.iter().find(|sum| sum.algorithm == ChecksumAlgorithm::Crc64Nvme).unwrap();
        assert_eq!(whole.value, crc(&data).to_be_bytes());
        let range = Some(100_000..100_007);
        let (object, pieces) = store.get("data", "a/b c+d.bin", head.etag.as_deref(), range).await.unwrap().value;
        assert_eq!((object.size, object.checksums), (400_000, vec![]));
        assert_eq!(all(pieces).await.unwrap(), data[100_000..100_007]);
    });
}

#[test]
fn parts_become_one_object() {
    let place = Place::new();
    let store = place.cloud.objects();
    let data = Bytes::from(vec![7u8; 11 << 20]);
    place.cloud.block_on(async {
        let (to, settings) = (target("big"), UploadSettings::default());
        let (upload, _) = store.begin_upload(&to, &settings).await.unwrap().value;
        let mut parts = Vec::new();
        for (at, range) in [(1, 0..5 << 20), (2, 5 << 20..10 << 20), (3, 10 << 20..11 << 20)] {
            let body = data.slice(range);
            let crc = crc(&body);
            parts.push(store.upload_part(&to, &upload, at, body, crc).await.unwrap().value);
        }
        let size = data.len() as u64;
        store.complete_upload(&to, &settings, &upload, &parts, size, crc(&data)).await.unwrap();
        let (object, pieces) = store.get("data", "big", None, None).await.unwrap().value;
        assert_eq!(object.size, size);
        assert_eq!(all(pieces).await.unwrap(), data);
        let (upload, _) = store.begin_upload(&target("gone"), &settings).await.unwrap().value;
        store.abort_upload(&target("gone"), &upload).await.unwrap();
    });
}

#[test]
fn failures_have_causes() {
    let place = Place::new();
    let store = place.cloud.objects();
    place.cloud.block_on(async {
        let body = Bytes::from_static(b"hello");
        let settings = UploadSettings::default();
        let missing = store.head("data", "missing").await.unwrap_err();
        assert_eq!((missing.cause, missing.status), (Cause::NotFound, 404), "{missing}");
        let missing = store.get("data", "missing", None, None).await.map(drop).unwrap_err();
        assert_eq!((missing.cause, missing.code.as_str()), (Cause::NotFound, "NoSuchKey"), "{missing}");
        let wrong = store.put(&target("wrong"), &settings, body.clone(), 1).await.unwrap_err();
        assert_eq!(wrong.cause, Cause::Corrupt, "{wrong}");
        store.put(&target("x"), &settings, body.clone(), crc(&body)).await.unwrap();
        let taken = store.put(&target("x"), &settings, body.clone(), crc(&body)).await.unwrap_err();
        assert_eq!((taken.cause, taken.status), (Cause::Precondition, 412), "{taken}");
        let over = UploadSettings { overwrite: true, ..settings };
        store.put(&target("x"), &over, body.clone(), crc(&body)).await.unwrap();
    });
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let mut config = config("http://127.0.0.1:1");
    config.attempts = 1;
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    let error = cloud.block_on(cloud.objects().head("data", "x")).unwrap_err();
    assert_eq!((error.operation, error.cause), ("s3:HeadObject", Cause::Unreachable), "{error}");
}

// promise: T-36
#[test]
fn plain_http_stays_on_this_machine() {
    for endpoint in ["http://s3.example.org", "http://10.0.0.1:9000", "http://127.0.0.1.example.org", "ftp://x", "x"] {
        let error = Cloud::connect(&config(endpoint), &Gate::default()).err().expect(endpoint);
        assert_eq!(error.cause, Cause::Configuration, "{endpoint}: {error}");
    }
    for endpoint in ["http://localhost:9000", "http://[::1]:9000", "http://127.1.2.3", "https://s3.example.org"] {
        assert!(Cloud::connect(&config(endpoint), &Gate::default()).is_ok(), "{endpoint}");
    }
}
