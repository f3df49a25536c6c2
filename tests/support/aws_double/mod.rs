//! A double of S3, KMS and STS on ports of 127.0.0.1: S3 by `s3s`, authorisation by personas, everything recorded,
//! faults on order. It models AWS as AWS documents itself and shares no code with runseal.
//!
//! ```text
//! let double = Double::start(World::default());          // persona `runner`, buckets `inputs` and `outputs`, each under a key
//! double.put("inputs", "reads/a.fq", b"ACGT");               // under the bucket's default encryption, CRC-64/NVME
//! command.envs(double.environment("runner"));            // endpoints, Region, credentials
//!
//! // Rights: a persona may do everything but what its denials say. May be changed at any time.
//! double.change(|world| {
//!     world.persona("runner").deny(Denial::of("kms:Decrypt").on(OUTPUT_KEY).worded(Wording::NotAllowed(Layer::Identity)));
//!     world.key(OUTPUT_KEY).state = KeyState::Disabled;
//!     world.bucket("outputs").demands_sse = Some("aws:kms".into());
//!     world.object("inputs", "reads/a.fq").storage_class = Some("GLACIER".into());
//! });
//!
//! // Faults: the first that fits and is not used up strikes.
//! double.fault(Fault::on("UploadPart", Effect::slow_down()).at("outputs/*").times(2));
//! double.fault(Fault::on("GetObject", Effect::Truncate(1000)).after(1).times(1));
//! double.fault(Fault::on("UploadPart", Effect::change(|world| world.expire("runner"))).after(3).times(1));
//!
//! // The record.
//! assert_eq!(double.count("UploadPart"), 3);
//! assert!(double.calls().iter().all(|call| call.user_agent().contains("runseal/")));
//! assert_eq!(double.uploads(), []);                      // (bucket, key, upload id) of uploads in progress
//! assert_eq!(double.read("outputs", "result.txt").unwrap(), b"..."[..]);
//! ```
#![allow(dead_code, unused_imports, reason = "each test binary that includes the double uses a part of it")]

mod access;
mod checksum;
mod faults;
mod folder;
mod kms;
mod record;
mod server;
mod store;
mod sts;
#[cfg(test)]
mod tests;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

pub use faults::{Effect, Fault};
pub use kms::key_arn;
pub use record::{Call, Service};
pub use world::{
    ACCOUNT, Bucket, Credential, Denial, Encryption, FOREIGN_ACCOUNT, Grant, INPUT_KEY, Key, KeyState, Layer,
    MANAGED_KEY, OUTPUT_KEY, Object, Persona, REGION, Role, Upload, Via, Wording, World,
};

/// A running double. Stops when it is dropped.
pub struct Double {
    shared: Arc<server::Shared>,
    s3: SocketAddr,
    kms: SocketAddr,
    sts: SocketAddr,
    /// `None` only while the value is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Double {
    /// Starts a double of this world, with threads of its own.
    pub fn start(mut world: World) -> Self {
        world.complete();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("aws-double")
            .enable_all()
            .build()
            .expect("threads can be started");
        let shared = Arc::new(server::Shared::new(world));
        let port = |service| server::listen(&runtime, &shared, service).expect("a free port of 127.0.0.1");
        let (s3, kms, sts) = (port(Service::S3), port(Service::Kms), port(Service::Sts));
        Self { s3, kms, sts, shared, runtime: Some(runtime) }
    }

    /// Variables that let a client call as this persona, and keep it from every other configuration.
    pub fn environment(&self, persona: &str) -> Vec<(String, String)> {
        let (id, credential) = self.credentials(persona);
        let mut variables = vec![
            ("AWS_ENDPOINT_URL_S3".to_owned(), self.s3_endpoint()),
            ("AWS_ENDPOINT_URL_KMS".to_owned(), self.kms_endpoint()),
            ("AWS_ENDPOINT_URL_STS".to_owned(), self.sts_endpoint()),
            ("AWS_REGION".to_owned(), REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID".to_owned(), id),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), credential.secret),
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
            ("AWS_CONFIG_FILE".to_owned(), "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE".to_owned(), "/dev/null".to_owned()),
        ];
        variables.extend(credential.token.map(|token| ("AWS_SESSION_TOKEN".to_owned(), token)));
        variables
    }

    /// Access key id and the rest of the newest credentials of a persona that have not expired; makes a persona who may
    /// do everything if there is none of this name.
    pub fn credentials(&self, persona: &str) -> (String, Credential) {
        let mut world = self.shared.world.lock();
        world.persona(persona);
        let good = |world: &World| {
            let mut found = world.credentials.iter().filter(|(_, c)| c.persona == persona && !c.expired);
            found.next_back().map(|(id, credential)| (id.clone(), credential.clone()))
        };
        good(&world).unwrap_or_else(|| {
            let id = world.issue(persona);
            let credential = world.credentials[&id].clone();
            (id, credential)
        })
    }

    /// `http://127.0.0.1:PORT` of S3.
    pub fn s3_endpoint(&self) -> String {
        format!("http://{}", self.s3)
    }

    /// The same of KMS.
    pub fn kms_endpoint(&self) -> String {
        format!("http://{}", self.kms)
    }

    /// The same of STS.
    pub fn sts_endpoint(&self) -> String {
        format!("http://{}", self.sts)
    }

    /// Changes the world, between two calls.
    pub fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.shared.world.lock())
    }

    /// Puts an object down, under the bucket's default encryption, with its CRC-64/NVME.
    pub fn put(&self, bucket: &str, key: &str, body: impl AsRef<[u8]>) {
        let body = Bytes::copy_from_slice(body.as_ref());
        let mut world = self.shared.world.lock();
        let mut encryption = world.bucket(bucket).encryption.clone();
        if encryption.uses_kms() && encryption.key.is_none() {
            encryption.key = Some(MANAGED_KEY.to_owned());
        }
        let mut object = Object::new(body, encryption);
        object.checksums.insert("crc64nvme".to_owned(), checksum::of("crc64nvme", &object.body));
        world.store(bucket, key, object);
    }

    /// Contents of an object, if there is one.
    pub fn read(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.object(bucket, key).map(|object| object.body)
    }

    /// An object and its facts, if there is one.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.shared.world.lock().buckets.get(bucket)?.objects.get(key).cloned()
    }

    /// Keys in a bucket, in order.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let world = self.shared.world.lock();
        world.buckets.get(bucket).map(|bucket| bucket.objects.keys().cloned().collect()).unwrap_or_default()
    }

    /// Bucket, key and id of every upload in progress.
    pub fn uploads(&self) -> Vec<(String, String, String)> {
        let world = self.shared.world.lock();
        world.uploads.iter().map(|(id, upload)| (upload.bucket.clone(), upload.key.clone(), id.clone())).collect()
    }

    /// Orders a fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.lock().push(fault);
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.shared.faults.lock().clear();
    }

    /// Every call so far, in the order in which they were answered.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// Calls of one operation (`GetObject`, `DescribeKey`), whoever answered; those that S3 made of KMS not counted.
    pub fn calls_of(&self, operation: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.operation == operation && call.service != Service::KmsForS3);
        calls
    }

    /// Their number.
    pub fn count(&self, operation: &str) -> usize {
        self.calls_of(operation).len()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.shared.calls.lock().clear();
    }

    /// Data keys in the clear that KMS gave out: what must not be found anywhere.
    pub fn data_keys(&self) -> Vec<Vec<u8>> {
        self.shared.data_keys.lock().clone()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
