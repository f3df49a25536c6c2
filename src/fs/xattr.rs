//! Extended attributes: `user.`, `trusted.`, `security.`, and the two that carry ACLs.

use std::collections::BTreeMap;

use super::acl::Acl;
use super::inode::{Inode, Meta};
use super::{FsError, Kind, Scratch, Time, XattrMode};

/// Longest name (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;
/// Longest value (`XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 65_536;
/// Room for names and values of one inode: they live in memory, so somebody has to draw a line.
const MAX_TOTAL: usize = 1 << 20;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What few inodes have.
#[derive(Default)]
pub(super) struct Extended {
    /// Never a minimal one: the mode says the same.
    pub(super) access_acl: Option<Acl>,
    /// Directories only.
    pub(super) default_acl: Option<Acl>,
    plain: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Bytes of names and values in `plain`.
    bytes: usize,
}

/// Which attribute a name means.
enum Attribute<'a> {
    AccessAcl,
    DefaultAcl,
    Plain(&'a [u8]),
}

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
        let now = Time::now();
        let mut meta = inode.meta();
        match attribute {
            Attribute::AccessAcl => meta.set_access_acl(Acl::decode(value)?),
            Attribute::DefaultAcl => meta.set_default_acl(Acl::decode(value)?, inode.kind())?,
            Attribute::Plain(name) => meta.extended_mut(|extended| extended.set(name, value, mode))?,
        }
        meta.changed(now);
        Ok(())
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
        let now = Time::now();
        let mut meta = inode.meta();
        match attribute {
            Attribute::AccessAcl => meta.set_access_acl(None),
            Attribute::DefaultAcl => meta.set_default_acl(None, inode.kind())?,
            Attribute::Plain(name) => meta.extended_mut(|extended| extended.remove(name))?,
        }
        meta.changed(now);
        Ok(())
    }
}

impl<'a> Attribute<'a> {
    fn parse(name: &'a [u8]) -> Result<Self, FsError> {
        match name {
            _ if name.len() > MAX_NAME => Err(FsError::Range),
            ACCESS_ACL => Ok(Self::AccessAcl),
            DEFAULT_ACL => Ok(Self::DefaultAcl),
            b"user." | b"trusted." | b"security." => Err(FsError::Invalid),
            _ if name.contains(&0) => Err(FsError::Invalid),
            _ if name.starts_with(b"user.") || name.starts_with(b"trusted.") || name.starts_with(b"security.") => {
                Ok(Self::Plain(name))
            }
            _ => Err(FsError::NotSupported),
        }
    }

    /// Symbolic links have no ACL, being never asked for permission.
    fn check_kind(&self, inode: &Inode) -> Result<(), FsError> {
        match self {
            Self::AccessAcl | Self::DefaultAcl if inode.kind() == Kind::Symlink => Err(FsError::NotSupported),
            _ => Ok(()),
        }
    }

    /// As xattr(7): on links and special files anybody could set user attributes, out of reach of permissions and quota.
    fn check_settable(&self, inode: &Inode) -> Result<(), FsError> {
        self.check_kind(inode)?;
        match (self, inode.kind()) {
            (Self::Plain(_), Kind::File | Kind::Directory) => Ok(()),
            (Self::Plain(name), _) if name.starts_with(b"user.") => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }
}

impl Meta {
    fn set_access_acl(&mut self, acl: Option<Acl>) {
        if let Some(acl) = &acl {
            self.set_permissions(acl.permissions());
        }
        let acl = acl.filter(|acl| !acl.is_minimal());
        self.extended_mut(|extended| extended.access_acl = acl);
    }

    fn set_default_acl(&mut self, acl: Option<Acl>, kind: Kind) -> Result<(), FsError> {
        if acl.is_some() && kind != Kind::Directory {
            return Err(FsError::Access);
        }
        self.extended_mut(|extended| extended.default_acl = acl);
        Ok(())
    }

    /// Changes the extended part, which is there only while something is in it.
    fn extended_mut<T>(&mut self, change: impl FnOnce(&mut Extended) -> T) -> T {
        let mut extended = self.extended.take().unwrap_or_default();
        let result = change(&mut extended);
        self.extended = (!extended.is_empty()).then_some(extended);
        result
    }
}

impl Extended {
    /// The ACLs of a new inode.
    pub(super) fn inherited(access_acl: Option<Acl>, default_acl: Option<Acl>) -> Option<Box<Self>> {
        let extended = Self { access_acl, default_acl, ..Self::default() };
        (!extended.is_empty()).then(|| Box::new(extended))
    }

    fn is_empty(&self) -> bool {
        self.access_acl.is_none() && self.default_acl.is_none() && self.plain.is_empty()
    }

    fn get(&self, attribute: &Attribute<'_>) -> Option<Vec<u8>> {
        match attribute {
            Attribute::AccessAcl => self.access_acl.as_ref().map(Acl::encode),
            Attribute::DefaultAcl => self.default_acl.as_ref().map(Acl::encode),
            Attribute::Plain(name) => self.plain.get(*name).map(|value| value.to_vec()),
        }
    }

    fn names(&self) -> Vec<u8> {
        let acls = [(ACCESS_ACL, &self.access_acl), (DEFAULT_ACL, &self.default_acl)];
        let acls = acls.into_iter().filter(|(_, acl)| acl.is_some()).map(|(name, _)| name);
        let mut names = Vec::new();
        for name in acls.chain(self.plain.keys().map(|name| &**name)) {
            names.extend_from_slice(name);
            names.push(0);
        }
        names
    }

    fn set(&mut self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        let old = self.plain.get(name).map(|old| name.len() + old.len());
        match (mode, old) {
            (XattrMode::Create, Some(_)) => return Err(FsError::Exists),
            (XattrMode::Replace, None) => return Err(FsError::NoAttribute),
            _ => {}
        }
        let bytes = self.bytes - old.unwrap_or(0) + name.len() + value.len();
        if bytes > MAX_TOTAL {
            return Err(FsError::NoInodes);
        }
        self.bytes = bytes;
        self.plain.insert(name.into(), value.into());
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), FsError> {
        let old = self.plain.remove(name).ok_or(FsError::NoAttribute)?;
        self.bytes -= name.len() + old.len();
        Ok(())
    }
}
