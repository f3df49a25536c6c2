//! The volume plugin of Docker: its protocol, as calls of [`Volumes`].
//!
//! JSON by POST on a socket in `/run/docker/plugins`; errors are texts in `Err`. Docker waits two minutes for `Create`
//! and `Mount`, one for the others.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Deserialize;
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::peer::Caller;
use super::problem::Problem;
use super::volumes::{Options, VolumeView, Volumes};

const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// What the plugin works with.
pub struct Plugin {
    /// The volumes.
    pub volumes: Arc<Volumes>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// What Docker sends, in one for all methods.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Call {
    name: String,
    #[serde(rename = "ID")]
    id: String,
    opts: Option<Options>,
}

/// One method of the protocol.
#[derive(Clone, Copy, Debug)]
enum Method {
    Activate,
    Capabilities,
    Create,
    Remove,
    Mount,
    Unmount,
    Path,
    Get,
    List,
}

/// Path of each method.
const METHODS: [(&str, Method); 9] = [
    ("/Plugin.Activate", Method::Activate),
    ("/VolumeDriver.Capabilities", Method::Capabilities),
    ("/VolumeDriver.Create", Method::Create),
    ("/VolumeDriver.Remove", Method::Remove),
    ("/VolumeDriver.Mount", Method::Mount),
    ("/VolumeDriver.Unmount", Method::Unmount),
    ("/VolumeDriver.Path", Method::Path),
    ("/VolumeDriver.Get", Method::Get),
    ("/VolumeDriver.List", Method::List),
];

/// The routes.
pub fn router(plugin: Arc<Plugin>) -> Router {
    let routes = METHODS.into_iter().fold(Router::new(), |router, (path, method)| {
        let answer = move |State(plugin): State<Arc<Plugin>>, Extension(caller): Extension<Caller>, body: Bytes| async move {
            let answer = plugin.clone().answer(method, caller, body).await;
            let result = if answer.is_ok() { "ok" } else { "error" };
            plugin.metrics.volume_calls.increment(&[("method", path), ("result", result)]);
            reply(answer)
        };
        router.route(path, post(answer))
    });
    let unknown = || async { reply(Err("the volume plugin knows no such method".to_owned())) };
    routes.fallback(unknown).with_state(plugin)
}

impl Plugin {
    async fn answer(self: Arc<Self>, method: Method, caller: Caller, body: Bytes) -> Result<Value, String> {
        if !caller.is_root() {
            return Err("only root may use the volume plugin".to_owned());
        }
        let call: Call = match body.is_empty() {
            true => Call::default(),
            false => serde_json::from_slice(&body).map_err(|error| format!("the request: {error}"))?,
        };
        // What has begun is brought to its end, even if Docker stops waiting.
        let act = tokio::spawn(async move { self.act(method, call, caller).await });
        let done = act.await.map_err(|_| "the call failed; see the log of runseal serve".to_owned())?;
        done.map_err(|problem| problem.detail)
    }

    async fn act(&self, method: Method, call: Call, caller: Caller) -> Result<Value, Problem> {
        let Call { name, id, opts } = call;
        let volumes = &self.volumes;
        Ok(match method {
            Method::Activate => json!({ "Implements": ["VolumeDriver"] }),
            Method::Capabilities => json!({ "Capabilities": { "Scope": "local" } }),
            Method::Create => {
                volumes.create(&name, opts.unwrap_or_default())?;
                json!({ "Err": "" })
            }
            Method::Remove => {
                volumes.remove(&name).await?;
                json!({ "Err": "" })
            }
            Method::Mount => json!({ "Mountpoint": volumes.mount(&name, &id, caller).await?, "Err": "" }),
            Method::Unmount => {
                volumes.unmount(&name, &id).await?;
                json!({ "Err": "" })
            }
            Method::Path => json!({ "Mountpoint": place(&volumes.seen(&name)?), "Err": "" }),
            Method::Get => json!({ "Volume": shown(&volumes.seen(&name)?), "Err": "" }),
            Method::List => {
                let list: Vec<_> = volumes.list().iter().map(shown).collect();
                json!({ "Volumes": list, "Err": "" })
            }
        })
    }
}

fn shown(seen: &VolumeView) -> Value {
    json!({ "Name": seen.name, "Mountpoint": place(seen), "Status": { "users": seen.users } })
}

/// Empty while it is not mounted.
fn place(seen: &VolumeView) -> String {
    seen.mountpoint.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

fn reply(answer: Result<Value, String>) -> Response {
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "Err": format!("runseal: {error}") })),
    };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}
