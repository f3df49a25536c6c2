//! How a run speaks to AWS: who it is, where, with which keys.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Arn, Location};

/// What `run` and `preflight` are told about AWS. The default is what the environment and the profile say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsSpec {
    /// Role to take (`AssumeRole`), with a session named after the run.
    pub role: Option<RoleArn>,
    /// Profile of the shared configuration files.
    pub profile: Option<String>,
    /// Region of the requests.
    pub region: Option<Region>,
    /// FIPS 140 endpoints.
    pub fips: bool,
    /// Endpoints with IPv6 and IPv4.
    pub dual_stack: bool,
    /// How results are encrypted at rest; `None` leaves it to the bucket.
    pub sse: Option<Sse>,
    /// The KMS key for that; never with [`Sse::Aes256`].
    pub sse_kms_key: Option<KmsKey>,
    /// Requests under way at once, from 1; `None` for the default.
    pub concurrency: Option<u16>,
    /// KMS key whose data key goes into the run key.
    pub run_key: Option<KmsKey>,
    /// Whether the command keeps the credentials runseal itself uses.
    pub keep_credentials: bool,
}

/// Why results cannot be encrypted as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// Results do not go to S3.
    #[error("--sse and --sse-kms-key-id are for results in S3: give --output s3://BUCKET/PREFIX/")]
    NotInS3,
    /// SSE-S3 with a key.
    #[error("--sse AES256 takes no KMS key: leave out --sse-kms-key-id, or say --sse aws:kms")]
    NoKey,
}

impl AwsSpec {
    /// Has results, which go to `output`, encrypted as asked. As the AWS command line does it, a key alone means SSE-KMS.
    pub fn with_encryption(
        self,
        sse: Option<Sse>,
        key: Option<KmsKey>,
        output: Option<&Location>,
    ) -> Result<Self, EncryptionError> {
        let to_s3 = output.is_some_and(|output| output.s3().is_some());
        if (sse.is_some() || key.is_some()) && !to_s3 {
            return Err(EncryptionError::NotInS3);
        }
        if sse == Some(Sse::Aes256) && key.is_some() {
            return Err(EncryptionError::NoKey);
        }
        Ok(Self { sse: sse.or(key.as_ref().map(|_| Sse::Kms)), sse_kms_key: key, ..self })
    }
}

/// `--sse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum Sse {
    /// SSE-S3.
    #[value(name = "AES256")]
    #[serde(rename = "AES256")]
    Aes256,
    /// SSE-KMS.
    #[value(name = "aws:kms")]
    #[serde(rename = "aws:kms")]
    Kms,
    /// DSSE-KMS: two layers.
    #[value(name = "aws:kms:dsse")]
    #[serde(rename = "aws:kms:dsse")]
    KmsDsse,
}

/// The audit trail of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSpec {
    /// Where it goes.
    pub destination: AuditDestination,
    /// File with the private key that signs its lines.
    pub sign: Option<PathBuf>,
}

/// Where the audit trail goes: `--audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditDestination {
    /// A file, to which several runs may append.
    File(PathBuf),
    /// The journal of systemd.
    Journal,
}

impl From<&OsStr> for AuditDestination {
    /// `journald`, or the path of a file.
    fn from(text: &OsStr) -> Self {
        if text == "journald" { Self::Journal } else { Self::File(text.into()) }
    }
}

/// For people.
impl std::fmt::Display for AuditDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.write_str(&crate::sys::path::shown(path)),
            Self::Journal => f.write_str("journald"),
        }
    }
}

/// Why a name of AWS was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AwsNameError {
    /// Not a KMS key.
    #[error(
        "`{0}` is not a KMS key: use its ARN (arn:aws:kms:REGION:ACCOUNT:key/ID), the ARN of an alias, a key id, or \
         alias/NAME"
    )]
    Key(String),
    /// `aws/s3`, which is not even the alias.
    #[error("`{0}` is the key AWS manages for S3; leave the key out and say --sse aws:kms")]
    ManagedKey(String),
    /// Not a role.
    #[error("`{0}` is not the ARN of a role (arn:aws:iam::ACCOUNT:role/NAME)")]
    Role(String),
    /// Not a Region.
    #[error("`{0}` is not a Region such as eu-central-1")]
    Region(String),
}

/// A KMS key as given: ARN of a key or of an alias, key id, or alias (KMS Developer Guide, "Key identifiers"). Only
/// `DescribeKey` makes a key ARN of the other three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KmsKey(String);

impl KmsKey {
    /// As given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the ARN of a key, which needs no resolving.
    pub fn is_key_arn(&self) -> bool {
        Arn::of_key(&self.0).is_some()
    }

    /// The Region of an ARN.
    pub fn region(&self) -> Option<&str> {
        Arn::parse(&self.0).map(|arn| arn.region)
    }
}

