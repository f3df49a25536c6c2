//! The API of the node: paths to calls of [`Runs`].

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Extension, MatchedPath, Path, RawQuery, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use utoipa::OpenApi;

use super::health::{self, Disks};
use super::metrics::{Metrics, MetricsPage};
use super::model::{
    AwsRequest, Health, Owner, PublishRequest, RunList, RunOutcome, RunRequest, RunState, RunView, Secret, SizeText,
};
use super::peer::Caller;
use super::problem::{Problem, ProblemDocument, ProblemKind};
use super::runs::Runs;
use super::table::PublishAttempt;
use crate::run::Unpublished;

/// What handlers work with.
pub struct Node {
    /// The runs.
    pub runs: Arc<Runs>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Start of the service.
    pub began: Instant,
    /// The disks of the backing.
    pub disks: Disks,
}

type Shared = State<Arc<Node>>;

/// The routes.
pub fn router(node: Arc<Node>) -> Router {
    let metrics = node.metrics.clone();
    Router::new()
        .route("/v1/runs", get(list).post(create))
        .route("/v1/runs/{id}", get(show).delete(end))
        .route("/v1/runs/{id}/publish", post(publish))
        .route("/v1/runs/{id}/resume", post(resume))
        .route("/v1/health", get(check))
        .route("/v1/openapi.json", get(describe))
        .route("/metrics", get(measure))
        .fallback(nowhere)
        .method_not_allowed_fallback(no_method)
        .layer(axum::middleware::from_fn_with_state(metrics, count))
        .with_state(node)
}

/// The description of the API, for clients and for `docs/openapi.json`.
pub fn description() -> serde_json::Value {
    serde_json::to_value(Description::openapi()).expect("the document is plain JSON")
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "runseal node API",
        version = "1",
        description = "Sealed scratches on this node, over HTTP/1.1 on a Unix socket. The kernel tells who calls \
                       (SO_PEERCRED); a user sees and ends only their own runs, root all.",
        license(name = "Apache-2.0 OR MIT"),
    ),
    paths(list, create, show, end, publish, resume, check, describe, measure),
    components(schemas(
        RunRequest,
        RunView,
        RunList,
        RunState,
        RunOutcome,
        AwsRequest,
        PublishRequest,
        Secret,
        Owner,
        SizeText,
        Health,
        ProblemDocument
    ))
)]
struct Description;

/// The runs of the caller
#[utoipa::path(get, path = "/v1/runs", responses((status = 200, body = RunList)))]
async fn list(State(node): Shared, Extension(caller): Extension<Caller>) -> Json<RunList> {
    Json(RunList { runs: node.runs.list(caller) })
}

/// Make a run; answers when its scratch is mounted and has its inputs
#[utoipa::path(
    post,
    path = "/v1/runs",
    request_body = RunRequest,
    responses(
        (status = 201, body = RunView),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn create(
    State(node): Shared,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<(StatusCode, [(header::HeaderName, HeaderValue); 1], Json<RunView>), Problem> {
    let view = node.runs.create(parse::<RunRequest>(&body)?, None, caller).await?;
    let place = format!("/v1/runs/{}", view.id);
    let location = HeaderValue::from_str(&place).expect("run ids are plain ASCII");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view)))
}

