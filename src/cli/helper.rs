//! `mount.fuse.runseal`: runseal as mount(8) calls it, so that fstab and mount units work.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;

use clap::{CommandFactory, Parser};

use crate::run::{knows_mount_option, warn};
use crate::sys::mount::unescape;
use crate::sys::path::shown;
use crate::units::exit::Exit;

use super::explain;

/// What `argv[0]` begins with when mount(8) calls.
const PREFIX: &str = "mount.";
const FS_TYPE: &str = "fuse.runseal";
/// What the mount table shows, and what `mount -a` compares with fstab.
const SOURCE: &str = "runseal";

/// Exit codes of mount(8).
const WRONG_INVOCATION: u8 = 1;
const MOUNT_FAILURE: u8 = 32;

/// Options that become flags of `runseal mount`.
const OF_THE_STORE: [&str; 6] = ["size", "backing", "run-id", "cipher-engine", "memory-lock", "cpu-latency"];
/// Options for mount(8) and service managers, which reach helpers all the same. Those with a value end in `=`, those that
/// stand for a family in `.`.
const OF_OTHERS: [&str; 16] = [
    "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "comment=", "uhelper=",
    "helper=", "x-", "X-", "loud", "silent",
];

/// What mount(8) takes for the default and keeps to itself, its opposite, and what is written instead.
const SWALLOWED: [(&str, &str, &str); 2] = [("suid", "nosuid", "allow_suid"), ("dev", "nodev", "allow_dev")];
const FSTAB: &str = "/etc/fstab";

/// Mount an encrypted scratch; called by mount(8) for file systems of type fuse.runseal
///
/// In /etc/fstab: `runseal /scratch fuse.runseal size=10G,backing=/disk 0 0`. Options are those of mount(8), and size,
/// backing (directories, separated by colons), run-id, cipher-engine, memory-lock and cpu-latency as of `runseal mount`;
/// allow_suid and allow_dev stand for suid and dev, which mount(8) does not pass on.
#[derive(Debug, Parser)]
#[command(name = "mount.fuse.runseal", version, max_term_width = 100)]
struct HelperArgs {
    /// `runseal`
    source: OsString,
    /// An existing, empty directory
    mountpoint: OsString,
    /// Mount options
    #[arg(short, value_delimiter = ',')]
    options: Vec<String>,
    /// Tolerate options nobody knows
    #[arg(short)]
    sloppy: bool,
    /// Check, but do not mount
    #[arg(short)]
    fake: bool,
    /// Write no mount table; it is the kernel's anyway
    #[arg(short)]
    no_table: bool,
    /// Tell which command this becomes
    #[arg(short)]
    verbose: bool,
    /// Type of the file system
    #[arg(short = 't', default_value = FS_TYPE)]
    fs_type: String,
}

/// Whether `program`, `argv[0]`, is the name mount(8) calls.
pub fn is_meant(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name()).and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with(PREFIX))
}

/// Mounts as the command line of mount(8), `line`, says; `perform` takes a command line of runseal. Returns an exit code
/// of mount(8).
pub fn act(line: impl Iterator<Item = OsString>, perform: impl FnOnce(Vec<OsString>) -> u8) -> u8 {
    let args = match HelperArgs::try_parse_from(line) {
        Ok(args) => args,
        Err(error) => {
            return if explain(&error) { WRONG_INVOCATION } else { 0 };
        }
    };
    let asked = MountCommand::above().map_or_else(String::new, |command| command.options(&args.mountpoint, FSTAB));
    let line = match check_swallowed(&asked, &args.options).and_then(|()| translate(&args)) {
        Ok(line) => line,
        Err(problem) => {
            warn(problem);
            return WRONG_INVOCATION;
        }
    };
    if args.verbose {
        warn(shown(Path::new(&line.join(OsStr::new(" ")))));
    }
    if args.fake {
        return 0;
    }
    let caller = std::process::id();
    match perform(line) {
        // The processes of the mount come back here too, and tell each other how it ended in the codes of runseal.
        code if std::process::id() != caller => code,
        0 => 0,
        code => match Exit::of(code) {
            Some(Exit::Usage | Exit::NoPermission) => WRONG_INVOCATION,
            _ => MOUNT_FAILURE,
        },
    }
}

/// The mount(8) that calls.
struct MountCommand {
    words: Vec<String>,
}

impl MountCommand {
    /// `None` if somebody else calls.
    fn above() -> Option<Self> {
        let line = fs::read(format!("/proc/{}/cmdline", nix::unistd::getppid())).ok()?;
        let words = line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Self::parse(words)
    }

    fn parse(words: Vec<String>) -> Option<Self> {
        let program = words.first().map(Path::new).and_then(Path::file_name);
        (program == Some(OsStr::new("mount"))).then_some(Self { words })
    }

