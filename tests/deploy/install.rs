//! The installer.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::containers::{binary, finish, repository};
use crate::program::{Said, text};

/// A root to install below.
struct Target {
    dir: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("tempdir") }
    }

    fn install(&self, flags: &[&str]) -> Said {
        let mut script = Command::new(repository().join("scripts/install.sh"));
        script.args(["--destdir", text(self.dir.path())]).args(flags);
        finish(&mut script)
    }

    /// The same with the binary under test.
    fn install_binary(&self, flags: &[&str]) -> Said {
        self.install(&[&["--binary", text(binary())], flags].concat())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.strip_prefix('/').expect("absolute"))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Files and links, from the root.
    fn files(&self) -> BTreeSet<String> {
        let said = finish(Command::new("find").current_dir(self.dir.path()).args([".", "-not", "-type", "d"]));
        said.expect_said(0, &[]).out.lines().map(|line| line.trim_start_matches('.').to_owned()).collect()
    }
}

/// Where mount(8) finds helpers on this machine.
fn helper() -> &'static str {
    if Path::new("/sbin").is_symlink() { "/usr/sbin/mount.fuse.runseal" } else { "/sbin/mount.fuse.runseal" }
}

#[test]
fn everything_is_installed_once_and_removed_again() {
    let target = Target::new();
    let said = target.install_binary(&["--prefix", "/usr"]).expect_said(0, &[]);
    let files = target.files();
    for file in [
        "/usr/bin/runseal",
        "/usr/share/man/man1/runseal.1",
        "/usr/share/man/man1/runseal-run.1",
        "/usr/share/man/man1/runseal-mount.1",
        "/usr/share/man/man1/runseal-serve.1",
        "/usr/share/man/man8/mount.fuse.runseal.8",
        "/usr/share/bash-completion/completions/runseal",
        "/usr/share/zsh/site-functions/_runseal",
        "/usr/share/fish/vendor_completions.d/runseal.fish",
        "/usr/lib/systemd/system/runseal.service",
        "/usr/lib/systemd/system/runseal.socket",
        "/usr/lib/systemd/system/runseal@.service",
        "/etc/runseal/serve.toml",
        helper(),
    ] {
        assert!(files.contains(file), "{file} is missing: {files:?}");
    }
    for file in &files {
        assert!(said.out.contains(&format!("{}{file}", text(target.dir.path()))), "{file} is not told: {}", said.out);
    }
    let mode = |path: &str| fs::metadata(target.path(path)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode("/usr/bin/runseal"), mode("/etc/runseal/serve.toml")), (0o755, 0o644));
    assert_eq!(fs::read_link(target.path(helper())).expect("a link"), Path::new("/usr/bin/runseal"));
    assert!(target.read("/usr/lib/systemd/system/runseal.service").contains("ExecStart=/usr/bin/runseal serve"));
    assert!(target.read("/usr/share/man/man8/mount.fuse.runseal.8").contains("fstab"));
    let completions = target.path("/usr/share/bash-completion/completions/runseal");
    finish(Command::new("bash").arg("-n").arg(completions)).expect_said(0, &[]);

    let again = target.install_binary(&["--prefix", "/usr"]).expect_said(0, &[]);
    assert_eq!((again.out.as_str(), target.files()), ("", files), "the second time there is nothing to do");

    target.install(&["--prefix", "/usr", "--uninstall"]).expect_said(0, &["removed"]);
    assert_eq!(target.files(), BTreeSet::new());
    target.install(&["--prefix", "/usr", "--uninstall"]).expect_said(1, &["/usr/bin/runseal is not there"]);
}

#[test]
fn units_go_where_systemd_looks_and_name_the_program() {
    for (prefix, units) in [
        ("/usr/local", "/usr/local/lib/systemd/system"),
        ("/opt/runseal", "/etc/systemd/system"),
        ("/usr/", "/usr/lib/systemd/system"),
    ] {
        let target = Target::new();
        target.install_binary(&["--prefix", prefix]).expect_said(0, &[]);
        let unit = target.read(&format!("{units}/runseal@.service"));
        assert!(unit.contains(&format!("ExecStart={}/bin/runseal mount", prefix.trim_end_matches('/'))), "{unit}");
    }
}

#[test]
fn an_upgrade_replaces_the_program_and_keeps_the_configuration() {
    let target = Target::new();
    target.install_binary(&[]).expect_said(0, &[]);
    let (config, program) = ("/etc/runseal/serve.toml", "/usr/local/bin/runseal");
    fs::write(target.path(config), "[limits]\nruns = 7\n").expect("written");
    fs::write(target.path(program), "#!/bin/sh\n# an older one\n").expect("written");
    let said = target.install_binary(&[]).expect_said(0, &["kept", "installed"]);
    assert!(said.out.lines().count() == 2, "nothing else changed: {}", said.out);
    assert_eq!(fs::read(target.path(program)).expect("there"), fs::read(binary()).expect("built"));
    target.install(&["--uninstall"]).expect_said(0, &["kept", config]);
    assert_eq!(target.files(), BTreeSet::from([config.to_owned()]));
    assert_eq!(target.read(config), "[limits]\nruns = 7\n");
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let target = Target::new();
    for (flags, word) in [
        (&["--bogus"][..], "--bogus"),
        (&["--prefix"], "needs a value"),
        (&["--prefix", "usr"], "absolute"),
        (&["--binary", "/nonexistent"], "/nonexistent"),
    ] {
        target.install(flags).expect_said(1, &[word]);
        assert_eq!(target.files(), BTreeSet::new());
    }
    target.install(&["--help"]).expect_said(0, &["usage:", "--uninstall"]);
}

#[test]
fn the_umask_of_the_caller_lets_nobody_write_to_what_is_installed() {
    let target = Target::new();
    let script = repository().join("scripts/install.sh");
    let line = "umask 0; exec \"$0\" --destdir \"$1\" --binary \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", line, text(&script), text(target.dir.path()), text(binary())]);
    finish(&mut command).expect_said(0, &[]);
    let open = ["-mindepth", "1", "-not", "-type", "l", "-perm", "/022"];
    let said = finish(Command::new("find").arg(target.dir.path()).args(open)).expect_said(0, &[]);
    assert_eq!(said.out, "");
}
