//! The adapter of the traits on the AWS SDK for Rust; nothing outside sees a type of it.

mod attempts;
mod classify;
mod config;
mod convert;
mod guard;
mod identity;
mod keys;
mod objects;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{CallError, Cloud, CloudConfig, Gate, Services};

/// Clients for the services of one run.
///
/// # Errors
/// [`super::Cause::Configuration`] if environment, profile files and `config` contradict each other. Nothing is sent
/// yet but what finding credentials takes.
pub(super) fn connect(config: &CloudConfig, gate: &Gate) -> Result<Cloud, CallError> {
    let runtime = super::runtime().map_err(|error| classify::configuration(&error))?;
    let shared = runtime.block_on(config::Shared::load(config))?;
    let region = shared.sdk.region().map(|region| region.as_ref().to_owned()).unwrap_or_default();
    let services = Services {
        objects: Arc::new(objects::Objects::new(&shared)),
        keys: Arc::new(keys::Keys::new(&shared)),
        identity: Arc::new(identity::Caller::new(&shared)),
    };
    Ok(Cloud::on(runtime, services, region, gate))
}

/// One client for each Region that was needed.
struct Regional<C> {
    home: C,
    others: Mutex<HashMap<String, C>>,
}

impl<C: Clone> Regional<C> {
    fn new(home: C) -> Self {
        Self { home, others: Mutex::default() }
    }

    /// The client of `region`, made by `make` when it is first asked for.
    fn of(&self, region: &str, make: impl FnOnce(&C) -> C) -> C {
        self.others.lock().entry(region.to_owned()).or_insert_with(|| make(&self.home)).clone()
    }
}
