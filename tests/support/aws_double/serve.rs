//! The double as a program, for demonstrations and for trying runseal by hand: prints where it listens, serves until
//! SIGTERM.
//!
//! ```text
//! cargo run --example aws_double -- [--world FILE] [--objects DIR] [--ready FILE]
//! ```
//!
//! A second listener, on 127.0.0.1 too, changes things:
//!
//! ```text
//! GET    /environment/PERSONA    lines for eval in a shell
//! GET    /world                  buckets, keys, personas, roles, credentials
//! PATCH  /world                  the same as a JSON merge patch (RFC 7396); lists are replaced whole
//! PUT    /objects/BUCKET/KEY     puts an object down, under the bucket's default encryption
//! GET    /objects/BUCKET/KEY     its contents
//! GET    /objects/BUCKET         its keys, one a line
//! GET    /uploads                multipart uploads in progress
//! POST   /faults                 {"operation": "UploadPart", "target": "outputs/*", "times": 2, "effect": "Reset"}
//! DELETE /faults                 ends all faults
//! GET    /calls                  the record;  DELETE /calls forgets it
//! ```

#[path = "mod.rs"]
mod aws_double;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_double::{Double, Fault, World};
use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as Segment, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use clap::Parser;
use serde_json::{Value, json};

/// A double of S3, KMS and STS on random ports of 127.0.0.1.
#[derive(Parser)]
struct Flags {
    /// What exists, as JSON in the shape of GET /world; without it the persona `runner` and the buckets `inputs` and
    /// `outputs`, each under a key of its own.
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    /// Objects are read from DIR/BUCKET/KEY at the start and kept there.
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// Where to write the line of JSON that tells the endpoints, once everything listens.
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,
}

type Answer<T> = Result<T, (StatusCode, String)>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let world: World = match &flags.world {
        Some(file) => serde_json::from_slice(&std::fs::read(file)?)?,
        None => World::default(),
    };
    let double = Arc::new(Double::start(world));
    if let Some(folder) = &flags.objects {
        double.keep_objects_in(folder)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(double, flags.ready.as_deref()))
}

async fn serve(double: Arc<Double>, ready: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let line = json!({
        "s3": double.s3_endpoint(),
        "kms": double.kms_endpoint(),
        "sts": double.sts_endpoint(),
        "admin": format!("http://{}", listener.local_addr()?),
    });
    if let Some(file) = ready {
        // Whoever waits for the file must not read half of it.
        let unfinished = file.with_extension("unfinished");
        std::fs::write(&unfinished, format!("{line}\n"))?;
        std::fs::rename(unfinished, file)?;
    }
    writeln!(std::io::stdout(), "{line}")?;
    tokio::select! {
        result = axum::serve(listener, admin(double)) => result?,
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}

fn admin(double: Arc<Double>) -> Router {
    Router::new()
        .route("/environment/{persona}", get(environment))
        .route("/world", get(world).patch(patch_world))
        .route("/objects/{bucket}", get(list))
        .route("/objects/{bucket}/{*key}", get(read).put(put))
        .route("/uploads", get(uploads))
        .route("/faults", post(order_fault).delete(clear_faults))
        .route("/calls", get(calls).delete(clear_calls))
        .layer(DefaultBodyLimit::disable())
        .with_state(double)
}

async fn environment(State(double): State<Arc<Double>>, Segment(persona): Segment<String>) -> String {
    let variables = double.environment(&persona);
    variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect()
}

async fn world(State(double): State<Arc<Double>>) -> Json<Value> {
    Json(double.change(|world| serde_json::to_value(world).expect("the world is plain data")))
}

async fn patch_world(State(double): State<Arc<Double>>, Json(patch): Json<Value>) -> Answer<Json<Value>> {
    let merged = |world: &mut World| world.patch(&patch);
    double.change(merged).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    Ok(self::world(State(double)).await)
}

async fn put(State(double): State<Arc<Double>>, Segment((bucket, key)): Segment<(String, String)>, body: Bytes) {
    double.put(&bucket, &key, body);
}

async fn read(State(double): State<Arc<Double>>, Segment((bucket, key)): Segment<(String, String)>) -> Answer<Bytes> {
    double.read(&bucket, &key).ok_or_else(|| (StatusCode::NOT_FOUND, format!("no object {bucket}/{key}\n")))
}

async fn list(State(double): State<Arc<Double>>, Segment(bucket): Segment<String>) -> String {
    double.keys(&bucket).iter().map(|key| format!("{key}\n")).collect()
}

async fn uploads(State(double): State<Arc<Double>>) -> Json<Value> {
    Json(json!(double.uploads()))
}

async fn order_fault(State(double): State<Arc<Double>>, Json(fault): Json<Fault>) {
    double.fault(fault);
}

async fn clear_faults(State(double): State<Arc<Double>>) {
    double.clear_faults();
}

async fn calls(State(double): State<Arc<Double>>) -> Json<Value> {
    Json(json!(double.calls()))
}

async fn clear_calls(State(double): State<Arc<Double>>) {
    double.clear_calls();
}
