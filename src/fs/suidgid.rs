//! Set-user-ID and set-group-ID: what takes them away.

use super::node::{GROUP_EXECUTE, SETGID, SETUID};
use super::{FsError, Kind, Scratch};

/// A change after which set-user-ID or set-group-ID may promise what is no longer so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of contents or size.
    Contents,
    /// Of owner or group.
    Owner,
    /// Of neither, by a call that could: chown(2) to what they are, or to nothing.
    SameOwner,
    /// Of the access ACL.
    AccessAcl,
}

/// What whoever makes a change is to the file (credentials(7), capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Owns the file, or is root.
    pub owner: bool,
    /// Has `CAP_FSETID`.
    pub fsetid: bool,
    /// Is in the group of the file.
    pub member: bool,
}

impl Scratch {
    /// Takes set-user-ID and set-group-ID away as Linux 6.2 does for `change`. To be called before the change, so that no
    /// bit stands for contents it was not given to. `relation` gets owner and group of the file, and is asked only where
    /// there are such bits. Returns whether the mode is another one now.
    pub fn kill_suidgid(
        &self,
        ino: u64,
        change: Change,
        relation: impl FnOnce(u32, u32) -> Relation,
    ) -> Result<bool, FsError> {
        let inode = self.inode(ino)?;
        let (mode, uid, gid) = {
            let meta = inode.meta();
            (meta.mode(), meta.uid, meta.gid)
        };
        if mode & (SETUID | SETGID) == 0 {
            return Ok(false);
        }
        let relation = relation(uid, gid);
        let killed = mode & change.kills(inode.kind(), mode, relation);
        if killed != 0 && change == Change::SameOwner && !relation.owner {
            return Err(FsError::NotPermitted);
        }
        inode.meta().clear(killed);
        Ok(killed != 0)
    }
}

impl Change {
    /// `setattr_should_drop_suidgid`, `chown_common` and `posix_acl_update_mode` of the kernel.
    fn kills(self, kind: Kind, mode: u32, relation: Relation) -> u32 {
        let stranger = !relation.member && !relation.fsetid;
        // Without group execute the bit once meant mandatory locking.
        let setgid = if stranger || mode & GROUP_EXECUTE != 0 { SETGID } else { 0 };
        match self {
            Self::Contents if kind == Kind::File && !relation.fsetid => SETUID | setgid,
            Self::Owner | Self::SameOwner if kind != Kind::Directory => SETUID | setgid,
            Self::AccessAcl if stranger => SETGID,
            Self::Contents | Self::Owner | Self::SameOwner | Self::AccessAcl => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ROOT;
    use super::super::testing::{CALLER, scratch};
    use super::*;

    const NOBODY: Relation = Relation { owner: false, fsetid: false, member: false };
    const MEMBER: Relation = Relation { member: true, ..NOBODY };
    const ROOT_USER: Relation = Relation { owner: true, fsetid: true, member: false };

    // promise: S-23
    #[test]
    fn each_change_takes_away_what_it_takes_away_on_linux() {
        let fs = scratch();
        let file = fs.mknod(ROOT, b"f", Kind::File, 0o644, 0, &CALLER).unwrap().ino;
        let dir = fs.dir(ROOT, "d").ino;
        for (ino, change, relation, before, after) in [
            (file, Change::Contents, NOBODY, 0o6755, 0o755),
            (file, Change::Contents, NOBODY, 0o6745, 0o745),
            (file, Change::Contents, MEMBER, 0o6745, 0o2745),
            (file, Change::Contents, MEMBER, 0o2755, 0o755),
            (file, Change::Contents, ROOT_USER, 0o6755, 0o6755),
            (dir, Change::Contents, NOBODY, 0o6755, 0o6755),
            (file, Change::Owner, ROOT_USER, 0o6755, 0o755),
            (file, Change::Owner, ROOT_USER, 0o6745, 0o2745),
            (file, Change::Owner, NOBODY, 0o6745, 0o745),
            (dir, Change::Owner, NOBODY, 0o6755, 0o6755),
            (file, Change::SameOwner, ROOT_USER, 0o6745, 0o2745),
            (file, Change::SameOwner, Relation { owner: true, ..NOBODY }, 0o6745, 0o745),
            (file, Change::SameOwner, MEMBER, 0o2745, 0o2745),
            (file, Change::AccessAcl, NOBODY, 0o6755, 0o4755),
            (file, Change::AccessAcl, MEMBER, 0o6755, 0o6755),
            (file, Change::AccessAcl, ROOT_USER, 0o6755, 0o6755),
            (dir, Change::AccessAcl, NOBODY, 0o3775, 0o1775),
        ] {
            fs.chmod(ino, before);
            let changed = fs.kill_suidgid(ino, change, |uid, gid| {
                assert_eq!((uid, gid), (CALLER.uid, CALLER.gid));
                relation
            });
            assert_eq!(fs.attr(ino).mode, after, "{before:o} {change:?} {relation:?}");
            assert_eq!(changed.unwrap(), before != after);
        }
    }

    #[test]
    fn only_the_owner_takes_bits_away_by_changing_nothing() {
        let fs = scratch();
        let ino = fs.mknod(ROOT, b"f", Kind::File, 0o4755, 0, &CALLER).unwrap().ino;
        assert!(matches!(fs.kill_suidgid(ino, Change::SameOwner, |_, _| MEMBER), Err(FsError::NotPermitted)));
        assert_eq!(fs.attr(ino).mode, 0o4755);
    }

    #[test]
    fn nobody_is_asked_about_bits_that_are_not_there() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        assert!(!fs.kill_suidgid(ino, Change::Contents, |_, _| panic!("asked")).unwrap());
        assert!(matches!(fs.kill_suidgid(99, Change::Contents, |_, _| panic!("asked")), Err(FsError::Stale(99))));
    }
}
