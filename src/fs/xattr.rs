//! Extended attributes: setting, reading, listing, removing.

use super::node::{ATTRIBUTE_MEMORY, Acl, Attribute, EXTENDED_MEMORY, Inode, MAX_VALUE, Meta};
use super::{FsError, Scratch, Time, XattrMode};

impl Scratch {
    /// Sets an extended attribute (setxattr(2)). Names start with `user.` (files and directories only), `trusted.`
    /// or `security.`, or carry an ACL, which keeps the permission bits in step and ignores `mode`. An empty ACL
    /// removes it.
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        let attribute = Attribute::parse(name)?;
        if value.len() > MAX_VALUE {
            return Err(FsError::TooBig);
        }
        let inode = self.inode(ino)?;
        attribute.check_settable(&inode)?;
        if matches!(attribute, Attribute::DefaultAcl) && !inode.is_directory() {
            return refuse_default_acl(value);
        }
        // Room for all of it first, whatever it replaces.
        let most = EXTENDED_MEMORY + ATTRIBUTE_MEMORY + (name.len() + 2 * value.len()) as u64;
        if !self.store.metadata().take(most) {
            return Err(FsError::NoInodes);
        }
        let set = self.change_extended(&inode, |meta| match attribute {
            Attribute::AccessAcl => Acl::decode(value).map(|acl| meta.set_access_acl(acl)),
            Attribute::DefaultAcl => Acl::decode(value).map(|acl| meta.set_default_acl(acl)),
            Attribute::Plain(name) => meta.extended_mut(|extended| extended.set(name, value, mode)),
        });
        self.store.metadata().give_back(most);
        set
    }

    /// The value of an extended attribute (getxattr(2)).
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let attribute = Attribute::parse(name)?;
        let inode = self.inode(ino)?;
        attribute.check_kind(&inode)?;
        let meta = inode.meta();
        let extended = meta.extended.as_ref().ok_or(FsError::NoAttribute)?;
        extended.get(&attribute).ok_or(FsError::NoAttribute)
    }

    /// Names of all extended attributes, each followed by a NUL byte (listxattr(2)).
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(ino)?;
        let meta = inode.meta();
        Ok(meta.extended.as_ref().map_or_else(Vec::new, |extended| extended.names()))
    }

    /// Removes an extended attribute (removexattr(2)). An ACL that is not there counts as removed, as on Linux.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), FsError> {
        let attribute = Attribute::parse(name)?;
        let inode = self.inode(ino)?;
        attribute.check_settable(&inode)?;
        if matches!(attribute, Attribute::DefaultAcl) && !inode.is_directory() {
            return Ok(());
        }
        self.change_extended(&inode, |meta| {
            match attribute {
                Attribute::AccessAcl => meta.set_access_acl(None),
                Attribute::DefaultAcl => meta.set_default_acl(None),
                Attribute::Plain(name) => meta.extended_mut(|extended| extended.remove(name))?,
            }
            Ok(())
        })
    }

    /// Changes attributes, and counts what they take.
    fn change_extended(
        &self,
        inode: &Inode,
        change: impl FnOnce(&mut Meta) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let now = Time::now();
        let mut meta = inode.meta();
        let memory = |meta: &Meta| meta.extended.as_ref().map_or(0, |extended| extended.memory());
        let before = memory(&meta);
        let changed = change(&mut meta);
        self.store.metadata().settle(before, memory(&meta));
        changed.inspect(|()| meta.changed(now))
    }
}