    /// The options it was given for `mountpoint`, by its command line and by `fstab`.
    fn options(&self, mountpoint: &OsStr, fstab: &str) -> String {
        let typed = self.words.iter().any(|word| word.ends_with(FS_TYPE));
        let all = self.words.iter().any(|word| matches!(word.as_str(), "-a" | "--all"));
        let table = if typed && !all { String::new() } else { fs::read_to_string(fstab).unwrap_or_default() };
        let of_table = table.lines().filter_map(|line| options_of(line, mountpoint)).next_back();
        let after = |word: &str| matches!(word, "-o" | "--options");
        let apart = self.words.windows(2).filter(|pair| after(&pair[0])).map(|pair| pair[1].as_str());
        let joined = self.words.iter().filter_map(|word| word.strip_prefix("--options=").or(word.strip_prefix("-o")));
        let all = of_table.into_iter().chain(apart).chain(joined).filter(|options| !options.is_empty());
        all.collect::<Vec<_>>().join(",")
    }
}

/// The options of a line of fstab(5), if it is about `mountpoint` and this type.
fn options_of<'a>(line: &'a str, mountpoint: &OsStr) -> Option<&'a str> {
    let mut fields = line.split_whitespace().skip(1);
    let place = unescape(fields.next()?.as_bytes());
    let this = fields.next()? == FS_TYPE && (place == mountpoint || fs::canonicalize(&place).ok()? == mountpoint);
    this.then(|| fields.next()).flatten()
}

/// Refuses when mount(8) was asked for what it does not pass on, and it was not said in the other way.
fn check_swallowed(asked: &str, arrived: &[String]) -> Result<(), String> {
    let lost = SWALLOWED.iter().find(|(word, opposite, instead)| {
        let last = asked.split(',').rfind(|option| option == word || option == opposite);
        last == Some(word) && !arrived.iter().any(|option| [word, opposite, instead].contains(&&option.as_str()))
    });
    match lost {
        Some((word, _, instead)) => {
            Err(format!("mount(8) does not pass the option `{word}` on to runseal; write `{instead}` instead"))
        }
        None => Ok(()),
    }
}

/// Writes the manual page of this program into `dir`; section 8, as that of mount(8).
pub fn man_page(dir: &Path) -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(HelperArgs::command()).section("8").render(&mut page)?;
    fs::write(dir.join("mount.fuse.runseal.8"), page)
}

/// The command line of `runseal mount` that means the same.
fn translate(args: &HelperArgs) -> Result<Vec<OsString>, String> {
    if args.fs_type != FS_TYPE {
        return Err(format!("cannot mount file systems of type {}, only {FS_TYPE}", args.fs_type));
    }
    // mount(8) makes a path of it where the working directory has an entry of that name.
    if Path::new(&args.source).file_name() != Some(OsStr::new(SOURCE)) {
        let given = shown(Path::new(&args.source));
        return Err(format!("the source must be `{SOURCE}`, not `{given}`; name the disk with the option backing=DIR"));
    }
    let mut line: Vec<OsString> = vec!["runseal".into(), "mount".into()];
    let mut options = Vec::new();
    for option in args.options.iter().map(|option| option.trim()).filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "remount" => return Err("a sealed mount cannot be changed; unmount it, and mount it anew".to_owned()),
            "backing" => line.extend(value.split(':').map(|directory| format!("--backing={directory}").into())),
            "allow_suid" | "allow_dev" => options.extend(allowed(option, &args.options)),
            _ if OF_THE_STORE.contains(&name) => line.push(format!("--{option}").into()),
            _ if is_of_others(option) => {}
            _ if args.sloppy && !knows_mount_option(option) => {}
            _ => options.push(option),
        }
    }
    if !options.is_empty() {
        line.extend(["-o".into(), options.join(",").into()]);
    }
    line.extend(["--".into(), args.mountpoint.clone()]);
    Ok(line)
}

/// What mount(8) would have called it; its opposite wins, because mount(8) does not keep the order.
fn allowed(option: &str, all: &[String]) -> Option<&'static str> {
    let (word, opposite, _) = SWALLOWED.iter().find(|(.., instead)| *instead == option)?;
    (!all.iter().any(|other| other == opposite)).then_some(*word)
}

