//! The command line: flags to specifications. One file per group of subcommands.

mod audit;
mod aws;
mod completions;
mod doctor;
mod helper;
mod lifecycle;
mod mount;
mod policy;
mod preflight;
mod run;
mod serve;
mod store;
mod verify;
mod visit;

use std::ffi::OsString;
use std::io::{self, StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit;
use crate::run::{
    FLUSH_RESULTS, FamilyError, SERVED_MOUNT, Voice, error::RunError, flush_here, hide_credentials, mount_here, warn,
};
use crate::serve::ServeError;
use crate::spec::NoProgram;
use crate::sys::path::shown;
use crate::units::exit::Exit;
use crate::units::text::{Message, Outlet};

/// Encrypted scratch for one run: its key is born and dies with it.
#[derive(Debug, Parser)]
#[command(name = "runseal", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    /// Say nothing but warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Run(run::RunArgs),
    Preflight(preflight::PreflightArgs),
    Mount(mount::MountArgs),
    Status(lifecycle::StatusArgs),
    Resume(lifecycle::ResumeArgs),
    End(lifecycle::EndArgs),
    Exec(visit::ExecArgs),
    Cp(visit::CpArgs),
    Verify(verify::VerifyArgs),
    Audit(audit::AuditArgs),
    Serve(serve::ServeArgs),
    Policy(policy::PolicyArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
    /// For the sealed process, which must not wait for its own mount
    #[command(name = FLUSH_RESULTS, hide = true)]
    FlushResults {
        /// Where the scratch is mounted
        scratch: PathBuf,
        /// What to flush, as a path in it
        below: PathBuf,
    },
    /// For `serve`: mounts as the order on standard input says
    #[command(name = SERVED_MOUNT, hide = true)]
    ServedMount,
}

/// Why the command line did not lead to success.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file that was named cannot be read.
    #[error("{}: cannot be read: {source}", shown(path))]
    Input { path: PathBuf, source: std::io::Error },
    /// It could not be done.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The node daemon.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The answer could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl From<FamilyError> for Failure {
    fn from(error: FamilyError) -> Self {
        Self::Run(error.into())
    }
}

impl From<NoProgram> for Failure {
    fn from(error: NoProgram) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Entry point of the binary.
pub fn main() -> ExitCode {
    let hidden = hide_credentials();
    start_tracing();
    if let Err(error) = hidden {
        warn(&error);
        return exit::code(&error).into();
    }
    let mut line = std::env::args_os().peekable();
    if helper::is_meant(line.peek().map(OsString::as_os_str)) {
        return helper::act(line, perform).into();
    }
    perform(line).into()
}

/// Prints what clap has to say; returns whether that is an error. Help and version go to standard output and are none.
fn explain(said: &clap::Error) -> bool {
    let _ = match said.use_stderr() {
        // Arguments stand in it as they came.
        true => write!(io::stderr(), "{}", Message(said.render())),
        false => said.print(),
    };
    said.use_stderr()
}

/// Where answers go: standard output, through which nothing hidden leaves.
fn stdout() -> Outlet<StdoutLock<'static>> {
    Outlet::new(io::stdout().lock())
}

/// Does what the command line says; returns the exit status.
fn perform(line: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(error) => {
            return if explain(&error) { Exit::Usage.number() } else { 0 };
        }
    };
    let voice = if cli.quiet { Voice::Quiet } else { Voice::Normal };
    match act(cli.action, voice) {
        Ok(status) => status,
        Err(failure) => {
            warn(&failure);
            match failure {
                Failure::Usage(_) => Exit::Usage.number(),
                Failure::Input { .. } => Exit::NoInput.number(),
                Failure::Run(error) => exit::code(&error),
                Failure::Serve(error) => exit::serve(&error).number(),
                // A closed pipe is the reader's choice, as of `head`.
                Failure::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
                Failure::Output(_) => Exit::Io.number(),
            }
        }
    }
}

fn act(action: Action, voice: Voice) -> Result<u8, Failure> {
    match action {
        Action::Run(args) => run::act(args, voice),
        Action::Preflight(args) => preflight::act(args),
        Action::Mount(args) => mount::act(args, voice),
        Action::Status(args) => lifecycle::status(args),
        Action::Resume(args) => lifecycle::resume(args),
        Action::End(args) => lifecycle::end(args),
        Action::Exec(args) => visit::exec(args),
        Action::Cp(args) => visit::cp(args),
        Action::Policy(args) => policy::act(args),
        Action::Verify(args) => verify::act(args),
        Action::Audit(args) => audit::act(args),
        Action::Serve(args) => serve::act(args),
        Action::Doctor(args) => doctor::act(args),
        Action::Completions(args) => completions::completions(args),
        Action::Man(args) => completions::man(args),
        Action::FlushResults { scratch, below } => Ok(flush_here(&scratch, &below).map(|()| 0)?),
        Action::ServedMount => Ok(mount_here(io::stdin(), io::stdout(), exit::code)?),
    }
}