/// One run
#[utoipa::path(
    get,
    path = "/v1/runs/{id}",
    params(("id" = String, Path, description = "Name of the run")),
    responses(
        (status = 200, body = RunView),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn show(
    State(node): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<RunView>, Problem> {
    Ok(Json(node.runs.look(&id, caller).await?))
}

/// End a run; answers when it is unmounted and its key is gone
#[utoipa::path(
    delete,
    path = "/v1/runs/{id}",
    params(
        ("id" = String, Path, description = "Name of the run"),
        ("discard" = Option<bool>, Query, description = "Even if results that are not published are lost"),
    ),
    responses(
        (status = 200, body = RunView),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn end(
    State(node): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<RunView>, Problem> {
    let results = match query.as_deref() {
        None | Some("" | "discard=false") => Unpublished::Keep,
        Some("discard" | "discard=true") => Unpublished::Discard,
        Some(other) => {
            let detail = format!("query `{other}`: only `discard` and `discard=true` are known");
            return Err(Problem::new(ProblemKind::Usage, detail));
        }
    };
    Ok(Json(node.runs.end(&id, results, caller).await?))
}

/// Publish what is in `output`; answers when all is there. If that fails the run is held, and nothing is lost
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/publish",
    params(("id" = String, Path, description = "Name of the run")),
    request_body = PublishRequest,
    responses(
        (status = 200, body = RunView),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn publish(
    State(node): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<RunView>, Problem> {
    Ok(Json(node.runs.publish(&id, parse::<PublishRequest>(&body)?, PublishAttempt::First, caller).await?))
}

/// Publish the results of a held run again
#[utoipa::path(
    post,
    path = "/v1/runs/{id}/resume",
    params(("id" = String, Path, description = "Name of the run")),
    request_body = PublishRequest,
    responses(
        (status = 200, body = RunView),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn resume(
    State(node): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<RunView>, Problem> {
    Ok(Json(node.runs.publish(&id, parse::<PublishRequest>(&body)?, PublishAttempt::Again, caller).await?))
}

/// Whether the node can take runs
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health)))]
async fn check(State(node): Shared, Extension(caller): Extension<Caller>) -> Json<Health> {
    Json(health::examine(&node, caller).await)
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn describe() -> Json<serde_json::Value> {
    Json(description())
}

/// Counters for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain", body = String)))]
async fn measure(State(node): Shared) -> Response {
    let mut page = MetricsPage::of(&node.metrics);
    node.runs.measure(&mut page);
    health::measure(&node, &mut page).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page.into_text()).into_response()
}

async fn nowhere(request: Request) -> Problem {
    let detail = format!("{} is no path of this API; GET /v1/openapi.json describes it", request.uri().path());
    Problem::new(ProblemKind::NotFound, detail)
}

async fn no_method(request: Request) -> Problem {
    let detail = format!("{} is not for {}; GET /v1/openapi.json tells", request.method(), request.uri().path());
    Problem::new(ProblemKind::Method, detail)
}

/// Counts the answer. Labels are those of the routes, so clients cannot invent any.
async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_owned();
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let response = next.run(request).await;
    let status = response.status();
    metrics.requests.increment(&[("method", &method), ("path", &path), ("status", status.as_str())]);
    response
}

/// Reads JSON; says where it is wrong. An empty body stands for an empty object.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let text = if body.is_empty() { b"{}" } else { body };
    // serde would take a list for an object whose fields all have defaults.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::new(ProblemKind::Usage, "the body: not a JSON object"));
    }
    serde_json::from_slice(text).map_err(|error| Problem::new(ProblemKind::Usage, format!("the body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_the_one_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let text = format!("{:#}\n", description());
        if std::env::var_os("RUNSEAL_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &text).expect("written");
        }
        let committed = std::fs::read_to_string(path).expect("docs/openapi.json");
        assert!(
            committed == text,
            "docs/openapi.json is old: RUNSEAL_WRITE_OPENAPI=1 cargo test --lib committed_description writes it"
        );
    }

    #[test]
    fn a_body_that_is_no_request_is_refused_with_the_place() {
        let error = parse::<RunRequest>(b"{\"size\": \"x\"}").err().expect("no size");
        assert!(error.kind == ProblemKind::Usage && error.detail.contains("column"), "{error}");
        assert!(parse::<RunRequest>(b"").is_ok(), "all has defaults");
        for bytes in [&b"["[..], b"null", b"\xff", b"{} {}", b"{\"owner\": {\"uid\": -1, \"gid\": 0}}"] {
            assert!(parse::<RunRequest>(bytes).is_err(), "{bytes:?}");
        }
    }
}
