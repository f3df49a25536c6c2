//! Keys of S3 to paths of the scratch; pure, no input or output happens here.
//!
//! A key is any text, a path is not: what cannot be a path is refused, never renamed. Keys claim their paths one by one;
//! the directories between are implied, so that several prefixes and directories can share them.

use std::ffi::OsStr;
use std::path::Path;

use crate::preflight::tree::{NameConflict, Origin, RemoteObject, Tree};

/// Longest name of a file on Linux, in bytes.
const NAME_MAX: usize = 255;

/// Where a key belongs, relative to the place of its input.
#[derive(Debug, PartialEq)]
pub(super) struct Place<'a> {
    /// Names from there on; empty for the input itself.
    pub(super) names: Vec<&'a str>,
    /// Whether the key is the marker of a directory: its name ends with a slash.
    pub(super) directory: bool,
}

/// The place of `key`, one of those below `prefix`, which is empty, ends with a slash, or is the key itself.
pub(super) fn place<'a>(key: &'a str, prefix: &str) -> Result<Place<'a>, &'static str> {
    let below = key.strip_prefix(prefix).ok_or("it is not below the prefix that was listed")?;
    let (path, directory) = match below.strip_suffix('/') {
        Some(path) => (path, true),
        None => (below, below.is_empty() && key.ends_with('/')),
    };
    let names: Vec<&str> = match (path, directory) {
        ("", true) if !below.is_empty() => return Err("a name in it is empty (`//`)"),
        ("", _) => Vec::new(),
        (path, _) => path.split('/').collect(),
    };
    match names.iter().find_map(|name| refusal(name)) {
        Some(why) => Err(why),
        None => Ok(Place { names, directory }),
    }
}

fn refusal(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("a name in it is empty (`//`)"),
        "." => Some("a name in it is `.`"),
        ".." => Some("a name in it is `..`"),
        name if name.contains('\0') => Some("a name in it contains a NUL byte"),
        name if name.len() > NAME_MAX => Some("a name in it is longer than 255 bytes"),
        _ => None,
    }
}

/// Makes the directories down to the one that a marker stands for.
pub(super) fn graft_directory(tree: &mut Tree, target: &Path, place: &Place<'_>) -> Result<(), NameConflict> {
    // `imply` makes what is above the last name.
    tree.imply(&path(target, place).join("_")).map(|_| ())
}

/// Puts an object in its place; `target` is that of its input.
pub(super) fn graft(
    tree: &mut Tree,
    target: &Path,
    place: &Place<'_>,
    object: RemoteObject,
) -> Result<(), NameConflict> {
    let index = u32::try_from(tree.objects.len()).expect("four billion objects do not fit in memory");
    let path = path(target, place);
    let (parent, name) = tree.imply(&path)?;
    tree.claim(parent, OsStr::new(name), Origin::Object(index))?;
    tree.objects.push(object);
    Ok(())
}

