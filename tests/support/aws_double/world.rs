//! What exists and who may do what: buckets, keys, personas and their denials. Plain data, changed live by tests.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::Folder;

/// Region of everything that does not say otherwise.
pub const REGION: &str = "eu-central-1";
/// Account of everything that does not say otherwise.
pub const ACCOUNT: &str = "111122223333";
/// An account that is not ours.
pub const FOREIGN_ACCOUNT: &str = "444455556666";
/// Key of bucket `inputs`.
pub const INPUT_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-000000000001";
/// Key of bucket `outputs`.
pub const OUTPUT_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-000000000002";
/// The AWS managed key `aws/s3` of [`ACCOUNT`].
pub const MANAGED_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-00000000005a";

/// Everything the double knows. [`World::default`] has the persona `runner`, who may do everything, the buckets `inputs` and
/// `outputs`, each under a customer managed key with a bucket key, and the key `aws/s3`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct World {
    /// Buckets by name.
    pub buckets: BTreeMap<String, Bucket>,
    /// Keys by ARN.
    pub keys: BTreeMap<String, Key>,
    /// Personas by name.
    pub personas: BTreeMap<String, Persona>,
    /// Roles that can be assumed, by ARN.
    pub roles: BTreeMap<String, Role>,
    /// Credentials by access key id. [`World::persona`] makes the first of each persona.
    pub credentials: BTreeMap<String, Credential>,
    /// Uploads in progress, by id.
    #[serde(skip)]
    pub uploads: BTreeMap<String, Upload>,
    /// Counts whatever needs a new name: uploads, versions, credentials.
    #[serde(skip)]
    pub(super) counter: u64,
    /// Where objects are kept, if anywhere.
    #[serde(skip)]
    pub(super) folder: Folder,
}

/// A bucket and what is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bucket {
    /// Who owns it.
    pub account: String,
    /// Where it is. Requests signed for another Region are redirected.
    pub region: String,
    /// Its default encryption.
    pub encryption: Encryption,
    /// Its policy denies uploads whose `x-amz-server-side-encryption` header is not this one.
    pub demands_sse: Option<String>,
    /// Its policy denies uploads whose `x-amz-server-side-encryption-aws-kms-key-id` header is not this one.
    pub demands_key: Option<String>,
    /// Whether answers carry version ids. Only the newest version is kept.
    pub versioned: bool,
    /// Whether listings name the `ETag` of each key, as those of S3 do.
    pub lists_etags: bool,
    /// Objects by key.
    #[serde(skip)]
    pub objects: BTreeMap<String, Object>,
}

/// How an object, an upload or a bucket is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub algorithm: String,
    /// ARN of the key; `None` with `aws:kms` is `aws/s3`.
    pub key: Option<String>,
    /// Whether a bucket key stands between: then the encryption context is the bucket's ARN.
    pub bucket_key: bool,
}

/// An object. Tests may change any of it.
#[derive(Clone, Debug)]
pub struct Object {
    /// Contents.
    pub body: Bytes,
    /// `ETag`, without quotes. MD5 only if nothing but SSE-S3 encrypts it and it came in one piece, as with S3.
    pub etag: String,
    /// `Last-Modified`.
    pub modified: SystemTime,
    /// Encryption at rest.
    pub encryption: Encryption,
    /// Checksums by algorithm as in header names (`crc64nvme`, `sha256`): base 64, composite ones with `-parts`.
    pub checksums: BTreeMap<String, String>,
    /// `x-amz-storage-class`; `None` is `STANDARD`.
    pub storage_class: Option<String>,
    /// `x-amz-restore`, as in `ongoing-request="false", expiry-date="..."`.
    pub restore: Option<String>,
    /// Version id, if the bucket keeps versions.
    pub version: Option<String>,
    /// `x-amz-meta-*`.
    pub metadata: BTreeMap<String, String>,
}

