//! POSIX access control lists, in the form the kernel passes them as extended attributes (acl(5), `posix_acl_xattr.h`).

use crate::fs::FsError;

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

/// A valid list: one entry each for owner, group and others, any number of named users and groups, and a mask when
/// somebody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Box<[AclEntry]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: Tag,
    /// `07`
    permissions: u8,
    id: u32,
}

/// Whom an entry is about, in the order a list must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

/// The permission bits that show the list in `value`, an extended attribute: what a file made under it as a default ACL
/// may have at most. `None` if there is no list in it.
pub fn acl_permissions(value: &[u8]) -> Result<Option<u32>, FsError> {
    Ok(Acl::decode(value)?.map(|acl| acl.permissions()))
}

impl Acl {
    /// Bytes of memory it takes.
    pub fn memory(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    /// Decodes a list; `None` is the empty one, which removes an ACL.
    pub fn decode(value: &[u8]) -> Result<Option<Self>, FsError> {
        if value.is_empty() {
            return Ok(None);
        }
        let (version, entries) = value.split_first_chunk::<HEADER>().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(FsError::NotSupported);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(FsError::Invalid);
        }
        let entries: Box<[AclEntry]> = entries.iter().map(AclEntry::decode).collect::<Result<_, _>>()?;
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(FsError::Invalid) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER + ENTRY * self.0.len());
        value.extend(VERSION.to_le_bytes());
        self.0.iter().for_each(|entry| entry.encode(&mut value));
        value
    }

    /// Whether permission bits alone can say the same.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The permission bits that show this list: the group bits show the mask if there is one.
    pub fn permissions(&self) -> u32 {
        self.0.iter().filter_map(|e| Some(u32::from(e.permissions) << self.shift(e.tag)?)).sum()
    }

    /// Keeps the list in step with new permission bits (chmod(2)).
    pub fn set_permissions(&mut self, mode: u32) {
        self.for_each_shown(|permissions, shift| *permissions = (mode >> shift & 7) as u8);
    }

    /// Takes away what `mode` does not grant, and returns `mode` without what the list does not grant.
    pub fn restrict(&mut self, mode: u32) -> u32 {
        self.for_each_shown(|permissions, shift| *permissions &= (mode >> shift & 7) as u8);
        mode & !0o777 | self.permissions()
    }

    /// The entries that permission bits show, each with the place of its bits.
    fn for_each_shown(&mut self, mut change: impl FnMut(&mut u8, u32)) {
        for at in 0..self.0.len() {
            if let Some(shift) = self.shift(self.0[at].tag) {
                change(&mut self.0[at].permissions, shift);
            }
        }
    }

    fn shift(&self, tag: Tag) -> Option<u32> {
        match tag {
            Tag::Owner => Some(6),
            Tag::Mask => Some(3),
            Tag::OwningGroup => (!self.has(Tag::Mask)).then_some(3),
            Tag::Other => Some(0),
            Tag::User | Tag::Group => None,
        }
    }

    fn has(&self, tag: Tag) -> bool {
        self.0.iter().any(|entry| entry.tag == tag)
    }

    /// As `posix_acl_valid` of the kernel: the order of tags, each unnamed one once, a mask if anybody is named.
    fn is_valid(&self) -> bool {
        let once = |tag| self.0.iter().filter(|entry| entry.tag == tag).count() == 1;
        let named = self.has(Tag::User) || self.has(Tag::Group);
        self.0.is_sorted_by_key(|entry| entry.tag)
            && [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(once)
            && if named { once(Tag::Mask) } else { once(Tag::Mask) || !self.has(Tag::Mask) }
    }
}

