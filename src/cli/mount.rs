//! `runseal mount`.

use std::path::PathBuf;

use crate::exit;
use crate::run::{self, Voice};
use crate::spec::{DataSpec, Foreground, Purpose, RunSpec, ServeSpec};

use super::{Failure, store};

/// Mount an encrypted scratch on a directory, for everybody to see
///
/// Returns when the mount is ready. It ends with `runseal end`, with umount(8), or with a signal to runseal; then
/// everything in it is gone for good. Needs root; `runseal run` does not.
#[derive(Debug, clap::Args)]
pub struct MountArgs {
    /// Stay until the mount has ended
    #[arg(long)]
    foreground: bool,
    /// Mount options as of mount(8): suid, dev, noexec, ro, ...
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    #[command(flatten)]
    store: store::StoreArgs,
    /// An existing, empty directory
    mountpoint: PathBuf,
}

pub fn act(args: MountArgs, voice: Voice) -> Result<u8, Failure> {
    let (id, store) = args.store.into_spec()?;
    let foreground = if args.foreground { Foreground::Stay } else { Foreground::Leave };
    let serving = ServeSpec { options: args.options, foreground, ..ServeSpec::new(args.mountpoint) };
    let spec = RunSpec { id, store, data: DataSpec::default(), purpose: Purpose::Serve(serving) };
    Ok(run::run(spec, None, voice, exit::code)?)
}
