//! One run, from the command line or the API to the sealed process: the order, and what is kept of it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CommandRights, DataSpec, RescueSpec, RunId, StoreSpec, TmpPolicy};

/// A run: what is sealed, what goes in and out, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Name of the run.
    pub id: RunId,
    /// The encrypted store.
    pub store: StoreSpec,
    /// What is copied in and out.
    #[serde(default)]
    pub data: DataSpec,
    /// What the scratch is for.
    pub purpose: Purpose,
}

/// What a scratch is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// One command, which alone sees it: `runseal run`.
    Command(CommandSpec),
    /// Everybody who may, below a mountpoint, until it is told to end: `runseal mount` and the node daemon.
    Serve(ServeSpec),
}

impl RunSpec {
    /// The command, if it is for one.
    pub fn command(&self) -> Option<&CommandSpec> {
        match &self.purpose {
            Purpose::Command(command) => Some(command),
            Purpose::Serve(_) => None,
        }
    }

    /// The mount, if it is for one.
    pub fn serving(&self) -> Option<&ServeSpec> {
        match &self.purpose {
            Purpose::Command(_) => None,
            Purpose::Serve(serving) => Some(serving),
        }
    }
}

/// A command, and how it is treated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Program and arguments.
    pub argv: Argv,
    /// What it finds at `/tmp` and `/var/tmp`.
    pub tmp: TmpPolicy,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Whether report and audit trail tell `argv`: arguments may be secret.
    pub record_command: bool,
    /// What becomes of the run in trouble.
    pub rescue: RescueSpec,
    /// As whom it runs, and what it may.
    pub rights: CommandRights,
}

/// Program and arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<OsString>", into = "Vec<OsString>")]
pub struct Argv {
    /// Name or path of the program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Nothing is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a command begins with a program")]
pub struct NoProgram;

impl Argv {
    /// All words, the program first.
    pub fn words(&self) -> impl Iterator<Item = &OsStr> {
        std::iter::once(&self.program).chain(&self.arguments).map(OsString::as_os_str)
    }
}

impl TryFrom<Vec<OsString>> for Argv {
    type Error = NoProgram;

    fn try_from(words: Vec<OsString>) -> Result<Self, NoProgram> {
        let mut words = words.into_iter();
        let program = words.next().ok_or(NoProgram)?;
        Ok(Self { program, arguments: words.collect() })
    }
}

impl From<Argv> for Vec<OsString> {
    fn from(Argv { program, arguments }: Argv) -> Self {
        std::iter::once(program).chain(arguments).collect()
    }
}

/// A mount that others see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeSpec {
    /// An existing, empty directory.
    pub mountpoint: PathBuf,
    /// Options of `-o`, already split at commas.
    pub options: Vec<String>,
    /// The root directory of the scratch.
    pub root: RootSpec,
    /// Who waits for the end of it.
    pub foreground: Foreground,
    /// What whoever asked for the mount wants to find in its state.
    pub note: Option<serde_json::Value>,
}

impl ServeSpec {
    /// A mount in the background, as plain as can be.
    pub fn new(mountpoint: impl AsRef<Path>) -> Self {
        let mountpoint = mountpoint.as_ref().to_owned();
        Self { mountpoint, options: Vec::new(), root: RootSpec::default(), foreground: Foreground::Leave, note: None }
    }
}

/// Whether whoever mounts waits for the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foreground {
    /// The caller gets on as soon as the mount is ready.
    #[default]
    Leave,
    /// The caller stays until it has ended.
    Stay,
}

/// The root directory of a scratch that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootSpec {
    /// User and group it belongs to; `None` means those of the process that mounts.
    pub owner: Option<(u32, u32)>,
    /// Permission bits; `None` means 0755.
    pub mode: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_arrives_as_it_was_sent() {
        let argv = |words: &[&str]| Argv::try_from(words.iter().map(OsString::from).collect::<Vec<_>>());
        let command = CommandSpec {
            argv: argv(&["cp", "-a", "x"]).expect("a program"),
            tmp: TmpPolicy::Host,
            report: None,
            record_command: true,
            rescue: RescueSpec {
                on_hold: Some("90s".parse().expect("a time")),
                save: vec!["work/*.log".parse().expect("a pattern")],
                ..RescueSpec::default()
            },
            rights: CommandRights { isolate: Some("uid:5-6".parse().expect("a range")), ..CommandRights::default() },
        };
        let root = RootSpec { owner: Some((1, 2)), mode: Some(0o700) };
        let serving = ServeSpec { root, note: Some(serde_json::json!({ "a": 1 })), ..ServeSpec::new("/mnt") };
        for purpose in [Purpose::Command(command), Purpose::Serve(serving)] {
            let spec = RunSpec {
                id: "run".parse().expect("an id"),
                store: StoreSpec { size: Some(crate::units::ByteSize(5)), ..StoreSpec::default() },
                data: DataSpec { overwrite: true, ..DataSpec::default() },
                purpose,
            };
            let text = serde_json::to_string(&spec).expect("JSON");
            assert_eq!(serde_json::from_str::<RunSpec>(&text).expect("an order"), spec, "{text}");
        }
        assert_eq!(argv(&[]), Err(NoProgram));
        assert!(serde_json::from_str::<Argv>("[]").is_err());
    }
}
