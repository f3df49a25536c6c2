//! Listeners, and what all three services share: who calls, faults, request ids, the record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3Error, S3ErrorCode, S3Result, StdError};
use tokio::net::TcpListener;

use super::access::{Access, Refusal};
use super::faults::{Effect, Fault, strike};
use super::record::{Call, Service};
use super::store::Store;
use super::world::World;
use super::{kms, sts};

/// What the listeners share. Never two locks at once, but `world` before `calls`.
pub struct Shared {
    /// What exists.
    pub world: Mutex<World>,
    /// What goes wrong.
    pub faults: Mutex<Vec<Fault>>,
    /// What was asked.
    pub calls: Mutex<Vec<Call>>,
    /// Data keys in the clear, as KMS gave them out.
    pub data_keys: Mutex<Vec<Vec<u8>>>,
    requests: AtomicU64,
}

/// Who calls, from the access key of the signature.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Name of the persona.
    pub persona: String,
    /// Its ARN, or that of its session.
    pub arn: String,
    /// Access key id.
    pub access_key: String,
    /// Region that the request was signed for.
    pub region: String,
}

/// The connection is cut instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut, as a test wants it")]
pub struct Cut;

impl Shared {
    pub fn new(world: World) -> Self {
        Self {
            world: Mutex::new(world),
            faults: Mutex::default(),
            calls: Mutex::default(),
            data_keys: Mutex::default(),
            requests: AtomicU64::new(1),
        }
    }

    /// A request id: short enough to read, unique here.
    fn request_id(&self, service: Service) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        match service {
            Service::S3 => format!("DOUBLE{number:010}"),
            _ => format!("d0b1e000-0000-4000-8000-{number:012}"),
        }
    }

    /// Who signed the request, if the credentials are known and good.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, (Caller, BadCredentials)> {
        let signature = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let scope = signature.split_once("Credential=").map_or("", |(_, rest)| rest);
        let mut scope = scope.split([',', ' ']).next().unwrap_or_default().split('/');
        let access_key = scope.next().unwrap_or_default().to_owned();
        let region = scope.nth(1).unwrap_or_default().to_owned();
        let world = self.world.lock();
        let Some(credential) = world.credentials.get(&access_key) else {
            return Err((Caller { access_key, ..Caller::default() }, BadCredentials::Unknown));
        };
        let arn = credential.session.clone().or_else(|| Some(world.personas.get(&credential.persona)?.arn.clone()));
        let caller = Caller { persona: credential.persona.clone(), arn: arn.unwrap_or_default(), access_key, region };
        let token = headers.get("x-amz-security-token").and_then(|value| value.to_str().ok());
        match credential {
            credential if credential.expired => Err((caller, BadCredentials::Expired)),
            credential if credential.token.as_deref() != token => Err((caller, BadCredentials::WrongToken)),
            _ => Ok(caller),
        }
    }
}

/// What is wrong with credentials; each service says it in its own way.
#[derive(Clone, Copy)]
enum BadCredentials {
    Unknown,
    WrongToken,
    Expired,
}

impl BadCredentials {
    fn refusal(self, service: Service) -> Refusal {
        let (status, code, text) = match (service, self) {
            (Service::S3, Self::Unknown) => {
                (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
            }
            (Service::S3, Self::WrongToken) => {
                (400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
            }
            (Service::S3, Self::Expired) => (400, "ExpiredToken", "The provided token has expired."),
            (Service::Sts, Self::Expired) => {
                (403, "ExpiredToken", "The security token included in the request is expired")
            }
            (Service::Sts, _) => {
                (403, "InvalidClientTokenId", "The security token included in the request is invalid.")
            }
            (_, Self::Expired) => {
                (400, "ExpiredTokenException", "The security token included in the request is expired")
            }
            (_, _) => (400, "UnrecognizedClientException", "The security token included in the request is invalid."),
        };
        Refusal::new(status, code, text)
    }
}

/// Starts a service on a port of its own.
pub fn listen(
    runtime: &tokio::runtime::Runtime,
    shared: &Arc<Shared>,
    service: Service,
) -> std::io::Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let s3 = s3_service(shared);
    let shared = shared.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let (shared, s3) = (shared.clone(), s3.clone());
            let answer = service_fn(move |request| {
                let (shared, s3) = (shared.clone(), s3.clone());
                async move { serve(&shared, service, s3, request).await }
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // An error is a connection that was cut, by us or by the client.
                let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Ok(address)
}

fn s3_service(shared: &Arc<Shared>) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Store(shared.clone()));
    builder.set_auth(Secrets(shared.clone()));
    builder.set_access(Access(shared.clone()));
    builder.build()
}

/// Secret keys by access key id, so that `s3s` can check signatures.
struct Secrets(Arc<Shared>);

#[async_trait::async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let world = self.0.world.lock();
        let credential = world.credentials.get(access_key).ok_or(S3ErrorCode::InvalidAccessKeyId)?;
        Ok(SecretKey::from(credential.secret.clone()))
    }
}

