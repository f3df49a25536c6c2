//! Who may do what: the S3 actions of each operation, the KMS actions that S3 takes for its caller, and the words in
//! which AWS refuses. A table, not a policy evaluator.

use s3s::access::{S3Access, S3AccessContext};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result};

use super::record::{Call, Service};
use super::server::{Caller, Shared};
use super::world::{Denial, Encryption, Key, KeyState, Layer, Object, Via, Wording, World, account_of, fits};

/// How a service refuses. Through S3, codes of KMS get their prefix and status by [`Refusal::through_s3`].
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Code.
    pub code: String,
    /// Text.
    pub message: String,
}

/// KMS action that S3 takes for its caller, and on which encryption.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    /// `GenerateDataKey`, under what the request asks for.
    DataKey,
    /// `Decrypt` of the upload.
    UploadKey,
    /// `Decrypt` of the object.
    ObjectKey,
    /// `Decrypt` of the object, if the request wants its checksum.
    ObjectKeyForChecksum,
}

/// Operation, its action, what it needs of KMS (S3 User Guide, "Using server-side encryption with AWS KMS keys"; API
/// Reference of each operation).
const RULES: [(&str, &str, Needs); 14] = [
    ("PutObject", "s3:PutObject", Needs::DataKey),
    ("GetObject", "s3:GetObject", Needs::ObjectKey),
    ("HeadObject", "s3:GetObject", Needs::ObjectKeyForChecksum),
    ("DeleteObject", "s3:DeleteObject", Needs::Nothing),
    ("CreateMultipartUpload", "s3:PutObject", Needs::DataKey),
    ("UploadPart", "s3:PutObject", Needs::UploadKey),
    ("CompleteMultipartUpload", "s3:PutObject", Needs::UploadKey),
    ("AbortMultipartUpload", "s3:AbortMultipartUpload", Needs::Nothing),
    ("ListParts", "s3:ListMultipartUploadParts", Needs::Nothing),
    ("ListMultipartUploads", "s3:ListBucketMultipartUploads", Needs::Nothing),
    ("ListObjectsV2", "s3:ListBucket", Needs::Nothing),
    ("GetBucketEncryption", "s3:GetEncryptionConfiguration", Needs::Nothing),
    ("GetBucketLocation", "s3:GetBucketLocation", Needs::Nothing),
    ("HeadBucket", "s3:ListBucket", Needs::Nothing),
];

/// The hook of `s3s`: called for every operation once its signature was checked.
pub struct Access(pub std::sync::Arc<Shared>);

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let caller = cx.extensions_mut().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| S3Error::from(S3ErrorCode::AccessDenied))?;
        let request = Request::new(cx, caller)?;
        let encryption = request.judge(&self.0)?;
        cx.extensions_mut().insert(encryption);
        Ok(())
    }
}

/// What is asked of S3.
struct Request<'a> {
    caller: Caller,
    operation: &'a str,
    bucket: String,
    key: Option<String>,
    headers: &'a axum::http::HeaderMap,
    upload: Option<String>,
}

impl<'a> Request<'a> {
    fn new(cx: &'a S3AccessContext<'_>, caller: Caller) -> S3Result<Self> {
        let (bucket, key) = match cx.s3_path() {
            S3Path::Root => return Err(S3ErrorCode::NotImplemented.into()),
            S3Path::Bucket { bucket } => (bucket.to_string(), None),
            S3Path::Object { bucket, key } => (bucket.to_string(), Some(key.to_string())),
        };
        let query = cx.uri().query().unwrap_or_default();
        let upload = query.split('&').find_map(|pair| pair.strip_prefix("uploadId=")).map(str::to_owned);
        Ok(Self { caller, operation: cx.s3_op().name(), bucket, key, headers: cx.headers(), upload })
    }

    /// Allows or refuses; returns the encryption of what is written or read.
    fn judge(&self, shared: &Shared) -> Result<Encryption, Refusal> {
        let world = shared.world.lock();
        let (_, action, needs) =
            RULES.iter().find(|(operation, ..)| *operation == self.operation).ok_or_else(Refusal::not_implemented)?;
        let bucket = world.buckets.get(&self.bucket).ok_or_else(Refusal::no_bucket)?;
        self.expects_owner(&bucket.account)?;
        if !self.owns_upload(&world, action) {
            world.allows(&self.caller, action, &self.arn()).map_err(Refusal::through_s3)?;
        }
        let encryption = match needs {
            Needs::Nothing => Encryption::default(),
            Needs::DataKey => self.encryption_asked_for(&world)?,
            Needs::UploadKey => self.upload.as_ref().and_then(|id| world.uploads.get(id)).map_or_else(
                || Err(Refusal::new(404, "NoSuchUpload", NO_UPLOAD)),
                |upload| Ok(upload.encryption.clone()),
            )?,
            Needs::ObjectKey | Needs::ObjectKeyForChecksum => self.object(&world)?.encryption.clone(),
        };
        if let Some(operation) = self.kms_operation(*needs) {
            self.ask_kms(shared, &world, operation, &encryption)?;
        }
        Ok(encryption)
    }

