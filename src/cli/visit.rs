//! `runseal exec`, `cp`: into live and held runs.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::run;
use crate::units::text::Message;

use super::{Failure, stdout};

/// Run a program inside a live or held run
///
/// It starts as the command of the run did: in $RUNSEAL_SCRATCH/work, with the same environment, rights and view of the
/// machine. On a terminal it gets one of its own. Its exit status becomes that of runseal. It ends when this runseal does,
/// and when the command of the run ends. Results are not published while one is running.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Name of the run
    run: String,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Copy a file or a directory out of a live or held run
///
/// What is copied is as it is now, with permission bits, modification times and symbolic links, and belongs to the caller.
/// Nothing is replaced. Holes become zeros.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// Name of the run, and a path below $RUNSEAL_SCRATCH, such as work/app.log
    #[arg(value_name = "RUN:PATH")]
    from: OsString,
    /// An existing directory to copy into, or a new name; - is standard output: a file as it is, a directory as tar archive
    #[arg(value_name = "DEST")]
    to: PathBuf,
}

pub fn exec(args: ExecArgs) -> Result<u8, Failure> {
    Ok(run::exec(&args.run, args.command.try_into()?)?)
}

pub fn cp(args: CpArgs) -> Result<u8, Failure> {
    let usage = || Failure::Usage("name what to copy as RUN:PATH, such as RUN:work/app.log".to_owned());
    let bytes = args.from.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':').ok_or_else(usage)?;
    let name = std::str::from_utf8(&bytes[..colon]).map_err(|_| usage())?;
    let from = Path::new(OsStr::from_bytes(&bytes[colon + 1..]));
    if args.to == Path::new("-") {
        run::copy(name, from, None)?;
        return Ok(0);
    }
    let said = run::copy(name, from, Some(&args.to))?;
    writeln!(stdout(), "{name}: {}", Message(said))?;
    Ok(0)
}
