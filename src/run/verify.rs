//! Checking published results.

use std::sync::Arc;

use super::error::RunError;
use super::preflight::{connect, tell_gap, trail};
use crate::aws::Gate;
use crate::spec::{DataSpec, Location, RunId};
use crate::stage::{Demands, Verification, verify_directory, verify_prefix};

/// Compares the results at `output` with their manifest; AWS is spoken to as `data` says. Blocks.
pub fn verify(run: &RunId, data: &DataSpec, output: &Location, demands: &Demands) -> Result<Verification, RunError> {
    let uri = match output {
        Location::Path(path) => return Ok(verify_directory(path, demands)?),
        Location::S3(uri) => uri,
    };
    let trail = Arc::new(trail(run, data)?);
    let cloud = connect(run, data, &Gate::new(trail.clone()), None)?;
    let verified = verify_prefix(uri, &cloud, demands);
    trail.sync();
    tell_gap(&trail);
    Ok(verified?)
}
