//! Where results go in S3: names to keys; pure.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::plan::{Plan, TOP};
use crate::fs::Kind;
use crate::spec::S3Uri;
use crate::stage::inputs::files::PART;

/// Longest key in bytes of UTF-8 (S3 User Guide, "Naming Amazon S3 objects").
const LONGEST_KEY: usize = 1024;
/// Most parts of an upload (S3 User Guide, "Amazon S3 multipart upload limits").
const MOST_PARTS: u64 = 10_000;
/// Below this prefix are results whose names no key can be; the manifest has the names.
pub(in crate::stage) const RENAMED: &str = "runseal-renamed/";

/// Keys by entry of `plan`; `None` for what has none: symbolic links, and directories with something in them.
pub(in crate::stage) fn keys(plan: &Plan, to: &S3Uri) -> Vec<Option<String>> {
    let is_object = |i: &usize| matches!(plan.entries[*i].attr.kind, Kind::File | Kind::Directory);
    let full: HashSet<usize> =
        (TOP + 1..plan.entries.len()).filter(is_object).map(|i| plan.entries[i].parent).collect();
    let key = |i: usize| match plan.entries[i].attr.kind {
        Kind::File => Some(key(to, &plan.path(i), "")),
        Kind::Directory if i != TOP && !full.contains(&i) => Some(key(to, &plan.path(i), "/")),
        _ => None,
    };
    (0..plan.entries.len()).map(key).collect()
}

/// The key of a result: its path, or a digest of it where the path cannot be a key.
fn key(to: &S3Uri, path: &Path, end: &str) -> String {
    match path.to_str() {
        Some(path) if to.key.len() + path.len() + end.len() <= LONGEST_KEY => format!("{}{path}{end}", to.key),
        _ => {
            let mut key = format!("{}{RENAMED}", to.key);
            for byte in &Sha256::digest(path.as_os_str().as_bytes())[..16] {
                // Writing to a String cannot fail.
                let _ = write!(key, "{byte:02x}");
            }
            key + end
        }
    }
}

/// Bytes of each part of an object but the last.
pub(in crate::stage) fn part_size(size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(MIB))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::fs::{Attr, Time};

    fn attr(kind: Kind) -> Attr {
        let t = Time::default();
        let (ino, mode, nlink, uid, gid, rdev, size, blocks) = (1, 0, 1, 0, 0, 0, 0, 0);
        Attr { ino, kind, mode, nlink, uid, gid, rdev, size, blocks, atime: t, mtime: t, ctime: t }
    }

    #[test]
    fn every_result_has_a_key_of_its_own() {
        let mut plan = Plan::new(attr(Kind::Directory));
        plan.add(TOP, OsStr::new("full"), attr(Kind::Directory));
        plan.add(1, OsStr::new("file"), attr(Kind::File));
        plan.add(1, OsStr::new("empty"), attr(Kind::Directory));
        plan.add(TOP, OsStr::new("links"), attr(Kind::Directory));
        plan.add(4, OsStr::new("link"), attr(Kind::Symlink));
        plan.add(TOP, OsStr::from_bytes(b"odd\xff"), attr(Kind::File));
        let to = S3Uri { bucket: "b".into(), key: "out/".into() };
        let keys = keys(&plan, &to);
        let expected = [None, None, Some("out/full/file"), Some("out/full/empty/"), Some("out/links/"), None];
        assert_eq!(keys[..6].iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        let renamed = keys[6].as_deref().unwrap();
        assert!(renamed.starts_with("out/runseal-renamed/") && renamed.len() == 4 + 16 + 32, "{renamed}");
    }

    #[test]
    fn a_path_that_is_too_long_is_renamed_and_one_that_just_fits_is_not() {
        let to = S3Uri { bucket: "b".into(), key: "p/".into() };
        let (fits, long) = ("x".repeat(1022), "x".repeat(1023));
        assert_eq!(key(&to, Path::new(&fits), "").len(), 1024);
        assert!(key(&to, Path::new(&fits), "/").starts_with("p/runseal-renamed/"));
        assert_ne!(key(&to, Path::new(&long), ""), key(&to, Path::new(&(long.clone() + "y")), ""));
    }

    #[test]
    fn parts_are_large_enough_for_ten_thousand_to_do() {
        for (size, part) in [(0, 16), (160_000, 16), (160_001, 17), (1 << 20, 105)] {
            assert_eq!(part_size(size << 20), part << 20, "{size} MiB");
        }
        let most = 50_000_000_000_000;
        assert!(part_size(most) * MOST_PARTS >= most && part_size(most) <= 5 << 30);
    }
}
