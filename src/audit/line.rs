//! One event as one line of JSON, and the link that chains it to the line before.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json as object};
use sha2::{Digest, Sha256};

use super::Caller;
use super::event::{
    CREATE_RUN_KEY, Event, PUBLISH_FILE, PUBLISH_OBJECT, RUNSEAL, S3, STAGE_FILE, STAGE_OBJECT, WIPE_RUN_KEY,
};
use super::sign::{Signer, Witness};
use crate::spec::{Arn, s3_arn};
use crate::units::{hex, json, rfc3339};

/// Digits of a hash that is not known yet, or of the line before the first one.
pub const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Digits of a signature that is not known yet.
const UNSIGNED: &str = concat!(
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000"
);
/// Bytes of an error message that are kept.
const LONGEST_MESSAGE: usize = 16 << 10;

/// Where a chain stands: the number and the hash of its last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Number of the last line, counted from 1; 0 before the first one.
    pub sequence: u64,
    /// Its hash: SHA-256 in hexadecimal digits.
    pub hash: String,
}

impl Default for Link {
    fn default() -> Self {
        Self { sequence: 0, hash: ZEROS.to_owned() }
    }
}

/// What lines of one trail have in common.
#[derive(Clone, Debug)]
pub struct Letterhead {
    /// Name of the run.
    pub run: String,
    /// Name of this machine.
    pub host: String,
    /// Who signs them, if anybody does.
    pub signer: Option<Arc<Signer>>,
}

impl Letterhead {
    /// That of the run called `run`, here.
    pub fn of(run: &str) -> std::io::Result<Self> {
        let machine = nix::sys::utsname::uname()?;
        Ok(Self { run: run.to_owned(), host: machine.nodename().to_string_lossy().into_owned(), signer: None })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    event_version: &'static str,
    user_identity: Value,
    event_time: String,
    event_source: &'a str,
    event_name: &'a str,
    aws_region: &'a str,
    #[serde(rename = "sourceIPAddress")]
    source_ip_address: &'a str,
    user_agent: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    request_parameters: &'a Value,
    response_elements: (),
    additional_event_data: Additional<'a>,
    #[serde(rename = "requestID")]
    request_id: Option<&'a str>,
    #[serde(rename = "eventID")]
    event_id: String,
    read_only: bool,
    resources: Vec<Value>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: Option<&'a str>,
    event_category: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Additional<'a> {
    run_id: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    missed_events: u64,
    sequence: u64,
    previous_hash: &'a str,
    /// A public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'static str>,
    hash: &'static str,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The line of `event` without its newline, and where the chain stands after it. `missed` events were lost before it.
pub fn render(
    event: &Event,
    letterhead: &Letterhead,
    caller: Option<&Caller>,
    missed: u64,
    after: &Link,
) -> std::io::Result<(Vec<u8>, Link)> {
    let sequence = after.sequence + 1;
    let signer = letterhead.signer.as_deref();
    let object = event.source == S3 || [STAGE_OBJECT, STAGE_FILE, PUBLISH_OBJECT, PUBLISH_FILE].contains(&event.name);
    let record = Record {
        event_version: "1.08",
        user_identity: caller.map_or_else(|| object!({"type": "Unknown"}), user_identity),
        event_time: rfc3339(SystemTime::now()),
        event_source: event.source,
        event_name: event.name,
        aws_region: region(event, caller),
        source_ip_address: &letterhead.host,
        user_agent: concat!("runseal/", env!("CARGO_PKG_VERSION")),
        error_code: event.error.as_ref().map(|(code, _)| code.as_str()),
        error_message: event.error.as_ref().map(|(_, message)| shortened(message)),
        request_parameters: &event.parameters,
        response_elements: (),
        additional_event_data: Additional {
            run_id: &letterhead.run,
            missed_events: missed,
            sequence,
            previous_hash: &after.hash,
            signed_by: signer.map(Signer::name),
            signature: signer.map(|_| UNSIGNED),
            hash: ZEROS,
        },
        request_id: event.request_id.as_deref(),
        event_id: event_id()?,
        read_only: event.read_only,
        resources: event.resource.iter().map(|resource| described(resource, caller)).collect(),
        event_type: if event.source == RUNSEAL { "RunsealEvent" } else { "AwsApiCall" },
        management_event: !object,
        recipient_account_id: caller.map(|caller| caller.account.as_str()),
        event_category: if object { "Data" } else { "Management" },
    };
    let mut line = json::to_vec(&record)?;
    let hash = hex(&Sha256::digest(&line));
    fill(&mut line, "hash", ZEROS, &hash)?;
    if let Some(signer) = signer {
        fill(&mut line, "signature", UNSIGNED, &signer.sign(&hash))?;
    }
    Ok((line, Link { sequence, hash }))
}

/// Replaces the value `blank` of the field `name`. After `additionalEventData` there are only values in which a quote is
/// escaped, so the last place is the right one.
fn fill(line: &mut [u8], name: &str, blank: &str, digits: &str) -> std::io::Result<()> {
    let mark = format!("\"{name}\":\"{blank}\"");
    let at = line.windows(mark.len()).rposition(|window| window == mark.as_bytes());
    let end = at.ok_or_else(|| std::io::Error::other("a line without a place for its hash"))? + mark.len() - 1;
    line[end - blank.len()..end].copy_from_slice(digits.as_bytes());
    Ok(())
}

/// The Region of the key, where there is one: it may differ from the caller's.
fn region<'a>(event: &'a Event, caller: Option<&'a Caller>) -> &'a str {
    let of_resource = event.resource.as_deref().and_then(Arn::parse).map(|arn| arn.region);
    of_resource.filter(|region| !region.is_empty()).unwrap_or(caller.map_or("", |caller| &caller.region))
}

fn shortened(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST_MESSAGE)]
}