/// One request: faults before, the service, faults after, the record.
async fn serve(
    shared: &Arc<Shared>,
    service: Service,
    s3: S3Service,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    let caller = shared.caller(&parts.headers);
    let who = caller.as_ref().map_or_else(|(caller, _)| caller.clone(), Clone::clone);
    let mut call = Call {
        service,
        persona: who.persona,
        access_key: who.access_key,
        headers: noted(&parts.headers),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        request_id: shared.request_id(service),
        ..Call::default()
    };
    // All of it, before anything is answered: a refusal that leaves bytes unread resets the connection, and then the
    // client may never see the refusal.
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    match service {
        Service::Kms => kms::note(&parts, &body, &mut call),
        Service::Sts => sts::note(&body, &mut call),
        _ => name_s3_operation(&parts, &mut call),
    }
    let target = if service == Service::S3 { format!("{}/{}", call.bucket, call.key) } else { call.kms_key.clone() };
    let effect = strike(&mut shared.faults.lock(), &call.operation, &target);
    if let Some(effect) = &effect {
        before(shared, effect, &call).await.inspect_err(|_| shared.calls.lock().push(call.clone()))?;
    }
    let answer = match (&effect, caller) {
        (Some(Effect::Error { status, code, message }), _) => {
            refuse(service, Refusal::new(*status, code, message.clone()), &mut call)
        }
        (_, Err((_, bad))) => refuse(service, bad.refusal(service), &mut call),
        (_, Ok(caller)) => match service {
            Service::Kms => kms::answer(shared, &caller, &body, &mut call),
            Service::Sts => sts::answer(shared, &caller, &body, &mut call),
            _ => answer_s3(shared, s3, caller, parts, body, &mut call).await,
        },
    };
    let cut = matches!(effect, Some(Effect::ResetAfterwards));
    call.status = if cut { 0 } else { answer.status().as_u16() };
    let answer = with_request_id(answer, service, &call.request_id);
    shared.calls.lock().push(call);
    match effect {
        Some(_) if cut => Err(Cut),
        Some(effect) => Ok(after(answer, effect)),
        None => Ok(answer),
    }
}

/// What a fault does before the call is judged.
async fn before(shared: &Shared, effect: &Effect, call: &Call) -> Result<(), Cut> {
    match effect {
        Effect::Reset => return Err(Cut),
        Effect::Delay(time) => tokio::time::sleep(*time).await,
        Effect::Replaced => shared.world.lock().replace(&call.bucket, &call.key),
        Effect::Change(change) => change(&mut shared.world.lock()),
        _ => {}
    }
    Ok(())
}

/// What a fault does to the answer.
fn after(answer: Response<Body>, effect: Effect) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let body = match effect {
        Effect::Truncate(bytes) => truncated(body, bytes),
        Effect::Trickle { piece, pause } => trickled(body, piece, pause),
        Effect::WrongByte => with_wrong_byte(body),
        Effect::WrongChecksum => {
            for (name, value) in parts.headers.iter_mut().filter(|(name, _)| is_checksum(name.as_str())) {
                *value = HeaderValue::from_static(if name == "x-amz-checksum-crc64nvme" {
                    "AAAAAAAAAAA="
                } else {
                    "AAAAAA=="
                });
            }
            body
        }
        _ => body,
    };
    Response::from_parts(parts, body)
}

fn is_checksum(name: &str) -> bool {
    name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-type"
}

fn truncated(mut body: Body, bytes: usize) -> Body {
    async_stream(move |frames| async move {
        let mut left = bytes;
        while let Some(Ok(piece)) = body.next().await {
            let piece = piece.slice(..piece.len().min(left));
            left -= piece.len();
            frames.send(Ok(piece)).await;
            if left == 0 {
                break;
            }
        }
        frames.send(Err(Box::new(Cut) as StdError)).await;
    })
}

fn trickled(mut body: Body, size: usize, pause: std::time::Duration) -> Body {
    async_stream(move |frames| async move {
        while let Some(Ok(mut piece)) = body.next().await {
            while !piece.is_empty() {
                tokio::time::sleep(pause).await;
                frames.send(Ok(piece.split_to(size.min(piece.len())))).await;
            }
        }
    })
}

