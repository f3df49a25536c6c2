//! Extended attributes of one inode: `user.`, `trusted.`, `security.`, and the two that carry ACLs.

use std::collections::BTreeMap;

use super::acl::Acl;
use super::inode::{Inode, Meta};
use crate::fs::{FsError, Kind, XattrMode};

/// Longest name (`XATTR_NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest value (`XATTR_SIZE_MAX`).
pub const MAX_VALUE: usize = 65_536;
/// Room for names and values of one inode, as file systems with inline attributes have it.
pub const MAX_TOTAL: usize = 1 << 20;

/// Room for names of one inode, each with the NUL byte listxattr(2) puts behind it: what that call can return
/// (`XATTR_LIST_MAX`) without the names of both ACLs, which are set whatever else there is.
pub const MAX_NAMES: usize = 65_536 - (ACCESS_ACL.len() + 1 + DEFAULT_ACL.len() + 1);

/// Bytes of memory that an inode with attributes counts as beyond others, and each attribute without name and value.
pub const EXTENDED_MEMORY: u64 = 560;
pub const ATTRIBUTE_MEMORY: u64 = 144;

pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What few inodes have.
#[derive(Default)]
pub struct Extended {
    /// Never a minimal one: the mode says the same.
    pub access_acl: Option<Acl>,
    /// Directories only.
    pub default_acl: Option<Acl>,
    plain: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Bytes of names and values in `plain`.
    bytes: usize,
    /// Bytes of names in `plain`, each with a NUL byte.
    names: usize,
}

/// Which attribute a name means.
pub enum Attribute<'a> {
    AccessAcl,
    DefaultAcl,
    Plain(&'a [u8]),
}

impl<'a> Attribute<'a> {
    pub fn parse(name: &'a [u8]) -> Result<Self, FsError> {
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
    pub fn check_kind(&self, inode: &Inode) -> Result<(), FsError> {
        match self {
            Self::AccessAcl | Self::DefaultAcl if inode.kind() == Kind::Symlink => Err(FsError::NotSupported),
            _ => Ok(()),
        }
    }

    /// As xattr(7): on links and special files anybody could set user attributes, out of reach of permissions and quota.
    pub fn check_settable(&self, inode: &Inode) -> Result<(), FsError> {
        self.check_kind(inode)?;
        match (self, inode.kind()) {
            (Self::Plain(_), Kind::File | Kind::Directory) => Ok(()),
            (Self::Plain(name), _) if name.starts_with(b"user.") => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }
}

impl Meta {
    pub fn set_access_acl(&mut self, acl: Option<Acl>) {
        if let Some(acl) = &acl {
            self.set_permissions(acl.permissions());
        }
        let acl = acl.filter(|acl| !acl.is_minimal());
        self.extended_mut(|extended| extended.access_acl = acl);
    }

    pub fn set_default_acl(&mut self, acl: Option<Acl>) {
        self.extended_mut(|extended| extended.default_acl = acl);
    }

    /// Changes the extended part, which is there only while something is in it.
    pub fn extended_mut<T>(&mut self, change: impl FnOnce(&mut Extended) -> T) -> T {
        let mut extended = self.extended.take().unwrap_or_default();
        let result = change(&mut extended);
        self.extended = (!extended.is_empty()).then_some(extended);
        result
    }
}

impl Extended {
    /// The ACLs of a new inode.
    pub fn inherited(access_acl: Option<Acl>, default_acl: Option<Acl>) -> Option<Box<Self>> {
        let extended = Self { access_acl, default_acl, ..Self::default() };
        (!extended.is_empty()).then(|| Box::new(extended))
    }

    /// Bytes of memory it counts as.
    pub fn memory(&self) -> u64 {
        let acls = [&self.access_acl, &self.default_acl].into_iter().flatten().map(Acl::memory).sum::<u64>();
        EXTENDED_MEMORY + acls + self.plain.len() as u64 * ATTRIBUTE_MEMORY + self.bytes as u64
    }

    fn is_empty(&self) -> bool {
        self.access_acl.is_none() && self.default_acl.is_none() && self.plain.is_empty()
    }

    pub fn get(&self, attribute: &Attribute<'_>) -> Option<Vec<u8>> {
        match attribute {
            Attribute::AccessAcl => self.access_acl.as_ref().map(Acl::encode),
            Attribute::DefaultAcl => self.default_acl.as_ref().map(Acl::encode),
            Attribute::Plain(name) => self.plain.get(*name).map(|value| value.to_vec()),
        }
    }

    pub fn names(&self) -> Vec<u8> {
        let acls = [(ACCESS_ACL, &self.access_acl), (DEFAULT_ACL, &self.default_acl)];
        let acls = acls.into_iter().filter(|(_, acl)| acl.is_some()).map(|(name, _)| name);
        let mut names = Vec::new();
        for name in acls.chain(self.plain.keys().map(|name| &**name)) {
            names.extend_from_slice(name);
            names.push(0);
        }
        names
    }

    pub fn set(&mut self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        let old = self.plain.get(name).map(|old| name.len() + old.len());
        match (mode, old) {
            (XattrMode::Create, Some(_)) => return Err(FsError::Exists),
            (XattrMode::Replace, None) => return Err(FsError::NoAttribute),
            _ => {}
        }
        let bytes = self.bytes - old.unwrap_or(0) + name.len() + value.len();
        let names = self.names + if old.is_none() { name.len() + 1 } else { 0 };
        if bytes > MAX_TOTAL || names > MAX_NAMES {
            return Err(FsError::NoInodes);
        }
        (self.bytes, self.names) = (bytes, names);
        self.plain.insert(name.into(), value.into());
        Ok(())
    }

    pub fn remove(&mut self, name: &[u8]) -> Result<(), FsError> {
        let old = self.plain.remove(name).ok_or(FsError::NoAttribute)?;
        self.bytes -= name.len() + old.len();
        self.names -= name.len() + 1;
        Ok(())
    }
}