/// Diagnostics for developers, on stderr; `RUNSEAL_LOG=debug` or a tracing filter shows more.
fn start_tracing() {
    use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
    use tracing_subscriber::prelude::*;
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).with_env_var("RUNSEAL_LOG");
    // What libraries tell about their work has secrets in it: names of the scratch (fuser), tokens and contents (AWS).
    let discreet = filter_fn(|about| about.target().starts_with("runseal") || *about.level() <= tracing::Level::INFO);
    // Names and texts of others are in it: each event stays one line, without anything a terminal would obey.
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| Outlet::of_lines(io::stderr())).with_filter(
            filter.from_env_lossy().add_directive("fuser=warn".parse().expect("a valid directive")).and(discreet),
        );
    tracing_subscriber::registry().with(layer).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Numbers of two or three digits in `text`.
    fn numbers(text: &str) -> Vec<u8> {
        let words = text.split(|c: char| !c.is_ascii_digit()).filter(|word| (2..=3).contains(&word.len()));
        words.filter_map(|word| word.parse().ok()).collect()
    }

    #[test]
    fn help_tells_the_exit_statuses_of_the_one_table() {
        let command = Cli::command();
        let help = |name: &str| {
            let subcommand = command.find_subcommand(name).expect("a subcommand");
            subcommand.get_after_help().expect("a table of exit statuses").to_string()
        };
        for (name, text) in ["run", "preflight", "verify"].map(|name| (name, help(name))) {
            let unknown: Vec<_> =
                numbers(&text).into_iter().filter(|number| *number != 128 && Exit::of(*number).is_none()).collect();
            assert_eq!(unknown, [0; 0], "{name}");
        }
        for exit in Exit::ALL {
            let says = match exit {
                Exit::Usage => "wrong command line",
                Exit::Data => continue,
                Exit::NoInput => "input missing or unreadable",
                Exit::Unavailable => "machine or AWS lacks something",
                Exit::System => "the sealed process died",
                Exit::CannotCreate => "output, backing or report cannot be created",
                Exit::Io => "reading or writing failed",
                Exit::Unpublished => "results held in vain",
                Exit::NoPermission => "no permission",
                Exit::Configuration => "memory lock or cipher engine not to be had",
                Exit::NotExecutable => "COMMAND cannot be executed",
                Exit::NotFound => "COMMAND not found",
            };
            assert!(help("run").contains(&format!("{} {says}", exit.number())), "{exit:?}");
        }
    }

    #[test]
    fn documents_tell_the_exit_statuses_of_the_one_table() {
        let read = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            std::fs::read_to_string(path).expect(name).replace("\n", " ")
        };
        for (name, place, exits) in [
            ("README.md", "the exit status is 75", &[Exit::Unpublished][..]),
            ("docs/semantics.md", "the exit status is 75", &[Exit::Unpublished]),
            ("docs/semantics.md", "the exit status is 74", &[Exit::Io]),
            ("docs/semantics.md", "runseal exits with 71", &[Exit::System]),
            (
                "docs/operations.md",
                "65 if something differs, 66 if there is no manifest, and 74",
                &[Exit::Data, Exit::NoInput, Exit::Io],
            ),
            ("docs/operations.md", "| exit status 69 |", &[Exit::Unavailable]),
            ("docs/operations.md", "--on-hold=fail`, or a time that fits: exit status 75", &[Exit::Unpublished]),
            ("docs/operations.md", "resume --incomplete R`: exit status 74", &[Exit::Io]),
            ("docs/operations.md", "in good order (exit status 143", &[]),
            (
                "docs/kms.md",
                "Exit status: 77 if a permission is missing, 69 if AWS cannot be reached or is not configured, else 66 \
                 for inputs and 73 for outputs",
                &[Exit::NoPermission, Exit::Unavailable, Exit::NoInput, Exit::CannotCreate],
            ),
        ] {
            assert!(read(name).contains(place), "{name}: {place}");
            let told: Vec<_> = numbers(place).into_iter().filter_map(Exit::of).collect();
            assert_eq!(told, exits, "{name}: {place}");
        }
        for name in ["README.md", "docs/semantics.md", "docs/operations.md", "docs/kms.md"] {
            let text = read(name);
            for phrase in ["exit status ", "exit status is ", "exits with "] {
                for rest in text.split(phrase).skip(1) {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    let told: Option<u8> = digits.parse().ok();
                    let known = |told: u8| told == 0 || told > 128 || Exit::of(told).is_some();
                    assert!(told.is_none_or(known), "{name}: {phrase}{digits}");
                }
            }
        }
    }
}
