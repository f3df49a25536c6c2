//! `runseal serve`.

use std::path::PathBuf;

use crate::serve;

use super::Failure;

/// Serve this node: make sealed scratches for its users, over HTTP on a Unix socket
///
/// Needs root. Runs live on when the service ends, and the next one takes them over. SIGHUP has it read its
/// configuration anew.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = serve::DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

pub fn act(args: ServeArgs) -> Result<u8, Failure> {
    if args.check {
        serve::check(&args.config)?;
    } else {
        serve::serve(&args.config)?;
    }
    Ok(0)
}