fn described(resource: &str, caller: Option<&Caller>) -> Value {
    let resource = &with_arn(resource, caller);
    let Some(arn) = Arn::parse(resource) else { return object!({"type": "File", "path": resource}) };
    let kind = match arn.service {
        "kms" => "AWS::KMS::Key",
        _ if arn.resource.contains('/') => "AWS::S3::Object",
        _ => "AWS::S3::Bucket",
    };
    match arn.account {
        "" => object!({"type": kind, "ARN": resource}),
        account => object!({"accountId": account, "type": kind, "ARN": resource}),
    }
}

/// URIs of S3 become ARNs, in the partition of the caller: nobody reaches another one.
fn with_arn<'a>(resource: &'a str, caller: Option<&Caller>) -> Cow<'a, str> {
    let Some(name) = resource.strip_prefix("s3://") else { return resource.into() };
    let arn = caller.and_then(|caller| Arn::parse(&caller.arn));
    s3_arn(arn.map_or("aws", |arn| arn.partition), name).into()
}

/// `userIdentity` (CloudTrail User Guide, "CloudTrail userIdentity element"), as far as an ARN tells.
fn user_identity(caller: &Caller) -> Value {
    let Caller { arn, account, principal_id, .. } = caller;
    let name = arn.splitn(6, ':').nth(5).unwrap_or_default();
    let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
    let mut identity = object!({"type": "Unknown", "principalId": principal_id, "arn": arn, "accountId": account});
    match kind {
        "assumed-role" => {
            let role = rest.split('/').next().unwrap_or_default();
            let role_id = principal_id.split(':').next().unwrap_or_default();
            identity["type"] = "AssumedRole".into();
            // The ARN of a session does not have the path of its role, so the ARN of the role is not told.
            let issuer = object!({"type": "Role", "principalId": role_id, "accountId": account, "userName": role});
            identity["sessionContext"] = object!({"sessionIssuer": issuer});
        }
        "user" => {
            identity["type"] = "IAMUser".into();
            identity["userName"] = rest.rsplit('/').next().unwrap_or_default().into();
        }
        "federated-user" => identity["type"] = "FederatedUser".into(),
        "root" => identity["type"] = "Root".into(),
        _ => {}
    }
    identity
}

