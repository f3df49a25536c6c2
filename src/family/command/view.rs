//! What the processes of a run find at `/tmp` and `/var/tmp`: the `tmp` of the scratch, for many programs write there
//! whatever `TMPDIR` says.
//!
//! The sealed process keeps the view of the machine: inputs, outputs, reports and backing may be below those directories.
//! What the command line or the environment names there (a script, a program, the socket of an agent) shows through.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use crate::family::command::{TMP, place::TEMPORARY};
use crate::spec::TmpPolicy;
use crate::sys::mount::{Access, PrivateView};

/// Variables that name directories for temporary files. The command gets its own.
pub const OF_TEMPORARY_FILES: [&str; 4] = ["TMPDIR", "TMP", "TEMP", "TEMPDIR"];
/// Variables that say nothing about what the command needs.
const OF_THE_SHELL: [&str; 3] = ["PWD", "OLDPWD", "_"];
/// Ends of the names of variables that name directories to find programs and libraries in.
const OF_SOFTWARE: [&str; 6] = ["PATH", "LIB", "LIBS", "_HOME", "_PREFIX", "_ENV"];

/// The view of a command in the scratch mounted on `scratch`. `variables` are those of the environment.
pub fn plan(
    policy: TmpPolicy,
    scratch: &Path,
    argv: &[&OsStr],
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> PrivateView {
    let mut view = PrivateView::default();
    if policy == TmpPolicy::Host {
        return view;
    }
    let tmp = scratch.join(TMP);
    for (below, (source, access)) in shown(argv, variables.collect()) {
        view.show(&source, &tmp, &below, access);
    }
    for directory in TEMPORARY.iter().map(Path::new).filter(|directory| directory.is_dir()) {
        view.cover(&tmp, directory);
    }
    view
}

/// What shows through, by its path below the directory that is covered. What lies in another one of them is shown only if
/// it can be written and that cannot.
fn shown(argv: &[impl AsRef<OsStr>], variables: BTreeMap<OsString, OsString>) -> BTreeMap<PathBuf, (PathBuf, Access)> {
    let arguments = argv.iter().map(AsRef::as_ref).flat_map(|argument| {
        let value = argument.as_bytes().split(|&byte| byte == b'=').next_back().unwrap_or_default();
        [Path::new(argument), Path::new(OsStr::from_bytes(value))].map(whole).into_iter().flatten().collect::<Vec<_>>()
    });
    let named = variables.iter().flat_map(|(name, value)| named_by(&name.to_string_lossy(), value));
    let all: Vec<Shown> = arguments.chain(named).chain(implied_by(&variables)).collect();
    let mut found = BTreeMap::new();
    for (below, (source, access)) in &all {
        let inside = |(other, (_, of_other)): &Shown| below.starts_with(other) && other != below && of_other >= access;
        let same = |(other, (_, of_other)): &Shown| other == below && of_other > access;
        if !all.iter().any(|other| inside(other) || same(other)) {
            found.insert(below.clone(), (source.clone(), *access));
        }
    }
    found
}

type Shown = (PathBuf, (PathBuf, Access));

/// What one variable names.
fn named_by(name: &str, value: &OsStr) -> Vec<Shown> {
    if OF_TEMPORARY_FILES.contains(&name) || OF_THE_SHELL.contains(&name) {
        return Vec::new();
    }
    // `FILE:/tmp/x`, `unix:path=/tmp/x,guid=..`, `/tmp/x,1,0`, `/a:/tmp/x`
    let parts = value.as_bytes().split(|byte| b":,;=".contains(byte)).map(OsStr::from_bytes).map(Path::new);
    let home = name == "HOME" || name.starts_with("XDG_") && name.ends_with("_HOME");
    let software = OF_SOFTWARE.iter().any(|end| name.ends_with(end));
    let shown = |path: &Path| match kind(path)? {
        kind if kind.is_dir() && home => exact(path, Access::ReadWrite),
        kind if kind.is_dir() && software => whole(path),
        kind if kind.is_dir() => None,
        kind if kind.is_file() || kind.is_socket() => exact(path, Access::ReadOnly),
        _ => None,
    };
    parts.filter_map(shown).collect()
}

/// What programs look for without being told where: the display's sockets, the default credential cache of Kerberos.
fn implied_by(variables: &BTreeMap<OsString, OsString>) -> Vec<Shown> {
    let variable = |name: &str| variables.get(OsStr::new(name));
    let local = variable("DISPLAY").is_some_and(|display| display.as_bytes().starts_with(b":"));
    let display = local.then_some(PathBuf::from("/tmp/.X11-unix"));
    let cache = || PathBuf::from(format!("/tmp/krb5cc_{}", nix::unistd::geteuid()));
    let cache = variable("KRB5CCNAME").is_none().then(cache);
    [display, cache].into_iter().flatten().filter_map(|path| exact(&path, Access::ReadOnly)).collect()
}

/// `path` itself.
fn exact(path: &Path, access: Access) -> Option<Shown> {
    let below = below(path)?;
    kind(path).map(|_| (below, (path.to_owned(), access)))
}

/// The first directory on the way to `path`: a program or a script is not alone in its own.
fn whole(path: &Path) -> Option<Shown> {
    kind(path)?;
    let rest = below(path)?;
    let first = PathBuf::from(rest.components().next()?.as_os_str());
    let root = path.ancestors().nth(rest.components().count())?;
    Some((first.clone(), (root.join(first), Access::ReadOnly)))
}

/// The path below one of [`TEMPORARY`].
fn below(path: &Path) -> Option<PathBuf> {
    let rest = TEMPORARY.iter().find_map(|tmp| path.strip_prefix(tmp).ok())?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && rest.components().next().is_some()).then(|| rest.to_owned())
}

