//! `runseal completions` and `runseal man`: generated from the command line itself.

use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Failure, helper};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Write the manual pages, one per subcommand and that of the mount helper
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory for the pages; without it, the main page goes to stdout
    dir: Option<PathBuf>,
}

pub fn completions(args: CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "runseal", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(0)
}

pub fn man(args: ManArgs) -> Result<u8, Failure> {
    match args.dir {
        Some(dir) => {
            clap_mangen::generate_to(Cli::command(), &dir)?;
            helper::man_page(&dir)?;
        }
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?,
    }
    Ok(0)
}