/// A random UUID (RFC 9562, version 4).
fn event_id() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes);
    Ok([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

/// A line that was read back, its hash checked.
#[derive(Debug, PartialEq, Eq)]
pub struct VerifiedLine {
    /// Where the chain stands after it.
    pub link: Link,
    /// Where the chain must have stood before it.
    pub previous: String,
    /// `eventName`.
    pub name: String,
    /// `runId`.
    pub run: String,
    /// Events that could not be written before it.
    pub missed: u64,
    /// Of `RecoverTrail`: length and hash of the torn line before it.
    pub torn: Option<(u64, String)>,
    /// Whose signature it has, and that, neither of them checked.
    pub signature: Option<(String, [u8; 64])>,
}

impl VerifiedLine {
    /// By whom of `witnesses` the line is signed.
    ///
    /// # Errors
    /// By none of them: what is wrong.
    pub fn signed_by<'a>(&self, witnesses: &'a [Witness]) -> Result<&'a Witness, String> {
        let Some((name, signature)) = &self.signature else {
            return Err("it is not signed".to_owned());
        };
        let Some(witness) = witnesses.iter().find(|witness| witness.name() == name) else {
            return Err(format!("it is signed by another key: {name}"));
        };
        let forged = || "its signature is not that of the key it names: it was forged".to_owned();
        witness.confirms(&self.link.hash, signature).then_some(witness).ok_or_else(forged)
    }

    /// Whether the key of a run was made (`true`) or overwritten (`false`); `None` for all else.
    pub fn key_lives(&self) -> Option<bool> {
        match self.name.as_str() {
            CREATE_RUN_KEY => Some(true),
            WIPE_RUN_KEY => Some(false),
            _ => None,
        }
    }
}

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Not JSON of this shape.
    #[error("it is no event of runseal: {0}")]
    Shape(String),
    /// Changed after it was written.
    #[error("its hash does not match its contents: it was changed after it was written")]
    Hash,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    event_name: String,
    request_parameters: Value,
    #[serde(borrow)]
    additional_event_data: WrittenLink<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenLink<'a> {
    run_id: String,
    #[serde(default)]
    missed_events: u64,
    sequence: u64,
    previous_hash: String,
    #[serde(default)]
    signed_by: String,
    #[serde(borrow, default)]
    signature: Option<&'a RawValue>,
    #[serde(borrow)]
    hash: &'a RawValue,
}

/// Reads a line (without its newline) back and checks its hash.
pub fn check(line: &[u8]) -> Result<VerifiedLine, LineError> {
    let shape = |error: &dyn std::fmt::Display| LineError::Shape(error.to_string());
    let text = std::str::from_utf8(line).map_err(|error| shape(&error))?;
    let written: Written<'_> = serde_json::from_str(text).map_err(|error| shape(&error))?;
    let link = written.additional_event_data;
    let mut hashed = line.to_vec();
    let digits = blank(&mut hashed, text, link.hash, ZEROS)?;
    let signature = link.signature.map(|value| blank(&mut hashed, text, value, UNSIGNED)).transpose()?;
    let signature = signature.map(|digits| bytes_of(digits).ok_or_else(|| not_digits(UNSIGNED))).transpose()?;
    if hex(&Sha256::digest(&hashed)) != digits {
        return Err(LineError::Hash);
    }
    let parameters = &written.request_parameters;
    let torn = match (parameters["tornBytes"].as_u64(), parameters["tornSha256"].as_str()) {
        (Some(bytes), Some(hash)) if written.event_name == super::event::RECOVER_TRAIL => {
            Some((bytes, hash.to_owned()))
        }
        _ => None,
    };
    Ok(VerifiedLine {
        link: Link { sequence: link.sequence, hash: digits.to_owned() },
        previous: link.previous_hash,
        name: written.event_name,
        run: link.run_id,
        missed: link.missed_events,
        torn,
        signature: signature.map(|signature| (link.signed_by, signature)),
    })
}

/// Puts zeros in the place of `value`, a string in `text`, and returns what stands there.
fn blank<'a>(hashed: &mut [u8], text: &str, value: &'a RawValue, zeros: &str) -> Result<&'a str, LineError> {
    let quoted = value.get();
    let digits = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default();
    if digits.len() != zeros.len() {
        return Err(not_digits(zeros));
    }
    // The value is borrowed from the text, so the distance of the two is its place there.
    let at = quoted.as_ptr().addr() - text.as_ptr().addr() + 1;
    hashed[at..at + zeros.len()].copy_from_slice(zeros.as_bytes());
    Ok(digits)
}

fn not_digits(zeros: &str) -> LineError {
    let of = if zeros == ZEROS { "hash" } else { "signature" };
    LineError::Shape(format!("the {of} is not {} hexadecimal digits", zeros.len()))
}

/// Only digits as they are written here: a signature in another form would be the same one.
fn bytes_of(digits: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let value = |digit: u8| if digit.is_ascii_uppercase() { None } else { char::from(digit).to_digit(16) };
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (value(*high)? << 4 | value(*low)?) as u8;
    }
    Some(bytes)
}
