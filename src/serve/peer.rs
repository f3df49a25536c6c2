//! Who calls: the kernel says it (`SO_PEERCRED`), not the request.

use std::io;

use tokio::net::UnixStream;

use super::model::Owner;
use super::problem::{Problem, ProblemKind};

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Process, unless it is in a PID namespace that cannot be seen from here.
    pub process: Option<u32>,
}

impl Caller {
    /// Root, for what the service does itself.
    pub const ROOT: Self = Self { uid: 0, gid: 0, process: Some(1) };

    /// The caller behind `stream`.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let process = peer.pid().and_then(|process| u32::try_from(process).ok()).filter(|process| *process != 0);
        Ok(Self { uid: peer.uid(), gid: peer.gid(), process })
    }

    /// Root may do everything.
    pub fn is_root(self) -> bool {
        self.uid == 0
    }

    /// Whether runs of `user` are this caller's business.
    pub fn may_see(self, user: u32) -> bool {
        self.is_root() || self.uid == user
    }

    /// The owner of a new scratch: only root may name somebody else.
    pub fn owner(self, wanted: Option<Owner>) -> Result<Owner, Problem> {
        let own = Owner { uid: self.uid, gid: self.gid };
        match wanted {
            Some(owner) if !self.is_root() && owner != own => Err(Problem::new(
                ProblemKind::Forbidden,
                format!(
                    "owner {}:{}: only root makes runs for others; leave `owner` out, it is then {}:{}",
                    owner.uid, owner.gid, own.uid, own.gid
                ),
            )),
            wanted => Ok(wanted.unwrap_or(own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_acts_for_others() {
        let user = Caller { uid: 1000, gid: 100, process: None };
        let own = Owner { uid: 1000, gid: 100 };
        assert_eq!(user.owner(None).expect("own"), own);
        assert_eq!(user.owner(Some(own)).expect("own"), own);
        for other in [Owner { uid: 0, gid: 0 }, Owner { uid: 1001, gid: 100 }, Owner { uid: 1000, gid: 0 }] {
            assert_eq!(user.owner(Some(other)).expect_err("not root").kind, ProblemKind::Forbidden);
            assert_eq!(Caller::ROOT.owner(Some(other)).expect("root"), other);
        }
        assert!(user.may_see(1000) && !user.may_see(0) && Caller::ROOT.may_see(1000));
    }
}
