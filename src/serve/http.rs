//! Connections: who is at the other end, how many there may be, and how long a client may take.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::account::Accounts;
use super::metrics::Metrics;
use super::peer::Caller;
use super::problem::{Problem, ProblemKind};
use super::wire::PatientStream;

/// How long requests that are being answered may go on after the service was told to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Largest head of a request.
const HEAD_MAX: usize = 16 << 10;
/// How long a refused connection may take to hear why.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// How many may hear it at the same time; more are hung up on.
const REFUSALS: usize = 64;
/// Of how many connections one is kept for root.
const ROOT_SHARE: usize = 8;

/// What connections are allowed.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once; some of them are kept for root.
    pub connections: usize,
    /// Connections of one user at once, root not counted.
    pub per_user: usize,
    /// Time for the head of a request, and again for its body.
    pub patience: Duration,
    /// Largest body in bytes.
    pub body: usize,
}

/// Answers the clients of `listener` with `router`, as many as there are `seats`, until `stop` says so; requests find their [`Caller`] among their
/// extensions. Then requests that are being answered may end.
pub async fn serve(listener: UnixListener, router: Router, seats: Arc<Seats>, mut stop: watch::Receiver<bool>) {
    let router = router.layer(axum::middleware::from_fn_with_state(seats.allowance, take_body));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
            () = told_to(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                open.spawn(connection(stream, router.clone(), seats.clone(), stop.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: give others time to close theirs.
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(FAREWELL, async { while open.join_next().await.is_some() {} }).await;
}

async fn connection(stream: UnixStream, router: Router, seats: Arc<Seats>, mut stop: watch::Receiver<bool>) {
    let Ok(caller) = Caller::of(&stream) else { return };
    let seat = Seats::take(&seats, caller);
    let refused = seat.is_none();
    // Those who are told that there is no room must not take what room there is.
    let told = seats.refusals.try_acquire();
    if refused && told.is_err() {
        return;
    }
    let patience = seats.allowance.patience;
    let service = TowerToHyperService::new(router);
    let answer = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller);
        let answer = (!refused).then(|| service.call(request.map(Body::new)));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => {
                    let detail = "too many connections; close some, or ask the administrator for more";
                    Ok::<_, Infallible>(Problem::new(ProblemKind::Limit, detail).into_response())
                }
            }
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(HEAD_MAX).keep_alive(!refused);
    let mut connection =
        std::pin::pin!(builder.serve_connection(TokioIo::new(PatientStream::new(stream, patience)), answer));
    let time = if refused { REFUSAL_TIME } else { Duration::MAX };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep_for(time) => return,
        () = told_to(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection of user {}: {error}", caller.uid);
    }
    drop(seat);
}

async fn told_to(stop: &mut watch::Receiver<bool>) {
    // Whoever could say so is gone: then nobody waits for the end either.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn sleep_for(time: Duration) {
    match time {
        Duration::MAX => std::future::pending().await,
        time => tokio::time::sleep(time).await,
    }
}

/// Takes the whole body before anything is done, so that no handler waits for a client.
async fn take_body(State(allowance): State<ConnectionLimits>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > allowance.body as u64 {
        return too_large(allowance).into_response();
    }
    match tokio::time::timeout(allowance.patience, to_bytes(body, allowance.body)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(error)) => {
            let problem = match is_too_large(&error) {
                true => too_large(allowance),
                false => Problem::new(ProblemKind::Usage, format!("the body cannot be read: {error}")),
            };
            problem.into_response()
        }
        Err(_) => {
            let detail = format!("the body did not come within {:?}", allowance.patience);
            Problem::new(ProblemKind::Timeout, detail).into_response()
        }
    }
}

fn too_large(allowance: ConnectionLimits) -> Problem {
    Problem::new(ProblemKind::TooLarge, format!("the body is larger than {} bytes", allowance.body))
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains("length limit"))
}

/// Who has how many connections.
pub struct Seats {
    taken: Mutex<HashMap<u32, usize>>,
    refusals: Semaphore,
    allowance: ConnectionLimits,
    accounts: Arc<Accounts>,
    metrics: Arc<Metrics>,
}

impl Seats {
    /// All are free.
    pub fn new(allowance: ConnectionLimits, accounts: &Arc<Accounts>, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::default(),
            refusals: Semaphore::new(REFUSALS),
            allowance,
            accounts: accounts.clone(),
            metrics: metrics.clone(),
        })
    }

    /// Users leave a share to root, and root one to the service, which asks itself how it is.
    fn take(seats: &Arc<Self>, caller: Caller) -> Option<Seat> {
        let ConnectionLimits { connections, per_user, .. } = seats.allowance;
        let user = seats.accounts.of(caller.uid);
        let mut taken = seats.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.entry(user).or_default();
        let full = match user {
            0 if caller.process == Some(std::process::id()) => false,
            0 => all >= connections,
            _ => all >= connections - connections.div_ceil(ROOT_SHARE) || *own >= per_user,
        };
        if full {
            if *own == 0 {
                taken.remove(&user);
            }
            seats.metrics.connections_refused.increment();
            return None;
        }
        *own += 1;
        seats.metrics.connections.increment();
        Some(Seat { seats: seats.clone(), user })
    }
}

/// A connection that is counted; given back on drop.
struct Seat {
    seats: Arc<Seats>,
    user: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.metrics.connections.decrement();
        let mut taken = self.seats.taken.lock();
        if let Some(own) = taken.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.user);
            }
        }
    }
}