/// A multipart upload in progress.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Who began it.
    pub persona: String,
    /// Encryption of the object to come.
    pub encryption: Encryption,
    /// Algorithm of its checksum, as in header names; S3's own CRC-64/NVME if none was asked for.
    pub algorithm: String,
    /// Whether the algorithm was asked for; then parts may have no other.
    pub algorithm_given: bool,
    /// Whether that checksum is of the whole object rather than of the checksums of its parts.
    pub full_object: bool,
    /// Parts by number.
    pub parts: BTreeMap<i32, UploadedPart>,
    /// `x-amz-meta-*`.
    pub metadata: BTreeMap<String, String>,
}

/// A part of an upload.
#[derive(Clone, Debug)]
pub struct UploadedPart {
    /// Contents.
    pub body: Bytes,
    /// `ETag`, without quotes.
    pub etag: String,
}

/// `KeyState` (KMS Developer Guide, "Key states of AWS KMS keys").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// A replica that is being made.
    Creating,
    /// Usable.
    Enabled,
    /// Switched off.
    Disabled,
    /// To be deleted.
    PendingDeletion,
    /// Without its imported material.
    PendingImport,
    /// A primary that waits for its replicas to be deleted.
    PendingReplicaDeletion,
    /// Its key store cannot be reached.
    Unavailable,
    /// Usable, while its primary Region changes.
    Updating,
}

/// A key of KMS.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Key {
    /// State.
    pub state: KeyState,
    /// `KeySpec`.
    pub spec: String,
    /// `KeyUsage`.
    pub usage: String,
    /// `KeyManager`: `CUSTOMER` or `AWS`. What AWS manages cannot be used but through its service.
    pub manager: String,
    /// `Origin`.
    pub origin: String,
    /// `DeletionDate`, seconds since 1970.
    pub deletion: Option<i64>,
    /// `ValidTo`, seconds since 1970.
    pub valid_to: Option<i64>,
    /// `MultiRegion`.
    pub multi_region: bool,
    /// Names such as `alias/runs`.
    pub aliases: Vec<String>,
    /// Grants.
    pub grants: Vec<Grant>,
}

/// A grant on a key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grant {
    /// Id.
    pub id: String,
    /// Who may use it.
    pub grantee: String,
    /// What it allows.
    pub operations: Vec<String>,
}

/// Somebody who calls. May do everything but what `denials` say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Persona {
    /// ARN, as messages and `GetCallerIdentity` show it. Empty in JSON: that of [`Persona::named`].
    pub arn: String,
    /// What it may not do. The first that fits decides the text.
    pub denials: Vec<Denial>,
}

/// A role that others can assume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Role {
    /// The persona whose denials its sessions have.
    pub persona: String,
    /// Personas that may assume it; empty: all.
    pub trusts: Vec<String>,
}

/// Credentials, and whom they select.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credential {
    /// Whom.
    pub persona: String,
    /// Secret access key.
    pub secret: String,
    /// Session token, if they are temporary.
    pub token: Option<String>,
    /// ARN of the session of a role, which stands in for the persona's.
    pub session: Option<String>,
    /// Whether they have expired.
    pub expired: bool,
}

/// Something a persona may not do. Made by [`Denial::of`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Denial {
    /// Actions, with `*`: `kms:Decrypt`, `s3:Get*`.
    pub action: String,
    /// ARNs, with `*`.
    pub resource: String,
    /// Whether only calls of KMS by the persona itself, or only those that S3 makes for it.
    pub via: Via,
    /// Not if the encryption context `aws:s3:arn` fits this, with `*` (an Allow with a condition).
    pub unless_context: Option<String>,
    /// How AWS says it.
    pub wording: Wording,
}

/// Who calls KMS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// Whoever.
    #[default]
    Any,
    /// S3, for the persona: what a policy with `aws:SourceVpce` denies.
    S3,
    /// The persona: what a policy with `kms:ViaService` denies.
    Direct,
}

