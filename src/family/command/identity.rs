//! A user of its own for the command of a run: one that nobody is, and that no other live run has.
//!
//! Not without privilege. Whoever owns a user namespace has every capability in it and in all below it
//! (user_namespaces(7)), so to the user who started a run without rights its command lies open, also as a subordinate user.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, geteuid};

use crate::spec::Isolate;
use crate::sys::capability::{self, Sets};

/// Whose lines of /etc/subuid and /etc/subgid are meant.
const NAME: &str = "runseal";
/// Files that stand for users, for root.
const CLAIMS: &str = "/run/runseal/@users";
/// What it takes to become another user, to hide what that one sees, and to end and read it.
const NEEDED: capability::Set = capability::SYS_ADMIN
    | capability::SETUID
    | capability::SETGID
    | capability::KILL
    | capability::DAC_OVERRIDE
    | capability::DAC_READ_SEARCH;

/// Why a command cannot have a user of its own.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Without rights.
    #[error(
        "--isolate=uid needs root, or CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_KILL, CAP_DAC_OVERRIDE and \
         CAP_DAC_READ_SEARCH: without them the kernel lets you into everything a run of yours does, whoever its command is"
    )]
    Unprivileged,
    /// No range is configured.
    #[error(
        "--isolate=uid: /etc/subuid and /etc/subgid give `{NAME}` no ids in common; add a line such as \
         `{NAME}:1879048192:65536` to both, or name a range: --isolate=uid:FIRST-LAST"
    )]
    NoRange,
    /// All are taken.
    #[error("--isolate: every user from {} to {} is in use; name a larger range", .0.start(), .0.end())]
    Exhausted(RangeInclusive<u32>),
    /// A system call failed.
    #[error("--isolate: looking for a free user: {0}")]
    System(#[from] io::Error),
}

/// A user, taken as long as this lives, in whichever process.
pub struct Identity {
    /// Number of the user, and of the group.
    pub id: u32,
    _claim: Claim,
}

/// What only one process of the machine can have, and what goes with it.
#[expect(dead_code, reason = "held, not read")]
enum Claim {
    /// The lock of a file that only root reaches.
    Lock(File),
    /// A name, for who is not root; others could take it, too.
    Name(UnixListener),
}

impl Claim {
    /// `None` if somebody has it.
    fn take(id: u32) -> io::Result<Option<Self>> {
        let taken = if geteuid().is_root() { Self::lock(id) } else { Self::name(id) };
        match taken {
            Ok(claim) => Ok(Some(claim)),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(id: u32) -> io::Result<Self> {
        let folder = Path::new(CLAIMS);
        DirBuilder::new().recursive(true).mode(0o755).create(folder.parent().unwrap_or(folder))?;
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(id.to_string()))?;
        file.try_lock()?;
        Ok(Self::Lock(file))
    }

    fn name(id: u32) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(format!("runseal/user/{id}"))?;
        Ok(Self::Name(UnixListener::bind_addr(&address)?))
    }
}

impl Identity {
    /// Takes a user that has no name, no process and no run.
    pub fn claim(wanted: &Isolate) -> Result<Self, IdentityError> {
        if Sets::own()?.effective & NEEDED != NEEDED {
            return Err(IdentityError::Unprivileged);
        }
        let range = match wanted {
            Isolate::Range(range) => range.clone(),
            Isolate::Subordinate => subordinate()?.ok_or(IdentityError::NoRange)?,
        };
        let busy = users_of_processes()?;
        // From anywhere: who comes later is rarely the one who was before.
        let count = u64::from(range.end() - range.start()) + 1;
        let start = getrandom::u64().map_err(io::Error::from)? % count;
        for offset in (0..count).map(|step| (start + step) % count) {
            let id = range.start() + offset as u32;
            if busy.contains(&id) || has_name(id) {
                continue;
            }
            if let Some(claim) = Claim::take(id)? {
                return Ok(Self { id, _claim: claim });
            }
        }
        Err(IdentityError::Exhausted(range))
    }
}

fn has_name(id: u32) -> bool {
    let user = User::from_uid(Uid::from_raw(id)).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(id)).ok().flatten();
    user.is_some() || group.is_some()
}

fn users_of_processes() -> io::Result<HashSet<u32>> {
    let mut users = HashSet::new();
    for entry in fs::read_dir("/proc")? {
        // It may have ended, or be no process.
        let Ok(status) = fs::read_to_string(entry?.path().join("status")) else { continue };
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        users.extend(ids.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    Ok(users)
}

/// The first range that both files give to [`NAME`].
fn subordinate() -> io::Result<Option<RangeInclusive<u32>>> {
    let read = |path| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    Ok(common(&read("/etc/subuid")?, &read("/etc/subgid")?))
}

fn common(users: &str, groups: &str) -> Option<RangeInclusive<u32>> {
    let groups: Vec<_> = ranges(groups).collect();
    ranges(users).find_map(|users| {
        groups.iter().find_map(|groups| {
            let both = *users.start().max(groups.start())..=*users.end().min(groups.end());
            (!both.is_empty()).then_some(both)
        })
    })
}

/// `name:first:count` (subuid(5)).
fn ranges(text: &str) -> impl Iterator<Item = RangeInclusive<u32>> {
    text.lines().filter_map(|line| {
        let (first, count) = line.strip_prefix(NAME)?.strip_prefix(':')?.split_once(':')?;
        let (first, count): (u32, u32) = (first.trim().parse().ok()?, count.trim().parse().ok()?);
        let last = first.checked_add(count.checked_sub(1)?)?;
        (first > 0 && last < u32::MAX).then_some(first..=last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_both_files_give() {
        let users = "alice:100000:65536\nrunseal:0:5\nrunseal:200000:100\nrunseals:1:1\n";
        assert_eq!(common(users, "runseal:200050:1000\n"), Some(200_050..=200_099));
        assert_eq!(common(users, "alice:200000:100\n"), None);
        assert_eq!(common("", ""), None);
        assert_eq!(common("runseal:1:0\n", "runseal:1:0\n"), None);
        assert_eq!(common("runseal:4294967290:100\n", "runseal:4294967290:100\n"), None);
    }

    #[test]
    fn users_with_processes_are_seen() {
        assert!(users_of_processes().expect("/proc is there").contains(&nix::unistd::getuid().as_raw()));
        assert!(has_name(0));
    }
}
