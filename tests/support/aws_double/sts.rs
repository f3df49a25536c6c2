//! STS over the query protocol: who calls, and roles that can be assumed.

use axum::http::{HeaderValue, Response, StatusCode};
use s3s::Body;

use super::access::Refusal;
use super::record::{Call, Service};
use super::server::{Caller, Shared, decoded, refuse};
use super::world::{Credential, World, account_of};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// What is asked, for the record.
pub(super) fn note(body: &[u8], call: &mut Call) {
    call.operation = field(body, "Action");
    call.kms_key = field(body, "RoleArn");
}

pub(super) fn answer(shared: &Shared, caller: &Caller, body: &[u8], call: &mut Call) -> Response<Body> {
    let verdict = match call.operation.as_str() {
        "GetCallerIdentity" => Ok(identity(caller)),
        "AssumeRole" => assume(&mut shared.world.lock(), caller, body),
        other => Err(Refusal::new(400, "InvalidAction", format!("Could not find operation {other}"))),
    };
    match verdict {
        Ok(result) => {
            let (operation, id) = (&call.operation, &call.request_id);
            let text = format!(
                "<{operation}Response xmlns=\"{NAMESPACE}\"><{operation}Result>{result}</{operation}Result>\
                 <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{operation}Response>"
            );
            xml(200, text)
        }
        Err(refusal) => refuse(Service::Sts, refusal, call),
    }
}

pub(super) fn error(refusal: &Refusal, id: &str) -> Response<Body> {
    let Refusal { status, code, message } = refusal;
    let text = format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"
    );
    xml(*status, text)
}

/// Needs no permission.
fn identity(caller: &Caller) -> String {
    let name = caller.arn.rsplit('/').next().unwrap_or_default();
    format!("<Arn>{}</Arn><UserId>AROADOUBLE:{name}</UserId><Account>{}</Account>", caller.arn, account_of(&caller.arn))
}

/// New credentials that select the persona of the role.
fn assume(world: &mut World, caller: &Caller, body: &[u8]) -> Result<String, Refusal> {
    let (role_arn, session) = (field(body, "RoleArn"), field(body, "RoleSessionName"));
    let refused = |text: String| Refusal::new(403, "AccessDenied", text);
    world.allows(caller, "sts:AssumeRole", &role_arn).map_err(|refusal| refused(refusal.message))?;
    let trusted =
        world.roles.get(&role_arn).filter(|role| role.trusts.is_empty() || role.trusts.contains(&caller.persona));
    let Some(role) = trusted.cloned() else {
        let who = &caller.arn;
        return Err(refused(format!(
            "User: {who} is not authorized to perform: sts:AssumeRole on resource: {role_arn}"
        )));
    };
    let number = world.next();
    let (id, secret, token) =
        (format!("ASIA{number:012}"), format!("session-secret-{number}"), format!("session-token-{number}"));
    let name = role_arn.rsplit('/').next().unwrap_or_default();
    let arn = format!("arn:aws:sts::{}:assumed-role/{name}/{session}", account_of(&role_arn));
    let answer = format!(
        "<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
         <AssumedRoleUser><AssumedRoleId>AROADOUBLE:{session}</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser>"
    );
    world.persona(&role.persona);
    let credential =
        Credential { persona: role.persona, secret, token: Some(token), session: Some(arn), expired: false };
    world.credentials.insert(id, credential);
    Ok(answer)
}

fn field(body: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(body);
    let value = text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    decoded(&value.unwrap_or_default().replace('+', " "))
}

fn xml(status: u16, text: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer.headers_mut().insert("content-type", HeaderValue::from_static("text/xml"));
    answer
}