/// What is not a directory does without a default ACL, but cannot be given one.
fn refuse_default_acl(value: &[u8]) -> Result<(), FsError> {
    match Acl::decode(value) {
        Ok(None) => Ok(()),
        _ => Err(FsError::Access),
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::{ACCESS_ACL, DEFAULT_ACL, MAX_NAME, MAX_NAMES, MAX_TOTAL};
    use super::super::testing::{CALLER, scratch};
    use super::super::{Kind, ROOT};
    use super::*;

    const ANY: XattrMode = XattrMode::Any;
    const OLD: Time = Time { secs: 1, nanos: 0 };
    /// owner rwx, user 7 rw-, group r-x, mask rwx, others r--
    const NAMED: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
                           \x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    /// owner rw-, group r--, others ---
    const MINIMAL: &[u8] =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

    // promise: S-21
    #[test]
    fn attributes_are_kept_listed_and_removed() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let large = vec![9; MAX_VALUE];
        for (name, value) in [(&b"user.a"[..], &b"1"[..]), (b"trusted.b", b""), (b"security.c", &large)] {
            fs.setxattr(ino, name, value, ANY).unwrap();
            assert_eq!(fs.getxattr(ino, name).unwrap(), value);
        }
        assert_eq!(fs.listxattr(ino).unwrap(), b"security.c\0trusted.b\0user.a\0");
        fs.removexattr(ino, b"user.a").unwrap();
        assert!(matches!(fs.getxattr(ino, b"user.a"), Err(FsError::NoAttribute)));
        assert!(matches!(fs.removexattr(ino, b"user.a"), Err(FsError::NoAttribute)));
        fs.removexattr(ino, b"trusted.b").unwrap();
        fs.removexattr(ino, b"security.c").unwrap();
        assert!(fs.listxattr(ino).unwrap().is_empty() && fs.inode(ino).unwrap().meta().extended.is_none());
    }

    #[test]
    fn modes_of_setting_are_heeded() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        assert!(matches!(fs.setxattr(ino, b"user.a", b"", XattrMode::Replace), Err(FsError::NoAttribute)));
        fs.setxattr(ino, b"user.a", b"1", XattrMode::Create).unwrap();
        assert!(matches!(fs.setxattr(ino, b"user.a", b"2", XattrMode::Create), Err(FsError::Exists)));
        fs.setxattr(ino, b"user.a", b"3", XattrMode::Replace).unwrap();
        assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), b"3");
    }

    #[test]
    fn names_kinds_and_sizes_have_limits() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let link = fs.symlink(ROOT, b"l", b"t", &CALLER).unwrap().ino;
        let set = |ino, name: &[u8], value: &[u8]| fs.setxattr(ino, name, value, ANY);
        let long = [b"user.".as_slice(), &[b'n'; MAX_NAME]].concat();
        set(ino, &long[..MAX_NAME], b"").unwrap();
        assert!(matches!(set(ino, &long[..=MAX_NAME], b""), Err(FsError::Range)));
        assert!(matches!(set(ino, b"user.", b""), Err(FsError::Invalid)));
        assert!(matches!(set(ino, b"user.a\0b", b""), Err(FsError::Invalid)));
        for name in [&b"other.a"[..], b"", b"user", b"system.other"] {
            assert!(matches!(set(ino, name, b""), Err(FsError::NotSupported)));
            assert!(matches!(fs.getxattr(ino, name), Err(FsError::NotSupported)));
            assert!(matches!(fs.removexattr(ino, name), Err(FsError::NotSupported)));
        }
        assert!(matches!(set(ino, b"user.a", &[0; MAX_VALUE + 1]), Err(FsError::TooBig)));
        assert!(matches!(set(link, b"user.a", b""), Err(FsError::NotPermitted)));
        set(link, b"trusted.a", b"").unwrap();
        assert!(matches!(fs.getxattr(link, ACCESS_ACL), Err(FsError::NotSupported)));
        assert!(matches!(set(link, ACCESS_ACL, NAMED), Err(FsError::NotSupported)));
    }

    #[test]
    fn the_room_of_one_inode_is_bounded() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let value = vec![0; MAX_VALUE];
        let room = MAX_TOTAL / (MAX_VALUE + "user.00".len());
        let name = |i: usize| format!("user.{i:02}").into_bytes();
        (0..room).for_each(|i| fs.setxattr(ino, &name(i), &value, ANY).unwrap());
        assert!(matches!(fs.setxattr(ino, &name(room), &value, ANY), Err(FsError::NoInodes)));
        fs.setxattr(ino, &name(0), &value, ANY).unwrap();
        fs.removexattr(ino, &name(0)).unwrap();
        fs.setxattr(ino, &name(room), &value, ANY).unwrap();
    }

    // promise: S-140
    #[test]
    fn what_can_be_set_can_be_listed() {
        let fs = scratch();
        let ino = fs.dir(ROOT, "d").ino;
        let name = |i: usize| format!("user.{i:0250}").into_bytes();
        let room = (0..).take_while(|&i| fs.setxattr(ino, &name(i), b"", ANY).is_ok()).count();
        assert_eq!(room, MAX_NAMES / 256);
        assert!(matches!(fs.setxattr(ino, &name(room), b"", ANY), Err(FsError::NoInodes)));
        fs.setxattr(ino, &name(0), b"longer", ANY).unwrap();
        fs.setxattr(ino, ACCESS_ACL, NAMED, ANY).unwrap();
        fs.setxattr(ino, DEFAULT_ACL, NAMED, ANY).unwrap();
        let listed = fs.listxattr(ino).unwrap();
        assert!(listed.len() <= 65_536 && listed.split(|&byte| byte == 0).count() == room + 3);
        fs.removexattr(ino, &name(0)).unwrap();
        fs.setxattr(ino, &name(room), b"", ANY).unwrap();
    }

    #[test]
    fn changes_move_ctime() {
        let fs = scratch();
        let ino = fs.dir(ROOT, "d").ino;
        let changes: [&dyn Fn() -> Result<(), FsError>; 4] = [
            &|| fs.setxattr(ino, b"user.a", b"", ANY),
            &|| fs.removexattr(ino, b"user.a"),
            &|| fs.setxattr(ino, DEFAULT_ACL, NAMED, ANY),
            &|| fs.setxattr(ino, ACCESS_ACL, NAMED, ANY),
        ];
        for change in changes {
            fs.inode(ino).unwrap().meta().modified(OLD);
            change().unwrap();
            assert!(fs.attr(ino).ctime > OLD && fs.attr(ino).mtime == OLD);
        }
    }

    // promise: S-22
    #[test]
    fn an_access_acl_and_the_mode_stay_in_step() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        assert!(matches!(fs.getxattr(ino, ACCESS_ACL), Err(FsError::NoAttribute)));
        fs.chmod(ino, 0o1600);
        fs.setxattr(ino, ACCESS_ACL, NAMED, ANY).unwrap();
        assert_eq!(fs.attr(ino).mode, 0o1774);
        assert_eq!(fs.getxattr(ino, ACCESS_ACL).unwrap(), NAMED);
        assert_eq!(fs.listxattr(ino).unwrap(), [ACCESS_ACL, b"\0"].concat());
        fs.chmod(ino, 0o640);
        let mut expected = NAMED.to_vec();
        (expected[6], expected[30], expected[38]) = (6, 4, 0);
        assert_eq!(fs.getxattr(ino, ACCESS_ACL).unwrap(), expected);
        fs.setxattr(ino, ACCESS_ACL, MINIMAL, ANY).unwrap();
        assert_eq!(fs.attr(ino).mode, 0o640);
        assert!(matches!(fs.getxattr(ino, ACCESS_ACL), Err(FsError::NoAttribute)), "the mode says it all");
        fs.setxattr(ino, ACCESS_ACL, NAMED, ANY).unwrap();
        fs.removexattr(ino, ACCESS_ACL).unwrap();
        fs.removexattr(ino, ACCESS_ACL).unwrap();
        assert_eq!(fs.attr(ino).mode, 0o774);
        assert!(matches!(fs.setxattr(ino, ACCESS_ACL, &NAMED[..12], ANY), Err(FsError::Invalid)));
    }

    // promise: S-22
    #[test]
    fn a_default_acl_is_inherited_instead_of_the_umask() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        fs.setxattr(dir, DEFAULT_ACL, NAMED, ANY).unwrap();
        assert_eq!(fs.attr(dir).mode, 0o755, "a default ACL does not change the mode");
        let file = fs.mknod(dir, b"f", Kind::File, 0o666, 0, &CALLER).unwrap();
        assert_eq!(file.mode, 0o664);
        let mut expected = NAMED.to_vec();
        (expected[6], expected[30]) = (6, 6);
        assert_eq!(fs.getxattr(file.ino, ACCESS_ACL).unwrap(), expected);
        assert!(matches!(fs.getxattr(file.ino, DEFAULT_ACL), Err(FsError::NoAttribute)));
        let sub = fs.mkdir(dir, b"s", 0o777, &CALLER).unwrap();
        assert_eq!(sub.mode, 0o774);
        assert_eq!(fs.getxattr(sub.ino, ACCESS_ACL).unwrap(), NAMED);
        assert_eq!(fs.getxattr(sub.ino, DEFAULT_ACL).unwrap(), NAMED);
        let link = fs.symlink(dir, b"l", b"t", &CALLER).unwrap();
        assert!(link.mode == 0o777 && fs.listxattr(link.ino).unwrap().is_empty());
        fs.setxattr(dir, DEFAULT_ACL, MINIMAL, ANY).unwrap();
        let plain = fs.mknod(dir, b"p", Kind::File, 0o666, 0, &CALLER).unwrap();
        assert!(plain.mode == 0o640 && fs.listxattr(plain.ino).unwrap().is_empty());
        fs.removexattr(dir, DEFAULT_ACL).unwrap();
        assert_eq!(fs.mknod(dir, b"q", Kind::File, 0o666, 0, &CALLER).unwrap().mode, 0o644);
    }

    #[test]
    fn only_directories_have_a_default_acl() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        assert!(matches!(fs.setxattr(ino, DEFAULT_ACL, NAMED, ANY), Err(FsError::Access)));
        fs.setxattr(ino, DEFAULT_ACL, b"", ANY).unwrap();
        fs.removexattr(ino, DEFAULT_ACL).unwrap();
        assert!(matches!(fs.getxattr(ino, DEFAULT_ACL), Err(FsError::NoAttribute)));
    }
}
