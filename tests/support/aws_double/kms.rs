//! KMS over JSON 1.1: descriptions, data keys, dry runs, grants.

use aws_smithy_types::base64;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode};
use s3s::Body;
use serde_json::{Value, json};

use super::access::Refusal;
use super::record::{Call, Service};
use super::server::{Caller, Shared, refuse};
use super::world::{Grant, Key, KeyState, REGION, Via, World, account_of};

/// What is asked, for the record.
pub(super) fn note(parts: &Parts, body: &[u8], call: &mut Call) {
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    call.operation = target.trim_start_matches("TrentService.").to_owned();
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    call.kms_key = request["KeyId"].as_str().unwrap_or_default().to_owned();
    call.dry_run = request["DryRun"].as_bool().unwrap_or_default();
    call.context = serde_json::from_value(request["EncryptionContext"].clone()).unwrap_or_default();
}

pub(super) fn answer(shared: &Shared, caller: &Caller, body: &[u8], call: &mut Call) -> Response<Body> {
    let request: Value = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(_) => return refuse(Service::Kms, Refusal::kms("SerializationException", ""), call),
    };
    let verdict = match call.operation.as_str() {
        "DescribeKey" => describe(&shared.world.lock(), caller, &request),
        "GenerateDataKey" => generate(shared, caller, &request, call),
        "Decrypt" => decrypt(&shared.world.lock(), caller, &request, call),
        "CreateGrant" => create_grant(&mut shared.world.lock(), caller, &request, call),
        "ListGrants" => list_grants(&shared.world.lock(), caller, &request),
        other => Err(Refusal::kms("UnknownOperationException", other)),
    };
    match verdict {
        Ok(answer) => json_answer(200, &answer),
        Err(refusal) => refuse(Service::Kms, refusal, call),
    }
}

pub(super) fn error(refusal: &Refusal) -> Response<Body> {
    json_answer(refusal.status, &json!({ "__type": refusal.code, "message": refusal.message }))
}

fn json_answer(status: u16, value: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(value.to_string()));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/x-amz-json-1.1"));
    answer
}

/// The key that is asked for, once the caller may do this with it.
fn named<'w>(world: &'w World, caller: &Caller, request: &Value, action: &str) -> Result<(String, &'w Key), Refusal> {
    let arn = resolved(world, caller, request)?;
    world.allows(caller, action, &arn)?;
    let key = world.existing(caller, action, &arn)?;
    Ok((arn, key))
}

fn resolved(world: &World, caller: &Caller, request: &Value) -> Result<String, Refusal> {
    let name = request["KeyId"].as_str().ok_or_else(|| Refusal::kms("ValidationException", "KeyId is required"))?;
    world.resolve(caller, name)
}

/// Works in every state of the key.
fn describe(world: &World, caller: &Caller, request: &Value) -> Result<Value, Refusal> {
    let (arn, key) = named(world, caller, request, "kms:DescribeKey")?;
    let mut facts = json!({
        "AWSAccountId": account_of(&arn),
        "KeyId": arn.rsplit('/').next(),
        "Arn": arn,
        "CreationDate": 1_700_000_000,
        "Description": "",
        "Enabled": key.state == KeyState::Enabled,
        "KeyState": key.state,
        "KeySpec": key.spec,
        "CustomerMasterKeySpec": key.spec,
        "KeyUsage": key.usage,
        "KeyManager": key.manager,
        "Origin": key.origin,
        "MultiRegion": key.multi_region,
    });
    if let Some(date) = key.deletion {
        facts["DeletionDate"] = json!(date);
    }
    if let Some(date) = key.valid_to {
        facts["ValidTo"] = json!(date);
        facts["ExpirationModel"] = json!("KEY_MATERIAL_EXPIRES");
    }
    Ok(json!({ "KeyMetadata": facts }))
}