    fn expects_owner(&self, owner: &str) -> Result<(), Refusal> {
        match self.header("x-amz-expected-bucket-owner") {
            Some(expected) if expected != owner => Err(Refusal::plain()),
            _ => Ok(()),
        }
    }

    /// Who began an upload may list and abort it, unless a policy says no in as many words.
    fn owns_upload(&self, world: &World, action: &str) -> bool {
        let own = self.upload.as_ref().and_then(|id| world.uploads.get(id));
        let own = own.is_some_and(|upload| upload.persona == self.caller.persona);
        let implied = matches!(action, "s3:AbortMultipartUpload" | "s3:ListMultipartUploadParts");
        let denial = world.denial(&self.caller, action, &self.arn(), Via::Direct, None);
        own && implied && !denial.is_some_and(|denial| matches!(denial.wording, Wording::Explicit(_)))
    }

    /// The object that is to be read. Who may not list is not told that it does not exist.
    fn object<'w>(&self, world: &'w World) -> Result<&'w Object, Refusal> {
        let key = self.key.as_deref().unwrap_or_default();
        match world.buckets.get(&self.bucket).and_then(|bucket| bucket.objects.get(key)) {
            Some(object) if self.operation == "GetObject" && object.is_archived() => Err(Refusal::new(
                403,
                "InvalidObjectState",
                "The operation is not valid for the object's storage class",
            )),
            Some(object) => Ok(object),
            None => {
                let bucket = format!("arn:aws:s3:::{}", self.bucket);
                world.allows(&self.caller, "s3:ListBucket", &bucket).map_err(Refusal::through_s3)?;
                Err(Refusal::new(404, "NoSuchKey", "The specified key does not exist."))
            }
        }
    }

    /// The encryption of an upload: its headers, or the bucket's default; what the bucket policy demands is checked.
    fn encryption_asked_for(&self, world: &World) -> Result<Encryption, Refusal> {
        let bucket = &world.buckets[&self.bucket];
        let asked = self.header("x-amz-server-side-encryption");
        let asked_key = self.header("x-amz-server-side-encryption-aws-kms-key-id");
        let unmet = |demand: &Option<String>, header: Option<&str>| demand.is_some() && demand.as_deref() != header;
        if unmet(&bucket.demands_sse, asked) || unmet(&bucket.demands_key, asked_key) {
            let wording = Wording::Explicit(Layer::Resource);
            return Err(world.refuse(&self.caller, wording, "s3:PutObject", &self.arn()).through_s3());
        }
        let flag = self.header("x-amz-server-side-encryption-bucket-key-enabled").map(|flag| flag == "true");
        let mut encryption = match asked {
            None if asked_key.is_some() => {
                return Err(Refusal::new(400, "InvalidArgument", KEY_WITHOUT_ALGORITHM));
            }
            None => bucket.encryption.clone(),
            Some(algorithm @ ("AES256" | "aws:kms" | "aws:kms:dsse")) => {
                let key = asked_key.map(str::to_owned);
                let of_bucket = key == bucket.encryption.key || key.is_none();
                let bucket_key = of_bucket && bucket.encryption.bucket_key && algorithm == "aws:kms";
                Encryption { algorithm: algorithm.to_owned(), key, bucket_key }
            }
            Some(_) => return Err(Refusal::new(400, "InvalidArgument", BAD_ALGORITHM)),
        };
        if encryption.uses_kms() {
            let name = encryption.key.as_deref().unwrap_or("alias/aws/s3");
            encryption.key = Some(world.resolve(&self.caller, name).map_err(Refusal::through_s3)?);
            encryption.bucket_key = flag.unwrap_or(encryption.bucket_key);
        }
        Ok(encryption)
    }

    fn kms_operation(&self, needs: Needs) -> Option<&'static str> {
        match needs {
            Needs::Nothing => None,
            Needs::DataKey => Some("GenerateDataKey"),
            Needs::ObjectKeyForChecksum if self.header("x-amz-checksum-mode").is_none() => None,
            Needs::UploadKey | Needs::ObjectKey | Needs::ObjectKeyForChecksum => Some("Decrypt"),
        }
    }

    /// S3 asks KMS in the name of its caller.
    fn ask_kms(&self, shared: &Shared, world: &World, operation: &str, by: &Encryption) -> Result<(), Refusal> {
        if !by.uses_kms() {
            return Ok(());
        }
        let key = by.key.clone().unwrap_or_else(|| super::world::MANAGED_KEY.to_owned());
        let context = if by.bucket_key { format!("arn:aws:s3:::{}", self.bucket) } else { self.arn() };
        let verdict = world.use_key(&self.caller, operation, &key, Via::S3, Some(&context));
        shared.calls.lock().push(Call {
            service: Service::KmsForS3,
            operation: operation.to_owned(),
            bucket: self.bucket.clone(),
            key: self.key.clone().unwrap_or_default(),
            persona: self.caller.persona.clone(),
            kms_key: key,
            context: [("aws:s3:arn".to_owned(), context)].into(),
            status: verdict.as_ref().map_or_else(|refusal| refusal.status, |()| 200),
            code: verdict.as_ref().err().map(|refusal| refusal.code.clone()).unwrap_or_default(),
            ..Call::default()
        });
        verdict.map_err(Refusal::through_s3)
    }

    fn arn(&self) -> String {
        match &self.key {
            Some(key) => format!("arn:aws:s3:::{}/{key}", self.bucket),
            None => format!("arn:aws:s3:::{}", self.bucket),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl World {
    /// Whether the caller may take an S3 action, or one of KMS without a key behind it.
    pub(super) fn allows(&self, caller: &Caller, action: &str, resource: &str) -> Result<(), Refusal> {
        match self.denial(caller, action, resource, Via::Direct, None) {
            Some(denial) => Err(self.refuse(caller, denial.wording, action, resource)),
            None => Ok(()),
        }
    }

    /// Whether the caller may use a key for a cryptographic operation, and whether the key can.
    pub(super) fn use_key(
        &self,
        caller: &Caller,
        operation: &str,
        arn: &str,
        via: Via,
        context: Option<&str>,
    ) -> Result<(), Refusal> {
        let action = format!("kms:{operation}");
        if let Some(denial) = self.denial(caller, &action, arn, via, context) {
            return Err(self.refuse(caller, denial.wording, &action, arn));
        }
        let key = self.existing(caller, &action, arn)?;
        let foreign = account_of(&caller.arn) != account_of(arn);
        if key.manager == "AWS" && foreign {
            let wording = if operation == "Decrypt" { Wording::ForeignCiphertext } else { Wording::Foreign };
            return Err(self.refuse(caller, wording, &action, arn));
        }
        if key.manager == "AWS" && via != Via::S3 {
            return Err(self.refuse(caller, Wording::NotAllowed(Layer::Resource), &action, arn));
        }
        key.can(operation, arn)
    }

    /// The key, or what KMS says of one that does not exist: to strangers, no more than that they may not.
    pub(super) fn existing(&self, caller: &Caller, action: &str, arn: &str) -> Result<&Key, Refusal> {
        match self.keys.get(arn) {
            Some(key) => Ok(key),
            None if account_of(&caller.arn) != account_of(arn) => {
                Err(self.refuse(caller, Wording::Foreign, action, arn))
            }
            None => Err(Refusal::kms("NotFoundException", &format!("Key '{arn}' does not exist"))),
        }
    }

    /// Key ARN of a key id, alias or ARN, in the account and Region of the caller.
    pub(super) fn resolve(&self, caller: &Caller, name: &str) -> Result<String, Refusal> {
        let (region, account) = (super::world::REGION, account_of(&caller.arn));
        let not_found = |text: String| Err(Refusal::kms("NotFoundException", &text));
        let full = match name {
            arn if arn.starts_with("arn:") => arn.to_owned(),
            alias if alias.starts_with("alias/") => format!("arn:aws:kms:{region}:{account}:{alias}"),
            id if id.contains('/') => return not_found(format!("Invalid keyId {id}")),
            id => format!("arn:aws:kms:{region}:{account}:key/{id}"),
        };
        let there = full.split(':').nth(3).unwrap_or_default();
        if there != region {
            return not_found(format!("Invalid arn {there}"));
        }
        let Some((_, alias)) = full.split_once(":alias/") else { return Ok(full) };
        let alias = format!("alias/{alias}");
        let owner = account_of(&full);
        let key = self.keys.iter().find(|(arn, key)| account_of(arn) == owner && key.aliases.contains(&alias));
        match key {
            Some((arn, _)) => Ok(arn.clone()),
            None => not_found(format!("Alias {full} is not found.")),
        }
    }

    fn denial(
        &self,
        caller: &Caller,
        action: &str,
        resource: &str,
        via: Via,
        context: Option<&str>,
    ) -> Option<&Denial> {
        let excused = |denial: &Denial| {
            denial.unless_context.as_deref().is_some_and(|pattern| fits(pattern, context.unwrap_or_default()))
        };
        self.personas.get(&caller.persona)?.denials.iter().find(|denial| {
            fits(&denial.action.to_lowercase(), &action.to_lowercase())
                && fits(&denial.resource, resource)
                && (denial.via == Via::Any || denial.via == via)
                && !excused(denial)
        })
    }

    pub(super) fn refuse(&self, caller: &Caller, wording: Wording, action: &str, resource: &str) -> Refusal {
        let message = denial_text(&caller.arn, wording, action, resource);
        Refusal::new(400, "AccessDeniedException", message)
    }
}

/// The text of a denial.
fn denial_text(who: &str, wording: Wording, action: &str, resource: &str) -> String {
    let start = format!("User: {who} is not authorized to perform: {action} on");
    let absent = "because the resource does not exist in this Region, no resource-based policies allow access, or a \
                  resource-based policy explicitly denies access";
    match wording {
        Wording::NotAllowed(layer) => {
            let layer = layer.name();
            format!("{start} resource: {resource} because no {layer} allows the {action} action")
        }
        Wording::Explicit(layer) => {
            let article = if layer == Layer::Identity { "an" } else { "a" };
            format!("{start} resource: {resource} with an explicit deny in {article} {}", layer.name())
        }
        Wording::Foreign => format!("{start} this resource {absent}"),
        Wording::ForeignCiphertext => format!("{start} the resource associated with this ciphertext {absent}"),
        Wording::OldCiphertext => {
            "The ciphertext refers to a customer master key that does not exist, does not exist in \
                                   this region, or you are not allowed to access."
                .to_owned()
        }
        Wording::Plain => "Access Denied".to_owned(),
    }
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity-based policy",
            Self::Resource => "resource-based policy",
            Self::Endpoint => "VPC endpoint policy",
            Self::Session => "session policy",
            Self::Boundary => "permissions boundary",
            Self::ServiceControl => "service control policy",
            Self::ResourceControl => "resource control policy",
        }
    }
}