impl FromStr for KmsKey {
    type Err = AwsNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = match Arn::parse(text) {
            Some(arn) => {
                let resource = match arn.resource.split_once('/') {
                    Some(("key", id)) => is_key_id(id),
                    Some(("alias", name)) => is_alias(name),
                    _ => false,
                };
                let place = is_region(arn.region) && is_account(arn.account);
                arn.is_of_aws() && arn.service == "kms" && place && resource
            }
            None => is_key_id(text) || text.strip_prefix("alias/").is_some_and(is_alias),
        };
        match valid {
            true => Ok(Self(text.to_owned())),
            false if text == "aws/s3" => Err(AwsNameError::ManagedKey(text.to_owned())),
            false => Err(AwsNameError::Key(shown(text))),
        }
    }
}

impl std::fmt::Display for KmsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// ARN of an IAM role.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleArn(String);

impl RoleArn {
    /// The ARN as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoleArn {
    type Err = AwsNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c);
        let valid = Arn::parse(text).is_some_and(|arn| {
            let name = arn.resource.strip_prefix("role/").unwrap_or_default();
            let named = !name.is_empty() && !name.ends_with('/') && name.chars().all(allowed);
            arn.is_of_aws() && arn.service == "iam" && arn.region.is_empty() && is_account(arn.account) && named
        });
        if valid { Ok(Self(text.to_owned())) } else { Err(AwsNameError::Role(shown(text))) }
    }
}

/// Name of a Region. It becomes part of host names, so only its characters are allowed; whether there is such a Region
/// only AWS knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Region(String);

impl Region {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Region {
    type Err = AwsNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_region(text) { Ok(Self(text.to_owned())) } else { Err(AwsNameError::Region(shown(text))) }
    }
}

/// Names are text in JSON, and checked when they are read.
macro_rules! is_text {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = AwsNameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    )*};
}
is_text!(KmsKey RoleArn Region);

/// `1234abcd-12ab-34cd-56ef-1234567890ab`, or `mrk-` and 32 hexadecimal digits.
fn is_key_id(text: &str) -> bool {
    let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.strip_prefix("mrk-") {
        Some(rest) => rest.len() == 32 && hexadecimal(rest),
        None => {
            let groups: Vec<_> = text.split('-').collect();
            groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|group| hexadecimal(group))
        }
    }
}

fn is_alias(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-');
    (1..=250).contains(&name.len()) && name.chars().all(allowed)
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_region(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(allowed)
}

fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn keys_have_four_spellings() {
        for (text, is_key_arn, region) in [
            (format!("arn:aws:kms:eu-central-1:111122223333:key/{ID}"), true, Some("eu-central-1")),
            (format!("arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/{ID}"), true, Some("us-gov-west-1")),
            (format!("arn:aws:kms:us-east-1:111122223333:key/mrk-{}", "0a".repeat(16)), true, Some("us-east-1")),
            ("arn:aws:kms:us-east-1:111122223333:alias/a/b_c-1".into(), false, Some("us-east-1")),
            (ID.into(), false, None),
            ("alias/my-key".into(), false, None),
        ] {
            let key: KmsKey = text.parse().expect(&text);
            assert_eq!((key.as_str(), key.is_key_arn(), key.region()), (text.as_str(), is_key_arn, region));
        }
        for text in [
            "",
            "my-key",
            "alias/",
            "alias/a b",
            "arn:aws:kms:us-east-1:111122223333:key/",
            "arn:aws:kms:us-east-1:111122223333:key/short",
            "arn:aws:kms:us-east-1:1:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms::111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:s3:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:gcp:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "1234abcd-12ab-34cd-56ef-1234567890ag",
            "mrk-123",
        ] {
            assert!(matches!(text.parse::<KmsKey>(), Err(AwsNameError::Key(_))), "{text}");
        }
        let managed = "aws/s3".parse::<KmsKey>().expect_err("no alias").to_string();
        assert!(managed.contains("--sse aws:kms"), "{managed}");
    }

    #[test]
    fn roles_are_arns_with_a_name() {
        for text in ["arn:aws:iam::111122223333:role/run", "arn:aws-cn:iam::111122223333:role/a/b/run@x"] {
            assert_eq!(text.parse::<RoleArn>().expect(text).as_str(), text);
        }
        for text in [
            "run",
            "arn:aws:iam::111122223333:run",
            "arn:aws:iam::111122223333:user/run",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a/",
            "arn:aws:iam::11112222333:role/run",
            "arn:aws:sts::111122223333:assumed-role/run/session",
        ] {
            assert!(text.parse::<RoleArn>().is_err(), "{text}");
        }
    }

    #[test]
    fn regions_cannot_lead_requests_elsewhere() {
        for text in ["eu-central-1", "us-gov-west-1", "eusc-de-east-1", "us-iso-east-1"] {
            assert_eq!(text.parse::<Region>().expect(text).as_str(), text);
        }
        for text in ["", "EU-central-1", "a.evil.example", "a/b", "x#", "a@b", "1-a", "eu-", &"a".repeat(33)] {
            assert!(text.parse::<Region>().is_err(), "{text}");
        }
    }
}
