//! Mount options as mount(8) writes them, to mount flags.

use nix::mount::MsFlags;

use super::{FuseError, MountOptions};

/// File-system independent options: name, flags it sets, flags it clears.
const FLAGS: [(&str, MsFlags, MsFlags); 24] = [
    ("defaults", NONE, NONE),
    ("ro", MsFlags::MS_RDONLY, NONE),
    ("rw", NONE, MsFlags::MS_RDONLY),
    ("suid", NONE, MsFlags::MS_NOSUID),
    ("nosuid", MsFlags::MS_NOSUID, NONE),
    ("dev", NONE, MsFlags::MS_NODEV),
    ("nodev", MsFlags::MS_NODEV, NONE),
    ("exec", NONE, MsFlags::MS_NOEXEC),
    ("noexec", MsFlags::MS_NOEXEC, NONE),
    ("sync", MsFlags::MS_SYNCHRONOUS, NONE),
    ("async", NONE, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC, NONE),
    ("atime", NONE, MsFlags::MS_NOATIME),
    ("noatime", MsFlags::MS_NOATIME, NONE),
    ("diratime", NONE, MsFlags::MS_NODIRATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME, NONE),
    ("relatime", MsFlags::MS_RELATIME, NONE),
    ("norelatime", NONE, MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME, NONE),
    ("nostrictatime", NONE, MsFlags::MS_STRICTATIME),
    ("lazytime", MsFlags::MS_LAZYTIME, NONE),
    ("nolazytime", NONE, MsFlags::MS_LAZYTIME),
    ("silent", MsFlags::MS_SILENT, NONE),
    ("loud", NONE, MsFlags::MS_SILENT),
];
const NONE: MsFlags = MsFlags::empty();
const ALLOW_OTHER: &str = "allow_other";
/// In force in any case.
const DEFAULT_PERMISSIONS: &str = "default_permissions";

/// What mount(2) is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountFlags {
    /// Mount flags.
    pub flags: MsFlags,
    /// Let other users in.
    pub allow_other: bool,
}

/// Whether a mount would take `option`.
pub fn knows_option(option: &str) -> bool {
    [ALLOW_OTHER, DEFAULT_PERMISSIONS].contains(&option) || FLAGS.iter().any(|(name, ..)| *name == option)
}

/// Reads the options in order, later ones winning, as mount(8) does. Each element may hold several, comma separated.
pub(super) fn parse(options: &MountOptions) -> Result<MountFlags, FuseError> {
    let mut parsed = MountFlags { flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV, allow_other: options.allow_other };
    let words = options.options.iter().flat_map(|element| element.split(','));
    for word in words.map(str::trim).filter(|word| !word.is_empty()) {
        match FLAGS.iter().find(|(name, ..)| *name == word) {
            Some((_, set, clear)) => parsed.flags = (parsed.flags | *set) - *clear,
            None if word == ALLOW_OTHER => parsed.allow_other = true,
            None if word == DEFAULT_PERMISSIONS => {}
            None => return Err(FuseError::Option(word.to_owned())),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> MsFlags {
        let options = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&MountOptions { options, ..MountOptions::default() }).expect("known options").flags
    }

    #[test]
    fn nosuid_and_nodev_hold_until_lifted() {
        assert_eq!(flags(&[]), MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        assert_eq!(flags(&["suid"]), MsFlags::MS_NODEV);
        assert_eq!(flags(&["suid,dev", "noexec"]), MsFlags::MS_NOEXEC);
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert_eq!(flags(&["suid", "nosuid", "ro", "rw"]), MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        assert!(flags(&["rw", "ro"]).contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn unknown_options_are_named() {
        for word in ["bogus", "suid=1", "fd=3", "user_id=0", "max_read=1", "RO"] {
            let options = MountOptions { options: vec!["ro".to_owned(), word.to_owned()], ..MountOptions::default() };
            assert!(!knows_option(word) && knows_option("ro") && knows_option("allow_other"));
            let error = parse(&options).expect_err("an unknown option");
            assert!(error.to_string().contains(&format!("`{word}`")), "{error}");
        }
    }

    #[test]
    fn allow_other_may_come_either_way() {
        let word = MountOptions { options: vec!["allow_other,default_permissions".to_owned()], ..Default::default() };
        assert!(parse(&word).expect("known options").allow_other);
        let field = MountOptions { allow_other: true, ..Default::default() };
        assert!(parse(&field).expect("no options").allow_other);
        assert!(!parse(&MountOptions::default()).expect("no options").allow_other);
    }
}