impl Key {
    /// Whether a key of this kind, in this state, can do a cryptographic operation.
    fn can(&self, operation: &str, arn: &str) -> Result<(), Refusal> {
        if self.usage != "ENCRYPT_DECRYPT" || self.spec != "SYMMETRIC_DEFAULT" {
            let text = format!("{arn} key usage is {} which is not valid for {operation}.", self.usage);
            return Err(Refusal::kms("InvalidKeyUsageException", &text));
        }
        let (code, what) = match self.state {
            KeyState::Enabled | KeyState::Updating => return Ok(()),
            KeyState::Disabled => ("DisabledException", "disabled"),
            KeyState::PendingDeletion => ("KMSInvalidStateException", "pending deletion"),
            KeyState::PendingReplicaDeletion => ("KMSInvalidStateException", "pending replica deletion"),
            KeyState::PendingImport => ("KMSInvalidStateException", "pending import"),
            KeyState::Unavailable => ("KMSInvalidStateException", "unavailable"),
            KeyState::Creating => ("KMSInvalidStateException", "creating"),
        };
        Err(Refusal::kms(code, &format!("{arn} is {what}.")))
    }
}

impl Object {
    /// Whether it must be restored before it can be read.
    pub fn is_archived(&self) -> bool {
        let cold = matches!(self.storage_class.as_deref(), Some("GLACIER" | "DEEP_ARCHIVE"));
        cold && !self.restore.as_deref().is_some_and(|restore| restore.contains("ongoing-request=\"false\""))
    }
}