fn path(target: &Path, place: &Place<'_>) -> std::path::PathBuf {
    let mut path = target.to_owned();
    path.extend(&place.names);
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::Object;
    use crate::spec::S3Uri;
    use crate::sys::path::{FileKind, Stat};

    fn object(key: &str) -> RemoteObject {
        RemoteObject {
            input: 0,
            uri: S3Uri { bucket: "b".into(), key: key.into() },
            seen: Object { size: 3, ..Object::default() },
        }
    }

    /// Grafts keys below `p/` of an input at `in`.
    fn planned(keys: &[&str]) -> Result<Vec<String>, String> {
        let mut tree = Tree::new(vec!["".into()]);
        for key in keys {
            let place = place(key, "p/").map_err(|why| format!("{key}: {why}"))?;
            let grafted = match place.directory {
                true => graft_directory(&mut tree, Path::new("in"), &place),
                false => graft(&mut tree, Path::new("in"), &place, object(key)),
            };
            grafted.map_err(|NameConflict(there)| format!("{key}: taken by {}", tree.source(there).display()))?;
        }
        assert!(tree.items.iter().enumerate().skip(1).all(|(i, item)| (item.parent as usize) < i));
        let mut paths: Vec<String> = (1..tree.items.len() as u32)
            .map(|i| {
                let slash = if tree.kind(i) == FileKind::Directory { "/" } else { "" };
                format!("{}{slash}", tree.target(i).display())
            })
            .collect();
        paths.sort();
        Ok(paths)
    }

    #[test]
    fn keys_become_files_and_their_slashes_directories() {
        assert_eq!(
            planned(&["p/a", "p/d/b", "p/d/e/c"]).unwrap(),
            ["in/", "in/a", "in/d/", "in/d/b", "in/d/e/", "in/d/e/c"]
        );
        assert_eq!(
            planned(&["p/ a", "p/...", "p/a b\n", "p/ä"]).unwrap(),
            ["in/", "in/ a", "in/...", "in/a b\n", "in/ä"]
        );
        assert_eq!(planned(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn markers_become_directories() {
        assert_eq!(
            planned(&["p/", "p/d/", "p/d/x", "p/e/f/"]).unwrap(),
            ["in/", "in/d/", "in/d/x", "in/e/", "in/e/f/"]
        );
        assert_eq!(planned(&["p/"]).unwrap(), ["in/"], "an empty folder is an empty directory");
    }

    #[test]
    fn an_object_itself_takes_the_place_of_its_input() {
        assert_eq!(place("p/x.bam", "p/x.bam").unwrap(), Place { names: vec![], directory: false });
        assert_eq!(place("x", "").unwrap(), Place { names: vec!["x"], directory: false });
        assert_eq!(place("d/", "").unwrap(), Place { names: vec!["d"], directory: true });
        assert_eq!(place("p/", "p/").unwrap(), Place { names: vec![], directory: true });
    }

    #[test]
    fn what_cannot_be_a_path_is_refused() {
        let long = format!("p/{}", "n".repeat(256));
        for (key, why) in [
            ("p/..", "`..`"),
            ("p/../../etc/passwd", "`..`"),
            ("p/a/../b", "`..`"),
            ("p/.", "`.`"),
            ("p/./a", "`.`"),
            ("p/a//b", "empty"),
            ("p//a", "empty"),
            ("p//", "empty"),
            ("p/a//", "empty"),
            ("p/a\0b", "NUL"),
            ("q/a", "below"),
            (&long, "255"),
        ] {
            let refused = place(key, "p/").unwrap_err();
            assert!(refused.contains(why), "{key:?}: {refused}");
        }
        assert!(place(&long[..long.len() - 1], "p/").is_ok());
        assert!(place("/a", "").is_err());
    }

    #[test]
    fn a_key_is_a_file_or_a_directory_never_both() {
        for keys in [["p/a", "p/a/b"], ["p/a/b", "p/a"], ["p/a", "p/a/"], ["p/a/", "p/a"]] {
            let refused = planned(&keys).unwrap_err();
            assert!(refused.contains("taken by"), "{keys:?}: {refused}");
        }
    }

    #[test]
    fn two_inputs_on_one_path_conflict_whatever_they_are() {
        let time = (0, 0);
        let seen = Stat {
            kind: FileKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            dev: 0,
            ino: 0,
            size: 7,
            blocks: 0,
            mtime: time,
            ctime: time,
        };
        let whole = Place { names: vec![], directory: false };
        for first_is_local in [true, false] {
            let mut tree = Tree::new(vec!["/local".into(), "".into()]);
            let local = |tree: &mut Tree| {
                let (parent, name) = tree.imply(Path::new("x/y"))?;
                tree.claim(parent, name, Origin::Input(0, seen)).map(|_| ())
            };
            let remote = |tree: &mut Tree| graft(tree, Path::new("x/y"), &whole, object("k"));
            let (first, second): (Result<(), NameConflict>, _) = match first_is_local {
                true => (local(&mut tree), remote(&mut tree)),
                false => (remote(&mut tree), local(&mut tree)),
            };
            let (Ok(()), Err(NameConflict(there))) = (first, second) else { panic!("one path for two") };
            let source = if first_is_local { "/local" } else { "s3://b/k" };
            assert_eq!(tree.source(there), Path::new(source));
            assert_eq!(tree.objects.len(), usize::from(!first_is_local), "nothing is left of what was refused");
        }
    }

    #[test]
    fn prefixes_may_share_a_directory() {
        let mut tree = Tree::new(vec!["".into(), "".into()]);
        for key in ["p/a", "p/b"] {
            graft(&mut tree, Path::new("x"), &place(key, "p/").unwrap(), object(key)).unwrap();
        }
        assert_eq!(tree.objects.len(), 2);
        assert_eq!(tree.bytes(), 6);
    }
}