fn with_wrong_byte(mut body: Body) -> Body {
    async_stream(move |frames| async move {
        let mut done = false;
        while let Some(Ok(piece)) = body.next().await {
            let mut piece = piece.to_vec();
            if let Some(byte) = piece.first_mut().filter(|_| !done) {
                *byte ^= 1;
                done = true;
            }
            frames.send(Ok(piece.into())).await;
        }
    })
}

/// The sending half of a body that a task makes.
struct Frames(tokio::sync::mpsc::Sender<Result<Frame<Bytes>, StdError>>);

impl Frames {
    async fn send(&self, piece: Result<Bytes, StdError>) {
        // The client may have gone.
        let _ = self.0.send(piece.map(Frame::data)).await;
    }
}

fn async_stream<F: Future<Output = ()> + Send + 'static>(make: impl FnOnce(Frames) -> F) -> Body {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(make(Frames(sender)));
    Body::http_body_unsync(StreamBody::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx))))
}

async fn answer_s3(
    shared: &Shared,
    s3: S3Service,
    caller: Caller,
    parts: Parts,
    body: Bytes,
    call: &mut Call,
) -> Response<Body> {
    let region = shared.world.lock().buckets.get(&call.bucket).map(|bucket| bucket.region.clone());
    let mut answer = match &region {
        Some(region) if *region != caller.region && call.operation != "HeadBucket" => {
            let text = "The bucket you are attempting to access must be addressed using the specified endpoint. Please \
                        send all future requests to this endpoint.";
            refuse(Service::S3, Refusal::new(301, "PermanentRedirect", text), call)
        }
        _ => {
            let mut request = Request::from_parts(parts, Body::from(body));
            request.extensions_mut().insert(caller);
            match s3.call(request).await {
                Ok(answer) => answer,
                Err(_) => {
                    refuse(Service::S3, Refusal::new(500, "InternalError", "We encountered an internal error."), call)
                }
            }
        }
    };
    if answer.status().as_u16() >= 300 && call.code.is_empty() {
        let text = answer.body().bytes().unwrap_or_default();
        call.code = between(&String::from_utf8_lossy(&text), "<Code>", "</Code>").to_owned();
    }
    if let (Some(region), true) = (region, call.operation == "HeadBucket" || answer.status() == 301) {
        let region = HeaderValue::from_str(&region).expect("Regions are ASCII");
        answer.headers_mut().insert("x-amz-bucket-region", region);
    }
    answer
}

/// An error in the form of the service.
pub fn refuse(service: Service, refusal: Refusal, call: &mut Call) -> Response<Body> {
    call.code = refusal.code.clone();
    match service {
        Service::S3 => S3Error::from(refusal).to_http_response().expect("errors can be written"),
        Service::Sts => sts::error(&refusal, &call.request_id),
        _ => kms::error(&refusal),
    }
}

fn with_request_id(mut answer: Response<Body>, service: Service, id: &str) -> Response<Body> {
    let value = HeaderValue::from_str(id).expect("digits");
    let name = if service == Service::S3 { "x-amz-request-id" } else { "x-amzn-requestid" };
    answer.headers_mut().insert(name, value.clone());
    if service == Service::S3 {
        answer.headers_mut().insert("x-amz-id-2", value);
    }
    answer
}

fn noted(headers: &HeaderMap) -> std::collections::BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "authorization" | "x-amz-security-token"))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// What is asked of S3, before `s3s` looks at it: the record and the faults need it even for calls that fail early.
fn name_s3_operation(parts: &Parts, call: &mut Call) {
    let path = decoded(parts.uri.path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    (call.bucket, call.key) = (bucket.to_owned(), key.to_owned());
    let query = parts.uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    call.operation = match (&parts.method, key.is_empty()) {
        (&Method::PUT, false) if has("uploadId") => "UploadPart",
        (&Method::PUT, false) => "PutObject",
        (&Method::GET, false) if has("uploadId") => "ListParts",
        (&Method::GET, false) => "GetObject",
        (&Method::HEAD, false) => "HeadObject",
        (&Method::POST, false) if has("uploads") => "CreateMultipartUpload",
        (&Method::POST, false) if has("uploadId") => "CompleteMultipartUpload",
        (&Method::DELETE, false) if has("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, false) => "DeleteObject",
        (&Method::GET, true) if has("encryption") => "GetBucketEncryption",
        (&Method::GET, true) if has("location") => "GetBucketLocation",
        (&Method::GET, true) if has("uploads") => "ListMultipartUploads",
        (&Method::GET, true) if has("list-type") => "ListObjectsV2",
        (&Method::HEAD, true) => "HeadBucket",
        _ => "",
    }
    .to_owned();
}

/// Percent-decoded.
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let Some((_, rest)) = text.split_once(start) else { return "" };
    rest.split_once(end).map_or("", |(inner, _)| inner)
}
