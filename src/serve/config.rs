//! The configuration: one TOML file, read and checked as a whole.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Group, geteuid};
use serde::de;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::model::{Mode, Size};
use super::mountpoint::Root;
use crate::sys::cgroup::memory_limit;
use crate::sys::path::shown;
use crate::units::ByteSize;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/runseal/serve.toml";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}; write one after deploy/systemd/serve.toml, or name another with --config", shown(.path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("{}: {problem}", shown(.path))]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Who may change what, and what to do.
        problem: String,
    },
    /// It is no TOML, or a key or value is unknown; the text names the line.
    #[error("{}: {text}", shown(.path))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        text: String,
    },
    /// A value that reads well but cannot be.
    #[error("{}:{line}: {key}: {problem}", shown(.path))]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// All that can be configured.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The socket and who may use it.
    pub api: Api,
    /// Where runs live.
    pub mounts: Mounts,
    /// What a run gets that asks for nothing.
    pub defaults: Defaults,
    /// What may be used at most.
    pub limits: Limits,
    /// The volume plugin for Docker.
    pub docker: Docker,
    /// Runs with data in S3.
    pub aws: Aws,
}

/// `[aws]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aws {
    /// Whether runs of users who are not root may use the credentials of this node.
    pub node_credentials: bool,
}

/// `[api]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// The socket.
    pub socket: AbsolutePath,
    /// Its permission bits.
    pub mode: Mode,
    /// Its group.
    pub group: Option<Spanned<GroupName>>,
    /// Most connections at once.
    pub connections: usize,
    /// Most connections of one user at once, root not counted.
    pub connections_per_user: usize,
    /// Seconds a client may take for the head of a request, and again for its body.
    pub patience: Seconds,
    /// Largest body of a request.
    pub request_size: Size,
}

/// `[mounts]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mounts {
    /// Mountpoints are made below these.
    pub roots: Vec<Spanned<AbsolutePath>>,
    /// Directories that may take ciphertext; the first is the default.
    pub backing: Vec<Spanned<AbsolutePath>>,
    /// Seconds that a run may take to be mounted.
    pub patience: Seconds,
}

/// `[defaults]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Most a scratch may hold.
    pub size: Size,
    /// Memory that names and attributes may take.
    pub memory: Size,
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Live runs.
    pub runs: usize,
    /// Sum of the sizes of all runs.
    pub bytes: Option<Size>,
    /// Sum of the memory of all runs: half of what there is, unless set.
    pub memory: Option<Size>,
    /// For each user but root.
    pub per_user: PerUser,
}

/// `[limits.per_user]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerUser {
    /// Live runs.
    pub runs: usize,
    /// Sum of the sizes of the user's runs.
    pub bytes: Option<Size>,
    /// Sum of the memory of the user's runs: a quarter of what there is, unless set.
    pub memory: Option<Size>,
}

/// `[docker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Docker {
    /// Whether to be a volume plugin.
    pub enabled: bool,
    /// The socket; its name without `.sock` is the name of the volume driver.
    pub socket: AbsolutePath,
    /// Where volumes are mounted; made if absent.
    pub root: Spanned<AbsolutePath>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            socket: AbsolutePath("/run/runseal/serve.sock".into()),
            mode: Mode(0o660),
            group: None,
            connections: 512,
            connections_per_user: 64,
            patience: Seconds(Duration::from_secs(10)),
            request_size: Size(ByteSize(64 << 10)),
        }
    }
}

impl Default for Mounts {
    fn default() -> Self {
        let path = |path: &str| Spanned::new(0..0, AbsolutePath(path.into()));
        let patience = Seconds(Duration::from_secs(30));
        Self { roots: vec![path("/mnt/runseal")], backing: vec![path("/var/tmp")], patience }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self { size: Size(ByteSize(10 << 30)), memory: Size(ByteSize(64 << 20)) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { runs: 1000, bytes: None, memory: share_of_memory(2), per_user: PerUser::default() }
    }
}

impl Default for PerUser {
    fn default() -> Self {
        Self { runs: 100, bytes: None, memory: share_of_memory(4) }
    }
}

/// An n-th of the memory there is.
fn share_of_memory(n: u64) -> Option<Size> {
    memory_limit().map(|bytes| Size(ByteSize(bytes / n)))
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            enabled: false,
            socket: AbsolutePath("/run/docker/plugins/runseal.sock".into()),
            root: Spanned::new(0..0, AbsolutePath("/run/runseal-volumes".into())),
        }
    }
}