fn generate(shared: &Shared, caller: &Caller, request: &Value, call: &Call) -> Result<Value, Refusal> {
    let world = shared.world.lock();
    let arn = resolved(&world, caller, request)?;
    let context = call.context.get("aws:s3:arn").map(String::as_str);
    world.use_key(caller, "GenerateDataKey", &arn, Via::Direct, context)?;
    let length = match (request["KeySpec"].as_str(), request["NumberOfBytes"].as_u64()) {
        (Some("AES_256"), None) => 32,
        (Some("AES_128"), None) => 16,
        (None, Some(length @ 1..=1024)) => length as usize,
        _ => return Err(Refusal::kms("ValidationException", "Please specify either number of bytes or key spec.")),
    };
    if call.dry_run {
        return Err(would_have_succeeded());
    }
    let mut plaintext = vec![0; length];
    getrandom::fill(&mut plaintext).expect("the system gives random bytes");
    let mut ciphertext = vec![0; length + 100];
    getrandom::fill(&mut ciphertext).expect("the system gives random bytes");
    let answer = json!({
        "KeyId": arn,
        "Plaintext": base64::encode(&plaintext),
        "CiphertextBlob": base64::encode(ciphertext),
    });
    shared.data_keys.lock().push(plaintext);
    Ok(answer)
}

/// Only the dry run without a ciphertext can succeed: nobody here keeps a ciphertext.
fn decrypt(world: &World, caller: &Caller, request: &Value, call: &Call) -> Result<Value, Refusal> {
    let modifiers = request["DryRunModifiers"].as_array().cloned().unwrap_or_default();
    let ignore = call.dry_run && modifiers.iter().any(|modifier| modifier == "IGNORE_CIPHERTEXT");
    if !ignore && request["CiphertextBlob"].is_null() {
        return Err(Refusal::kms("ValidationException", "CiphertextBlob must not be null"));
    }
    let arn = resolved(world, caller, request)?;
    let context = call.context.get("aws:s3:arn").map(String::as_str);
    world.use_key(caller, "Decrypt", &arn, Via::Direct, context)?;
    Err(if ignore { would_have_succeeded() } else { Refusal::kms("InvalidCiphertextException", "") })
}

fn create_grant(world: &mut World, caller: &Caller, request: &Value, call: &Call) -> Result<Value, Refusal> {
    let (arn, key) = named(world, caller, request, "kms:CreateGrant")?;
    let grantee = request["GranteePrincipal"].as_str().unwrap_or_default().to_owned();
    let operations: Vec<String> = serde_json::from_value(request["Operations"].clone()).unwrap_or_default();
    if grantee.is_empty() || operations.is_empty() {
        return Err(Refusal::kms("ValidationException", "GranteePrincipal and Operations are required"));
    }
    let code = match key.state {
        KeyState::Enabled | KeyState::Updating | KeyState::Unavailable => None,
        KeyState::Disabled => Some("DisabledException"),
        _ => Some("KMSInvalidStateException"),
    };
    if let Some(code) = code {
        return Err(Refusal::kms(code, &format!("{arn} cannot be given grants in its state.")));
    }
    if call.dry_run {
        return Err(would_have_succeeded());
    }
    let id = format!("grant-{}", world.next());
    world.key(&arn).grants.push(Grant { id: id.clone(), grantee, operations });
    Ok(json!({ "GrantId": id, "GrantToken": format!("token of {id}") }))
}

/// Pages of `Limit` grants; the marker is the number of those before.
fn list_grants(world: &World, caller: &Caller, request: &Value) -> Result<Value, Refusal> {
    let (arn, key) = named(world, caller, request, "kms:ListGrants")?;
    let start = request["Marker"].as_str().and_then(|marker| marker.parse().ok()).unwrap_or(0);
    let limit = request["Limit"].as_u64().unwrap_or(50) as usize;
    let grants: Vec<Value> = key
        .grants
        .iter()
        .skip(start)
        .take(limit)
        .map(|grant| {
            json!({
                "KeyId": arn,
                "GrantId": grant.id,
                "GranteePrincipal": grant.grantee,
                "Operations": grant.operations,
                "IssuingAccount": format!("arn:aws:iam::{}:root", account_of(&arn)),
            })
        })
        .collect();
    let end = start + grants.len();
    let mut answer = json!({ "Grants": grants, "Truncated": end < key.grants.len() });
    if end < key.grants.len() {
        answer["NextMarker"] = json!(end.to_string());
    }
    Ok(answer)
}

fn would_have_succeeded() -> Refusal {
    Refusal::kms("DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
}

/// A key ARN in [`REGION`], for tests that need one more.
pub fn key_arn(account: &str, id: &str) -> String {
    format!("arn:aws:kms:{REGION}:{account}:key/{id}")
}
