//! `runseal run`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::exit;
use crate::run::{self, Voice};
use crate::spec::{AwsSpec, InputSpec, Location, RunSpec};

use super::{Failure, store};

/// The table of `exit.rs`, for people.
const EXIT_STATUS: &str = "\
Exit status:
  that of COMMAND, or 128 + the number of the signal that killed it; before and after COMMAND:
  64 wrong command line, run id in use     73 output, backing or report cannot be created
  66 input missing or unreadable           74 reading or writing failed, results discarded
  69 the machine lacks something           77 no permission
  71 the sealed process died               78 memory lock or cipher engine not to be had
  126 COMMAND cannot be executed           127 COMMAND not found
  128 + signal: a second signal ended the run";

/// Run a command in an encrypted scratch only it can see
///
/// Copies the inputs into the scratch, runs COMMAND in it, publishes what COMMAND left below $RUNSEAL_OUTPUT if it
/// succeeded, and destroys the key. COMMAND finds RUNSEAL_RUN_ID, RUNSEAL_SCRATCH, RUNSEAL_INPUT, RUNSEAL_OUTPUT and
/// TMPDIR in its environment and starts in $RUNSEAL_SCRATCH/work. Its exit status becomes that of runseal.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct RunArgs {
    /// File or directory to copy in; appears as $RUNSEAL_INPUT/NAME (its last component), or as $RUNSEAL_INPUT/REL
    #[arg(long, value_name = "PATH[=REL]")]
    input: Vec<OsString>,
    /// Directory that receives the results; must be empty or absent unless --overwrite is given
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Let results replace files in the output
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Write a JSON report of the run
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    store: store::StoreArgs,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn act(args: RunArgs, voice: Voice) -> Result<u8, Failure> {
    let exists = |path: &std::path::Path| path.symlink_metadata().is_ok();
    let inputs = args.input.iter().map(|text| InputSpec::parse(text, exists));
    let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(|error| Failure::Usage(error.to_string()))?;
    let (id, store) = args.store.into_spec()?;
    let spec = RunSpec {
        id,
        store,
        inputs: inputs.into_iter().map(absolute_input).collect::<Result<_, _>>()?,
        output: args.output.map(std::path::absolute).transpose()?.map(Location::Path),
        overwrite: args.overwrite,
        aws: AwsSpec::default(),
        audit: None,
        report: args.report,
        command: args.command,
    };
    Ok(run::run(spec, voice, exit::code)?)
}

/// The sealed process works in `/`, so nothing may depend on where the user stands.
fn absolute_input(input: InputSpec) -> Result<InputSpec, Failure> {
    let source = match input.source {
        Location::Path(path) => Location::Path(std::path::absolute(path)?),
        remote => remote,
    };
    Ok(InputSpec { source, ..input })
}