fn kind(path: &Path) -> Option<FileType> {
    below(path)?;
    fs::metadata(path).ok().map(|found| found.file_type())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn names(argv: &[&Path], variables: &[(&str, String)]) -> Vec<(PathBuf, Access)> {
        let argv: Vec<OsString> = argv.iter().map(|path| path.as_os_str().to_owned()).collect();
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        shown(&argv, variables.collect()).into_values().collect()
    }

    #[test]
    fn what_is_named_shows_through_and_nothing_else() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
        let (root, script, socket) = (dir.path(), dir.path().join("bin/script"), dir.path().join("agent"));
        fs::create_dir(root.join("bin")).expect("made");
        fs::write(&script, "").expect("written");
        let _listener = UnixListener::bind(&socket).expect("bound");
        let shown = |text: &str| text.replace("DIR", root.to_str().expect("UTF-8"));
        let whole = || vec![(root.to_owned(), Access::ReadOnly)];
        let only = |path: &Path, access| vec![(path.to_owned(), access)];
        let none = ("KRB5CCNAME", String::new());
        assert_eq!(names(&[&script], std::slice::from_ref(&none)), whole());
        let option = PathBuf::from(shown("--config=DIR/bin/script"));
        assert_eq!(names(&[&option], std::slice::from_ref(&none)), whole());
        for (name, value, expected) in [
            ("SSH_AUTH_SOCK", "DIR/agent", only(&socket, Access::ReadOnly)),
            ("DBUS_SESSION_BUS_ADDRESS", "unix:path=DIR/agent,guid=1", only(&socket, Access::ReadOnly)),
            ("TMUX", "DIR/agent,12,0", only(&socket, Access::ReadOnly)),
            ("KRB5CCNAME", "FILE:DIR/bin/script", only(&script, Access::ReadOnly)),
            ("PATH", "/bin:DIR/bin", whole()),
            ("HOME", "DIR/bin", only(&root.join("bin"), Access::ReadWrite)),
            ("SPARK_LOCAL_DIRS", "DIR", Vec::new()),
            ("TMPDIR", "DIR", Vec::new()),
            ("OUT", "DIR/none", Vec::new()),
            ("OUT", "/var/tmp", Vec::new()),
            ("OUT", "/etc/passwd", Vec::new()),
        ] {
            let variables = [none.clone(), (name, shown(value))];
            assert_eq!(names(&[], &variables), expected, "{name}={value}");
        }
        // What is in a directory that shows through is there with it.
        let both = [none.clone(), ("SSH_AUTH_SOCK", shown("DIR/agent"))];
        assert_eq!(names(&[&script], &both), whole());
        // But what can be written stays so.
        let home = [none.clone(), ("HOME", shown("DIR/bin")), ("PATH", shown("DIR/bin"))];
        assert_eq!(names(&[], &home), [whole(), only(&root.join("bin"), Access::ReadWrite)].concat());
        let homes = [none, ("HOME", shown("DIR")), ("JAVA_HOME", shown("DIR"))];
        assert_eq!(names(&[&script], &homes), only(root, Access::ReadWrite));
    }
}