impl Config {
    /// Reads the file and checks everything in it that can be checked.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut file = fs::File::open(path).map_err(failed)?;
        let untrusted = |problem| ConfigError::Untrusted { path: path.to_owned(), problem };
        trust(path, &file.metadata().map_err(failed)?).map_err(untrusted)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            text: error.to_string().trim_end().to_owned(),
        })?;
        config.check().map_err(|Wrong { at, key, problem }| ConfigError::Value {
            path: path.to_owned(),
            line: text[..at.start.min(text.len())].matches('\n').count() + 1,
            key,
            problem,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Wrong> {
        if let Some(group) = &self.api.group {
            group.get_ref().id().map_err(wrong(group.span(), "api.group"))?;
        }
        let Mounts { roots, backing, patience: _ } = &self.mounts;
        let none = |key| wrong(0..0, key)("name at least one directory".to_owned());
        if roots.is_empty() {
            return Err(none("mounts.roots"));
        }
        if backing.is_empty() {
            return Err(none("mounts.backing"));
        }
        for root in roots {
            Root::open(root.get_ref().as_path()).map_err(wrong(root.span(), "mounts.roots"))?;
        }
        for directory in backing {
            let path = directory.get_ref().as_path();
            if !path.is_dir() {
                let problem = format!("{} is not a directory; create it on a local disk", shown(path));
                return Err(wrong(directory.span(), "mounts.backing")(problem));
            }
            if path.metadata().is_ok_and(|found| found.mode() & 0o1002 == 0o002) {
                let problem = format!(
                    "{0}: everybody may write there, and without the sticky bit take away what is not theirs: chmod +t {0}",
                    shown(path)
                );
                return Err(wrong(directory.span(), "mounts.backing")(problem));
            }
        }
        Ok(())
    }

    /// Group of the socket.
    pub fn group(&self) -> Option<Gid> {
        self.api.group.as_ref().and_then(|group| group.get_ref().id().ok())
    }

    /// Directories below which mountpoints may be.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        self.mounts.roots.iter().map(|root| root.get_ref().as_path())
    }

    /// Directories below which anything is mounted.
    pub fn mounted_below(&self) -> impl Iterator<Item = &Path> {
        self.roots().chain(self.docker.enabled.then(|| self.docker.root.get_ref().as_path()))
    }

    /// Directories that may take ciphertext; never empty.
    pub fn backing(&self) -> impl Iterator<Item = &Path> {
        self.mounts.backing.iter().map(|directory| directory.get_ref().as_path())
    }

    /// The first directory of `wanted` that may take none, and which may.
    pub fn foreign_backing(&self, wanted: &[PathBuf]) -> Option<String> {
        let foreign = wanted.iter().find(|wanted| !self.backing().any(|path| path == *wanted))?;
        let allowed: Vec<_> = self.backing().map(shown).collect();
        Some(format!("{}: this node allows {}", shown(foreign), allowed.join(", ")))
    }
}

/// Who may change the file, or put another in its place, has the rights of the service.
fn trust(path: &Path, found: &fs::Metadata) -> Result<(), String> {
    if may_be_changed(found) {
        return Err("others may change it; let it belong to root, mode 0644".to_owned());
    }
    // What is no file by name (a pipe) has nobody above it.
    let real = fs::canonicalize(path).unwrap_or_default();
    for above in real.ancestors().skip(1) {
        let sticky = |found: &fs::Metadata| found.mode() & 0o1000 != 0 && is_ours(found);
        if above.metadata().is_ok_and(|found| may_be_changed(&found) && !sticky(&found)) {
            let problem = "others may change it, and so replace the configuration; let it belong to root, mode 0755";
            return Err(format!("{}: {problem}", shown(above)));
        }
    }
    Ok(())
}

