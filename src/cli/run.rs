//! `runseal run`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::exit;
use crate::run::{self, Voice};
use crate::spec::{
    AwsSpec, CommandRights, CommandSpec, DataSpec, Isolate, LostWrites, OnFailure, OnHold, Purpose, RescueSpec,
    RunSpec, SavePattern, TmpPolicy,
};

use super::aws::{AWS_HEADING, AwsArgs, DataArgs};
use super::{Failure, store};

/// All of `units::exit`, for people; a test holds the two together, here and below.
const EXIT_STATUS: &str = "\
Exit status:
  that of COMMAND, or 128 + the number of the signal that killed it; before and after COMMAND:
  64 wrong command line, run id in use     73 output, backing or report cannot be created
  66 input missing or unreadable           74 reading or writing failed, results discarded
  69 machine or AWS lacks something, AWS    75 results held in vain (--on-hold)
     cannot be reached                     77 no permission, here or at AWS
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
    #[command(flatten)]
    data: DataArgs,
    /// Write a JSON report of the run
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Have the report and the audit trail tell COMMAND with its arguments; leave it out if one of them is a secret
    #[arg(long)]
    record_command: bool,
    /// How long results are held that cannot be published: `wait` until somebody resumes or discards, `fail` at once, or
    /// a time such as 90s or 2h. When it is over the results are discarded and the exit status is 75 [default: wait on
    /// a terminal, 1h without one]
    #[arg(long, value_name = "wait|fail|DURATION")]
    on_hold: Option<OnHold>,
    /// Publish these files even if COMMAND fails, below runseal-failed-RUN.TIME/ in the output: a pattern for paths below
    /// $RUNSEAL_SCRATCH, such as `work/**/*.log` or output/logs; repeat it for more
    #[arg(long, value_name = "GLOB", requires = "output")]
    save: Vec<SavePattern>,
    /// What to do with the scratch when COMMAND fails: end it, or hold it for `runseal exec` and `runseal cp`, as long as
    /// --on-hold says
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_failure: OnFailure,
    /// What to do with results when the scratch was full, or its disk failed, and data below work or TMPDIR was lost:
    /// `hold` them, since they may depend on it, or `warn` and publish. Results that lost data themselves are always held
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    lost_writes: LostWrites,
    /// What COMMAND finds at /tmp and /var/tmp: the scratch, or with `host` the directories of this machine
    #[arg(long, value_enum, default_value_t, value_name = "WHOSE")]
    tmp: TmpPolicy,
    /// Let a COMMAND of root keep the capabilities with which it could read the key: CAP_SYS_ADMIN, CAP_SYS_PTRACE,
    /// CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE, CAP_SYS_RAWIO, CAP_SYS_MODULE and CAP_SYS_BOOT
    #[arg(long)]
    keep_capabilities: bool,
    /// Run COMMAND as a user of its own, whom nobody else is: no process of the user who started runseal reads, traces or
    /// signals it. One of the ids that /etc/subuid and /etc/subgid give to `runseal`, or one of uid:FIRST-LAST. Needs root
    #[arg(long, value_name = "uid[:FIRST-LAST]", conflicts_with = "keep_capabilities")]
    isolate: Option<Isolate>,
    #[command(flatten)]
    store: store::StoreArgs,
    #[command(flatten)]
    aws: AwsArgs,
    /// Requests to S3 under way at once [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = AWS_HEADING)]
    concurrency: Option<u16>,
    /// Let the command have the AWS credentials that runseal itself uses
    #[arg(long, help_heading = AWS_HEADING)]
    keep_aws_credentials: bool,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn act(args: RunArgs, voice: Voice) -> Result<u8, Failure> {
    let data = args.data.into_data()?;
    let (aws, audit) = args.aws.into_spec(data.output.as_ref())?;
    let aws = AwsSpec { concurrency: args.concurrency, keep_credentials: args.keep_aws_credentials, ..aws };
    let data = DataSpec { aws, audit, ..data };
    let (id, store) = args.store.into_spec()?;
    if args.on_failure == OnFailure::Hold && args.on_hold == Some(OnHold::Fail) {
        return Err(Failure::Usage(
            "--on-failure=hold holds the scratch, --on-hold=fail holds nothing: give one".into(),
        ));
    }
    let RunArgs { on_hold, on_failure, lost_writes, save, keep_capabilities, isolate, .. } = args;
    let command = CommandSpec {
        argv: args.command.try_into()?,
        tmp: args.tmp,
        report: args.report,
        record_command: args.record_command,
        rescue: RescueSpec { on_hold, on_failure, lost_writes, save },
        rights: CommandRights { keep_capabilities, isolate },
    };
    Ok(run::run(RunSpec { id, store, data, purpose: Purpose::Command(command) }, None, voice, exit::code)?)
}