fn is_of_others(option: &str) -> bool {
    OF_OTHERS.iter().any(|other| option == *other || other.ends_with(['=', '-']) && option.starts_with(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Result<String, String> {
        let words = std::iter::once("/sbin/mount.fuse.runseal").chain(words.split(' '));
        let args = HelperArgs::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(translate(&args)?.join(OsStr::new(" ")).into_string().expect("UTF-8"))
    }

    #[test]
    fn what_mount_passes_becomes_a_command_line() {
        for (words, expected) in [
            ("runseal /mnt", "runseal mount -- /mnt"),
            ("runseal /mnt -o rw", "runseal mount -o rw -- /mnt"),
            (
                "runseal /mnt -sfnv -o rw,nodev,size=10G,backing=/a:/b,run-id=x,_netdev,nofail,x-systemd.requires=y",
                "runseal mount --size=10G --backing=/a --backing=/b --run-id=x -o rw,nodev -- /mnt",
            ),
            ("/work/runseal /mnt -t fuse.runseal -o noauto,comment=z", "runseal mount -- /mnt"),
            (
                "runseal /mnt -o cipher-engine=portable,memory-lock=try",
                "runseal mount --cipher-engine=portable \
              --memory-lock=try -- /mnt",
            ),
            ("-s runseal /mnt -o bogus=1,noexec", "runseal mount -o noexec -- /mnt"),
            ("runseal /mnt -o bogus=1,noexec", "runseal mount -o bogus=1,noexec -- /mnt"),
        ] {
            assert_eq!(line(words).as_deref(), Ok(expected), "{words}");
        }
    }

    #[test]
    fn what_mount_keeps_to_itself_is_said_in_another_way() {
        assert_eq!(
            line("runseal /mnt -o rw,allow_suid,allow_dev").as_deref(),
            Ok("runseal mount -o rw,suid,dev -- /mnt")
        );
        assert_eq!(line("runseal /mnt -o nosuid,allow_suid").as_deref(), Ok("runseal mount -o nosuid -- /mnt"));
        for (asked, arrived, refused) in [
            ("suid", "rw", Some("allow_suid")),
            ("size=1,dev,noauto", "rw,size=1", Some("allow_dev")),
            ("suid,allow_suid", "rw,allow_suid", None),
            ("user,suid", "rw,user,suid", None),
            ("suid,nosuid", "rw,nosuid", None),
            ("nosuid,suid", "rw", Some("allow_suid")),
            ("defaults", "rw", None),
            ("", "rw", None),
        ] {
            let arrived: Vec<_> = arrived.split(',').map(str::to_owned).collect();
            match (check_swallowed(asked, &arrived), refused) {
                (Ok(()), None) => {}
                (Err(said), Some(word)) => assert!(said.contains(word), "{said}"),
                (found, _) => panic!("{asked}: {found:?}"),
            }
        }
    }

    #[test]
    fn mount_was_asked_by_its_command_line_and_by_fstab() {
        let dir = tempfile::tempdir().expect("a directory");
        let fstab = dir.path().join("fstab");
        let lines = "# runseal /fs fuse.runseal comment 0 0\n/dev/sda / ext4 errors=remount-ro 0 1\n\
                     runseal /fs fuse.runseal suid,size=1 0 0\nrunseal /a\\040b fuse.runseal dev\n";
        fs::write(&fstab, lines).expect("written");
        let asked = |line: &str, place: &str| {
            let command = MountCommand::parse(line.split(' ').map(str::to_owned).collect())?;
            Some(command.options(OsStr::new(place), fstab.to_str().expect("UTF-8")))
        };
        for (line, place, expected) in [
            ("mount /fs", "/fs", Some("suid,size=1")),
            ("/bin/mount -a", "/a b", Some("dev")),
            ("mount -o ro /fs", "/fs", Some("suid,size=1,ro")),
            ("mount /nowhere", "/nowhere", Some("")),
            ("mount runseal /fs -t fuse.runseal -o rw,dev --options=x -oy", "/fs", Some("rw,dev,x,y")),
            ("mount -a -t fuse.runseal", "/fs", Some("suid,size=1")),
            ("sh -c mount", "/fs", None),
        ] {
            assert_eq!(asked(line, place).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_remedy() {
        for (words, said) in [
            ("/dev/sda1 /mnt", "backing=DIR"),
            ("runseal /mnt -o remount,ro", "unmount it"),
            ("runseal /mnt -t fuse.sshfs", "fuse.sshfs"),
            ("runseal", "MOUNTPOINT"),
        ] {
            assert!(line(words).expect_err(words).contains(said), "{words}");
        }
    }

    #[test]
    fn only_the_name_of_a_mount_helper_means_this() {
        for (program, meant) in [
            (Some("/sbin/mount.fuse.runseal"), true),
            (Some("mount.runseal"), true),
            (Some("/usr/bin/runseal"), false),
            (Some("/mount.d/runseal"), false),
            (None, false),
        ] {
            assert_eq!(is_meant(program.map(OsStr::new)), meant, "{program:?}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_mount() {
        for (code, expected) in [(0, 0), (64, 1), (77, 1), (73, 32), (69, 32), (71, 32)] {
            let line = ["mount.fuse.runseal", "runseal", "/mnt"].map(OsString::from);
            assert_eq!(act(line.into_iter(), |_| code), expected);
        }
        let fake = ["mount.fuse.runseal", "runseal", "/mnt", "-f"].map(OsString::from);
        assert_eq!(act(fake.into_iter(), |_| panic!("-f mounts nothing")), 0);
    }
}