fn may_be_changed(found: &fs::Metadata) -> bool {
    !is_ours(found) || found.mode() & 0o002 != 0 || found.mode() & 0o020 != 0 && found.gid() != 0
}

fn is_ours(found: &fs::Metadata) -> bool {
    found.uid() == 0 || found.uid() == geteuid().as_raw()
}

struct Wrong {
    at: Range<usize>,
    key: &'static str,
    problem: String,
}

fn wrong(at: Range<usize>, key: &'static str) -> impl FnOnce(String) -> Wrong {
    move |problem| Wrong { at, key, problem }
}

/// A path from the root, without `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// As a path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let path = Path::new(&text);
        if path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
            Ok(Self(path.to_owned()))
        } else {
            Err(de::Error::custom(format!("`{text}` is not an absolute path without `..`")))
        }
    }
}

/// A time of at least a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            seconds @ 1..=3600 => Ok(Self(Duration::from_secs(seconds))),
            seconds => Err(de::Error::custom(format!("{seconds} is not a number of seconds from 1 to 3600"))),
        }
    }
}

/// A group by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a group is a name or a number")]
pub enum GroupName {
    /// As in group(5).
    Name(String),
    /// Group id.
    Id(u32),
}

impl GroupName {
    fn id(&self) -> Result<Gid, String> {
        match self {
            Self::Id(id) => Ok(Gid::from_raw(*id)),
            Self::Name(name) => match Group::from_name(name) {
                Ok(Some(group)) => Ok(group.gid),
                Ok(None) => Err(format!("there is no group `{name}`; create it: groupadd --system {name}")),
                Err(errno) => Err(format!("the group `{name}` cannot be looked up: {}", errno.desc())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        Config::parse(Path::new("serve.toml"), text).expect_err(text).to_string()
    }

    #[test]
    fn every_mistake_names_its_line_and_key() {
        for (text, words) in [
            ("x", &["line 1"][..]),
            ("[api]\nsokket = \"/run/x\"", &["line 2", "sokket", "socket"]),
            ("[apo]", &["line 1", "apo", "api"]),
            ("[api]\n\nmode = \"9\"", &["line 3", "mode", "octal"]),
            ("[api]\nsocket = \"run/x\"", &["line 2", "socket", "run/x", "absolute"]),
            ("[api]\nsocket = \"/run/../x\"", &["line 2", "/run/../x"]),
            ("[api]\npatience = 0", &["line 2", "patience", "1 to 3600"]),
            ("[api]\nconnections = -1", &["line 2", "connections"]),
            ("[api]\ngroup = \"no such group\"", &["serve.toml:2", "api.group", "groupadd"]),
            ("[defaults]\nsize = \"much\"", &["line 2", "size", "much"]),
            ("[defaults]\nmemory = 0", &["line 2", "memory"]),
            ("[limits.per_user]\nrun = 3", &["line 2", "run", "runs"]),
            ("[mounts]\nroots = []", &["mounts.roots", "at least one"]),
            ("[mounts]\nroots = [\"/\"]\nbacking = []", &["mounts.backing", "at least one"]),
            ("[mounts]\nroots = [\n  \"/\",\n  \"/nonexistent/x\"]", &["serve.toml:4", "mounts.roots", "/nonexistent"]),
            (
                "[mounts]\nroots = [\"/\"]\nbacking = [\"/nonexistent/x\"]",
                &["serve.toml:3", "mounts.backing", "/nonexistent"],
            ),
        ] {
            let said = complaint(text);
            for word in words {
                assert!(said.contains(word), "{text}: no `{word}` in: {said}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/nonexistent/serve.toml")).expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/serve.toml"), "{error}");
    }

    #[test]
    fn an_empty_file_is_the_defaults_with_a_root() {
        let config = Config::parse(Path::new("x"), "[mounts]\nroots = [\"/\"]").expect("valid");
        assert_eq!(config.api.socket.as_path(), Path::new("/run/runseal/serve.sock"));
        assert!(!config.docker.enabled);
    }
}