/// How a denial reads (IAM User Guide, "Troubleshoot access denied error messages").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wording {
    /// `because no ... policy allows the ... action`.
    NotAllowed(Layer),
    /// `with an explicit deny in a ... policy`.
    Explicit(Layer),
    /// Another account's resource, or none: `on this resource because the resource does not exist in this Region, ...`.
    Foreign,
    /// The same for a ciphertext: `on the resource associated with this ciphertext because ...`.
    ForeignCiphertext,
    /// As before 2020: `The ciphertext refers to a customer master key that does not exist, ...`.
    OldCiphertext,
    /// `Access Denied` and nothing else.
    Plain,
}

/// Kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// Of the user or role.
    Identity,
    /// Of the key or bucket.
    Resource,
    /// Of the VPC endpoint.
    Endpoint,
    /// Of the session.
    Session,
    /// Permissions boundary.
    Boundary,
    /// Of the organisation, on principals.
    ServiceControl,
    /// Of the organisation, on resources.
    ResourceControl,
}

impl World {
    /// A world without anything but the key `aws/s3`.
    pub fn empty() -> Self {
        let managed = Key { manager: "AWS".to_owned(), aliases: vec!["alias/aws/s3".to_owned()], ..Key::default() };
        Self {
            buckets: BTreeMap::new(),
            keys: BTreeMap::from([(MANAGED_KEY.to_owned(), managed)]),
            personas: BTreeMap::new(),
            roles: BTreeMap::new(),
            credentials: BTreeMap::new(),
            uploads: BTreeMap::new(),
            counter: 0,
            folder: Folder::default(),
        }
    }

    /// The persona of this name; one who may do everything, with credentials, if there was none.
    pub fn persona(&mut self, name: &str) -> &mut Persona {
        if !self.credentials.values().any(|credential| credential.persona == name) {
            self.issue(name);
        }
        self.personas.entry(name.to_owned()).or_insert_with(|| Persona::named(name))
    }

    /// The bucket of this name; one with SSE-S3 if there was none.
    pub fn bucket(&mut self, name: &str) -> &mut Bucket {
        self.buckets.entry(name.to_owned()).or_default()
    }

    /// The key of this ARN; an enabled customer managed one if there was none.
    pub fn key(&mut self, arn: &str) -> &mut Key {
        self.keys.entry(arn.to_owned()).or_default()
    }

    /// The object, which must exist.
    pub fn object(&mut self, bucket: &str, key: &str) -> &mut Object {
        self.bucket(bucket).objects.get_mut(key).unwrap_or_else(|| panic!("no object {bucket}/{key}"))
    }

    /// New credentials for a persona; returns the access key id.
    pub fn issue(&mut self, persona: &str) -> String {
        let number = self.next();
        let id = format!("AKIA{number:04}{}", persona.to_uppercase().replace(['-', '_'], ""));
        let secret = format!("secret-{number}-of-{persona}");
        let credential = Credential { persona: persona.to_owned(), secret, ..Credential::default() };
        self.credentials.insert(id.clone(), credential);
        id
    }

    /// Lets every credential of a persona expire. [`World::issue`] makes new ones.
    pub fn expire(&mut self, persona: &str) {
        for credential in self.credentials.values_mut().filter(|credential| credential.persona == persona) {
            credential.expired = true;
        }
    }

    /// Merges JSON into the world (RFC 7396). Objects and uploads stay.
    ///
    /// # Errors
    /// The result is no world: a field is not known, or of another type.
    pub fn patch(&mut self, patch: &Value) -> Result<(), serde_json::Error> {
        let mut merged = serde_json::to_value(&*self)?;
        merge(&mut merged, patch);
        let mut changed: Self = serde_json::from_value(merged)?;
        for (name, bucket) in &mut self.buckets {
            if let Some(same) = changed.buckets.get_mut(name) {
                same.objects = std::mem::take(&mut bucket.objects);
            }
        }
        changed.uploads = std::mem::take(&mut self.uploads);
        changed.folder = std::mem::take(&mut self.folder);
        changed.counter = self.counter;
        *self = changed;
        self.complete();
        Ok(())
    }

