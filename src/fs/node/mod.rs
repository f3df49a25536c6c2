//! What the file system is made of: inodes, their parts, the table that holds them, and the record of losses. Knows no
//! [`crate::fs::Scratch`]; nothing here takes two locks.
//!
//! | file | what lives there |
//! |---|---|
//! | `inode` | [`Inode`]: what an object is, its attributes, when it dies |
//! | `directory` | [`Directory`]: entries in creation order, an index by name |
//! | `extended`, `acl` | what few inodes have |
//! | `table` | [`Table`]: every living inode by number |
//! | `losses` | [`Losses`]: what could not be kept |

mod acl;
mod directory;
mod extended;
mod inode;
mod losses;
mod table;

pub use self::acl::{Acl, acl_permissions};
pub use self::directory::{COOKIE_PARENT, COOKIE_SELF, Directory, Entries, entry_memory};
#[cfg(test)]
pub use self::extended::{ACCESS_ACL, DEFAULT_ACL, MAX_NAME, MAX_NAMES, MAX_TOTAL};
pub use self::extended::{ATTRIBUTE_MEMORY, Attribute, EXTENDED_MEMORY, MAX_VALUE};
pub use self::inode::{GROUP_EXECUTE, Inode, Meta, Node, SETGID, SETUID, inode_memory};
pub use self::losses::{Loss, LossChanges, LossTotals, Losses};
pub use self::table::{Shard, Table};
