//! Where a symbolic link leads, found out name by name (path_resolution(7)); pure but for what `look` answers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Links that are followed on the way of one (`MAXSYMLINKS` of Linux).
const MOST_HOPS: u32 = 40;

/// What is at a path that has no links above its last name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    Directory,
    Link(OsString),
    /// A file, or something special.
    Other,
    Missing,
}

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// To the tree it is in, by a way that never leaves it: it means the same wherever the tree is.
    Within,
    /// To this path of the tree it is in, by a way that leaves the tree.
    Back(PathBuf),
    /// To this path somewhere else, where no link is left to follow.
    Away(PathBuf, Spot),
    /// To another link for ever.
    Endless,
}

/// Follows the link at `link`, whose text is `text`; `within` is the tree it is in. Both paths are absolute and without
/// links, but for the last name of `link`. The last name of a way that ends in the tree is not looked at: it stands there
/// for itself, whatever it is.
pub(crate) fn follow(
    link: &Path,
    text: &OsStr,
    within: &Path,
    mut look: impl FnMut(&Path) -> io::Result<Spot>,
) -> io::Result<Landing> {
    let mut at = link.parent().unwrap_or(link).to_owned();
    let (mut rest, mut hops, mut left) = (backwards(text), 1, false);
    let mut found = Spot::Directory;
    while let Some(part) = rest.pop() {
        let last_within = rest.is_empty() && at.starts_with(within);
        step(&mut at, &part);
        if is_name(&part) && !last_within {
            found = look(&at)?;
            match found {
                Spot::Directory => {}
                Spot::Link(_) if hops == MOST_HOPS => return Ok(Landing::Endless),
                Spot::Link(text) => {
                    hops += 1;
                    at.pop();
                    rest.extend(backwards(&text));
                    found = Spot::Directory;
                }
                // Behind what is no directory there is nothing; the way is told as it is written.
                Spot::Other | Spot::Missing if !rest.is_empty() => {
                    while let Some(part) = rest.pop() {
                        step(&mut at, &part);
                    }
                    found = Spot::Missing;
                }
                Spot::Other | Spot::Missing => {}
            }
        }
        left |= !at.starts_with(within);
    }
    Ok(match (at.starts_with(within), left) {
        (true, false) => Landing::Within,
        (true, true) => Landing::Back(at),
        (false, _) => Landing::Away(at, found),
    })
}

/// The way from the directory `from` to `to`, both absolute, as the text of a link in `from`.
pub(crate) fn relative(from: &Path, to: &Path) -> OsString {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(shared)).collect();
    if way.as_os_str().is_empty() { ".".into() } else { way.into() }
}

/// The parts of a path, the first one last.
fn backwards(text: &OsStr) -> Vec<OsString> {
    Path::new(text).components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

fn step(at: &mut PathBuf, part: &OsStr) {
    match part.as_bytes() {
        b"." => {}
        b".." => drop(at.pop()),
        // An absolute part takes the place of all before it.
        _ => at.push(part),
    }
}

fn is_name(part: &OsStr) -> bool {
    !matches!(part.as_bytes(), b"/" | b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: `/` ends the path of a directory, ` -> ` is a link, the rest are files.
    const MACHINE: [&str; 13] = [
        "/data/",
        "/data/set/",
        "/data/set/dir/",
        "/data/set/dir/file",
        "/data/set/loop -> loop",
        "/data/set/up -> ..",
        "/data/set/out -> /data/other",
        "/data/other",
        "/data/round -> round",
        "/data/alias -> set/dir",
        "/usr/",
        "/usr/lib/",
        "/usr/lib/x",
    ];

    fn look(path: &Path) -> io::Result<Spot> {
        let path = path.to_str().expect("test paths are UTF-8");
        let of = |entry: &str| match entry.split_once(" -> ") {
            Some((name, text)) if name == path => Some(Spot::Link(text.into())),
            None if entry == path => Some(Spot::Other),
            None if entry.strip_suffix('/') == Some(path) => Some(Spot::Directory),
            _ => None,
        };
        Ok(MACHINE.iter().find_map(|entry| of(entry)).unwrap_or(Spot::Missing))
    }

    fn landing(text: &str) -> Landing {
        follow(Path::new("/data/set/dir/link"), OsStr::new(text), Path::new("/data/set"), look).expect("pure")
    }

    fn away(path: &str, found: Spot) -> Landing {
        Landing::Away(path.into(), found)
    }

    #[test]
    fn links_stay_come_back_or_lead_away() {
        for stays in ["file", "../dir/file", ".", "..", "gone", "./x/../file", "../loop", "link", "file/below"] {
            assert_eq!(landing(stays), Landing::Within, "{stays}");
        }
        for (text, path) in [
            ("/data/set/dir/file", "/data/set/dir/file"),
            ("../../set/dir", "/data/set/dir"),
            ("../up/set/gone", "/data/set/gone"),
            ("/data/alias/file", "/data/set/dir/file"),
            ("/data/set", "/data/set"),
            ("/usr/../data/set/dir/", "/data/set/dir"),
        ] {
            assert_eq!(landing(text), Landing::Back(path.into()), "{text}");
        }
        assert_eq!(landing("../../other"), away("/data/other", Spot::Other));
        assert_eq!(landing("../out"), Landing::Within, "another link of the tree stands for itself");
        assert_eq!(landing("../up"), Landing::Within);
        assert_eq!(landing("../up/."), Landing::Within, "a dot at the end is not looked at");
        assert_eq!(landing("../up/other"), away("/data/other", Spot::Other));
        assert_eq!(landing("/usr/lib"), away("/usr/lib", Spot::Directory));
        assert_eq!(landing("../../.."), away("/", Spot::Directory));
        assert_eq!(landing("/gone/../usr/lib"), away("/usr/lib", Spot::Missing));
        assert_eq!(landing("/usr/lib/x/y"), away("/usr/lib/x/y", Spot::Missing));
        assert_eq!(landing("../loop/x"), Landing::Endless);
        assert_eq!(landing("/data/round"), Landing::Endless);
    }

    #[test]
    fn names_that_begin_alike_are_not_below() {
        let landing = follow(Path::new("/data/se/l"), OsStr::new("/data/set/dir"), Path::new("/data/se"), look);
        assert_eq!(landing.expect("pure"), away("/data/set/dir", Spot::Directory));
    }

    #[test]
    fn the_way_between_two_paths_is_the_shortest() {
        for (from, to, way) in [
            ("/a/b", "/a/b/c", "c"),
            ("/a/b", "/a/c/d", "../c/d"),
            ("/a/b", "/a/b", "."),
            ("/a/b", "/a", ".."),
            ("/a/b", "/", "../.."),
            ("/", "/x", "x"),
        ] {
            assert_eq!(relative(Path::new(from), Path::new(to)), way, "{from} {to}");
        }
    }
}