    /// Gives every persona the ARN and the credentials that JSON left out.
    pub(super) fn complete(&mut self) {
        let names: Vec<String> = self.personas.keys().cloned().collect();
        for name in names {
            let persona = self.persona(&name);
            if persona.arn.is_empty() {
                persona.arn = Persona::named(&name).arn;
            }
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self::empty();
        world.persona("runner");
        for (bucket, key) in [("inputs", INPUT_KEY), ("outputs", OUTPUT_KEY)] {
            world.key(key);
            world.bucket(bucket).encryption = Encryption::kms(key);
        }
        world
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            encryption: Encryption::default(),
            demands_sse: None,
            demands_key: None,
            versioned: false,
            lists_etags: true,
            objects: BTreeMap::new(),
        }
    }
}

impl Default for Encryption {
    fn default() -> Self {
        Self { algorithm: "AES256".to_owned(), key: None, bucket_key: false }
    }
}

impl Encryption {
    /// SSE-KMS under `key`, with a bucket key.
    pub fn kms(key: &str) -> Self {
        Self { algorithm: "aws:kms".to_owned(), key: Some(key.to_owned()), bucket_key: true }
    }

    /// The same without a bucket key: the encryption context is the object's ARN.
    pub fn without_bucket_key(mut self) -> Self {
        self.bucket_key = false;
        self
    }

    /// Whether KMS has a say.
    pub fn uses_kms(&self) -> bool {
        self.algorithm != "AES256"
    }
}

impl Default for Key {
    fn default() -> Self {
        Self {
            state: KeyState::Enabled,
            spec: "SYMMETRIC_DEFAULT".to_owned(),
            usage: "ENCRYPT_DECRYPT".to_owned(),
            manager: "CUSTOMER".to_owned(),
            origin: "AWS_KMS".to_owned(),
            deletion: None,
            valid_to: None,
            multi_region: false,
            aliases: Vec::new(),
            grants: Vec::new(),
        }
    }
}

impl Persona {
    /// A session of a role of this name, in [`ACCOUNT`].
    pub fn named(name: &str) -> Self {
        Self { arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session"), denials: Vec::new() }
    }

    /// Takes a right away.
    pub fn deny(&mut self, denial: Denial) -> &mut Self {
        self.denials.push(denial);
        self
    }

    /// Gives all rights back.
    pub fn allow_everything(&mut self) -> &mut Self {
        self.denials.clear();
        self
    }

    /// Its account, from its ARN.
    pub fn account(&self) -> &str {
        account_of(&self.arn)
    }
}

impl Default for Denial {
    fn default() -> Self {
        Self {
            action: "*".to_owned(),
            resource: "*".to_owned(),
            via: Via::Any,
            unless_context: None,
            wording: Wording::NotAllowed(Layer::Identity),
        }
    }
}

impl Denial {
    /// No identity-based policy allows `action`, on anything.
    pub fn of(action: &str) -> Self {
        Self { action: action.to_owned(), ..Self::default() }
    }

    /// Only on these ARNs, with `*`.
    pub fn on(mut self, resource: &str) -> Self {
        self.resource = resource.to_owned();
        self
    }

    /// Said in another way.
    pub fn worded(mut self, wording: Wording) -> Self {
        self.wording = wording;
        self
    }

    /// Only of KMS calls made this way.
    pub fn via(mut self, via: Via) -> Self {
        self.via = via;
        self
    }

    /// Not if `aws:s3:arn` in the encryption context fits this, with `*`.
    pub fn unless_context(mut self, pattern: &str) -> Self {
        self.unless_context = Some(pattern.to_owned());
        self
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let fields = target.as_object_mut().expect("made one");
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Account in an ARN.
pub fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters.
pub fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    loop {
        if fits(rest, text) {
            return true;
        }
        let mut chars = text.chars();
        if chars.next().is_none() {
            return false;
        }
        text = chars.as_str();
    }
}