impl AclEntry {
    fn decode(bytes: &[u8; ENTRY]) -> Result<Self, FsError> {
        let [tag_low, tag_high, low, high, id @ ..] = *bytes;
        let tag = Tag::decode(u16::from_le_bytes([tag_low, tag_high]))?;
        let permissions = u16::from_le_bytes([low, high]);
        let id = u32::from_le_bytes(id);
        let named = matches!(tag, Tag::User | Tag::Group);
        if permissions > 7 || named && id == NO_ID {
            return Err(FsError::Invalid);
        }
        Ok(Self { tag, permissions: permissions as u8, id: if named { id } else { NO_ID } })
    }

    fn encode(&self, value: &mut Vec<u8>) {
        value.extend((self.tag as u16).to_le_bytes());
        value.extend(u16::from(self.permissions).to_le_bytes());
        value.extend(self.id.to_le_bytes());
    }
}

impl Tag {
    fn decode(tag: u16) -> Result<Self, FsError> {
        match tag {
            0x01 => Ok(Self::Owner),
            0x02 => Ok(Self::User),
            0x04 => Ok(Self::OwningGroup),
            0x08 => Ok(Self::Group),
            0x10 => Ok(Self::Mask),
            0x20 => Ok(Self::Other),
            _ => Err(FsError::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NAMED: &[(u16, u16, u32)] =
        &[(1, 7, NO_ID), (2, 6, 1000), (2, 4, 1001), (4, 5, NO_ID), (8, 1, 50), (0x10, 6, NO_ID), (0x20, 4, NO_ID)];

    #[test]
    fn lists_are_decoded_and_encoded() {
        let acl = Acl::decode(&value(NAMED)).unwrap().unwrap();
        assert_eq!(acl.encode(), value(NAMED));
        assert_eq!((acl.permissions(), acl.is_minimal()), (0o764, false));
        let minimal = Acl::decode(&value(&[(1, 6, 0), (4, 4, 0), (0x20, 0, 0)])).unwrap().unwrap();
        assert_eq!((minimal.permissions(), minimal.is_minimal()), (0o640, true));
        let masked = Acl::decode(&value(&[(1, 6, 0), (4, 4, 0), (0x10, 1, 0), (0x20, 0, 0)])).unwrap().unwrap();
        assert_eq!((masked.permissions(), masked.is_minimal()), (0o610, false));
        assert_eq!(Acl::decode(b"").unwrap(), None);
        assert_eq!(Acl::decode(&value(&[])).unwrap(), None);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let owner = (1, 7, NO_ID);
        let group = (4, 5, NO_ID);
        let mask = (0x10, 7, NO_ID);
        let other = (0x20, 5, NO_ID);
        for entries in [
            &[owner][..],
            &[group, other],
            &[owner, owner, group, other],
            &[owner, group, group, other],
            &[owner, group, other, other],
            &[group, owner, other],
            &[owner, (2, 7, 5), group, other],
            &[owner, group, (8, 7, 5), other],
            &[owner, group, mask, mask, other],
            &[owner, (2, 7, NO_ID), group, mask, other],
            &[owner, group, mask, (8, 7, 5), other],
            &[(1, 8, NO_ID), group, other],
            &[owner, group, other, (0x40, 0, 0)],
        ] {
            assert!(matches!(Acl::decode(&value(entries)), Err(FsError::Invalid)), "{entries:?}");
        }
        let good = value(NAMED);
        for cut in [1, 3, 5, good.len() - 1] {
            assert!(matches!(Acl::decode(&good[..cut]), Err(FsError::Invalid)), "{cut}");
        }
        assert!(matches!(Acl::decode(&[1, 0, 0, 0]), Err(FsError::NotSupported)));
    }

    #[test]
    fn permission_bits_and_list_restrict_each_other() {
        let mut acl = Acl::decode(&value(NAMED)).unwrap().unwrap();
        assert_eq!(acl.restrict(0o4666), 0o4664);
        assert_eq!(acl.permissions(), 0o664);
        acl.set_permissions(0o4751);
        assert_eq!(acl.permissions(), 0o751);
        assert_eq!(acl.encode()[HEADER + 3 * ENTRY + 2], 5, "the group keeps its own entry behind the mask");
    }
}
