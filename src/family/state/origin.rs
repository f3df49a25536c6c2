//! Who started a run, where and with what: what its report and its audit trail tell of it.

use nix::unistd::{Uid, User, getuid};
use serde::{Deserialize, Serialize};

use crate::spec::{CommandSpec, RunSpec};

/// What the kernel writes where nobody has logged in (audit(8), `AUDIT_UID_UNSET`).
const NOBODY_LOGGED_IN: u32 = u32::MAX;

/// Who started a run, where and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the user, if it has one.
    pub user: Option<String>,
    /// The user.
    pub uid: u32,
    /// The user who logged in, which stays the same through `sudo`, where the kernel keeps it.
    pub login_uid: Option<u32>,
    /// Name of the machine.
    pub host: String,
    /// Program and arguments, if they were to be recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}

impl Origin {
    /// That of a run that this process starts. To be called before namespaces are entered, which have users of their own.
    pub fn of(spec: &RunSpec) -> Self {
        let uid = getuid();
        let host = nix::sys::utsname::uname().map(|machine| machine.nodename().to_string_lossy().into_owned());
        let words =
            |command: &CommandSpec| command.argv.words().map(|word| word.to_string_lossy().into_owned()).collect();
        Self {
            user: name(uid),
            uid: uid.as_raw(),
            login_uid: login_uid(),
            host: host.unwrap_or_default(),
            command: spec.command().filter(|command| command.record_command).map(words),
        }
    }
}

fn name(uid: Uid) -> Option<String> {
    Some(User::from_uid(uid).ok()??.name)
}

fn login_uid() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|&uid| uid != NOBODY_LOGGED_IN)
}