impl Refusal {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// KMS answers 400 to everything that is the caller's fault.
    pub(super) fn kms(code: &str, message: &str) -> Self {
        Self::new(400, code, message)
    }

    /// As S3 passes it on: denials as its own 403, the rest as 400 with the prefix `KMS.`.
    pub(super) fn through_s3(self) -> Self {
        if self.code == "AccessDeniedException" {
            return Self { status: 403, code: "AccessDenied".to_owned(), ..self };
        }
        Self { status: 400, code: format!("KMS.{}", self.code), ..self }
    }

    pub(super) fn plain() -> Self {
        Self::new(403, "AccessDenied", "Access Denied")
    }

    fn no_bucket() -> Self {
        Self::new(404, "NoSuchBucket", "The specified bucket does not exist")
    }

    fn not_implemented() -> Self {
        Self::new(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    }
}

impl From<Refusal> for S3Error {
    fn from(refusal: Refusal) -> Self {
        let code = S3ErrorCode::from_bytes(refusal.code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
        let mut error = Self::with_message(code, refusal.message);
        error.set_status_code(axum::http::StatusCode::from_u16(refusal.status).expect("a status"));
        error
    }
}

pub(super) const NO_UPLOAD: &str = "The specified upload does not exist. The upload ID may be invalid, or the upload may \
                                    have been aborted or completed.";
const BAD_ALGORITHM: &str = "The encryption method specified is not supported";
const KEY_WITHOUT_ALGORITHM: &str =
    "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms";
