//! Who sent a request: more than its header says, for the few requests where that decides.

use fuser::Request;

use crate::fs::Relation;
use crate::sys::process::{Credentials, credentials};

/// `CAP_FSETID` (capabilities(7)).
const CAP_FSETID: u32 = 4;

/// What the sender of `request`, which waits for its answer, is to a file of the owner `uid` and the group `gid`.
///
/// fuser 0.18 does not pass on what the kernel knows (`FATTR_KILL_SUIDGID`, `SETXATTR_ACL_KILL_SGID`). Where its process
/// cannot be seen, in another PID namespace or without the right to, the sender has the group of the header only, and the
/// capability if it is root. Capabilities of others count in their user namespace, which is seldom that of the mount: they
/// are taken for none.
pub(super) fn relation(request: &Request, uid: u32, gid: u32) -> Relation {
    let seen = (request.pid() != 0).then(|| credentials(request.pid())).flatten();
    weigh((request.uid(), request.gid()), seen.as_ref(), (uid, gid))
}

/// User and group of the sender, what is seen of it, and user and group of the file.
fn weigh(sender: (u32, u32), seen: Option<&Credentials>, file: (u32, u32)) -> Relation {
    let root = sender.0 == 0;
    Relation {
        owner: root || sender.0 == file.0,
        fsetid: root && seen.is_none_or(|seen| seen.effective >> CAP_FSETID & 1 == 1),
        member: sender.1 == file.1 || seen.is_some_and(|seen| seen.groups.contains(&file.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_not_granted() {
        let seen = |effective| Credentials { effective, groups: vec![7, 8] };
        for (uid, seen, file, owner, fsetid, member) in [
            (0, None, (4, 5), true, true, false),
            (0, Some(seen(1 << CAP_FSETID)), (4, 5), true, true, false),
            (0, Some(seen(!(1 << CAP_FSETID))), (4, 5), true, false, false),
            (1000, Some(seen(u64::MAX)), (4, 8), false, false, true),
            (1000, None, (1000, 8), true, false, false),
            (1000, None, (4, 100), false, false, true),
        ] {
            let expected = Relation { owner, fsetid, member };
            assert_eq!(weigh((uid, 100), seen.as_ref(), file), expected, "{uid} {file:?}");
        }
    }
}
