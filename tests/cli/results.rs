//! Results that are about to be destroyed, replaced or published dead: held or told, never lost silently.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::program::{Live, Said, finish, require_host, run, runseal, say, status, text};

/// A directory for an output and what else there is.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("tempdir"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run with `out` as its output that is held.
    fn held(&self, flags: &[&str], script: &str) -> Live {
        let output = self.path("out");
        let flags = [&["--output", text(&output)], flags].concat();
        let live = Live::start(self.0.path(), &flags, &format!("{script}; ready"));
        live.wait_for("held");
        live
    }

    fn run(&self, flags: &[&str], script: &str) -> Said {
        let output = self.path("out");
        run(&[&["--output", text(&output)], flags].concat(), script)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let names = fs::read_dir(self.path(directory)).expect("listed");
        let mut names: Vec<_> =
            names.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

fn problem(live: &Live) -> String {
    status(&live.id).expect("alive")["report"]["held"].as_str().expect("a problem").to_owned()
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("written")).expect("JSON")
}

// promise: S-110
#[test]
fn an_empty_output_holds_what_is_elsewhere_in_the_scratch_and_names_it() {
    require_host!();
    let site = Site::new();
    let script = "mkdir -p align \"$TMPDIR/sort\" \"$RUNSEAL_OUTPUT/empty\"; head -c 300000 /dev/zero >align/reads.bam
        head -c 200000 /dev/zero >\"$TMPDIR/sort/x\"; echo note >note; printf '' >\"$(printf 'odd\\033')\"";
    let live = site.held(&[], script);
    let said = problem(&live);
    for part in [
        "4 files of 488.3 KiB",
        "work/align: 1 file of 293.0 KiB",
        "tmp/sort: 1 file of 195.3 KiB",
        "work: 2 files of 5 B",
    ] {
        assert!(said.contains(part), "`{part}` is missing in {said}");
    }
    say(&["resume", &live.id]).expect(69, &["still held", "--allow-empty", "work/align"]);
    live.wait_for("held");
    say(&["resume", "--allow-empty", &live.id]).expect(0, &[]);
    live.end().expect(0, &["no file below $RUNSEAL_OUTPUT"]);

    // A directory is a result, if an empty output is.
    assert_eq!(site.names("out"), ["empty", "runseal-manifest.json"]);
}

// promise: S-110
#[test]
fn an_empty_output_leaves_room_for_the_next_run() {
    require_host!();
    let site = Site::new();
    site.run(&["--allow-empty"], "echo kept elsewhere >file").expect(0, &[]);
    assert_eq!(site.names("out"), [""; 0]);
    site.run(&[], "echo x >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert_eq!(site.names("out"), ["runseal-manifest.json", "x"]);
}

// promise: S-110
#[test]
fn inputs_are_no_results_but_what_a_command_leaves_beside_them_may_be() {
    require_host!();
    let site = Site::new();
    fs::create_dir(site.path("reads")).expect("made");
    fs::write(site.path("reads/a.bam"), "staged").expect("written");
    let (input, path) = (site.path("reads"), site.path("report.json"));
    let flags = ["--input", text(&input), "--report", text(&path)];
    site.run(&flags, "cat \"$RUNSEAL_INPUT/reads/a.bam\"")
        .expect(73, &["left no file below $RUNSEAL_OUTPUT, nor anywhere else", "--allow-empty"]);
    let report = report(&path);
    assert_eq!((&report["outcome"], &report["exit_status"]), (&"failed".into(), &73.into()));
    assert!(!site.path("out").exists());
    let live = site.held(&["--input", text(&input)], "echo index >\"$RUNSEAL_INPUT/reads/a.bam.bai\"");
    assert!(problem(&live).contains("1 file of 6 B (input/reads: 1 file of 6 B)"), "{}", problem(&live));
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["discarded"]);
}

// promise: S-110
#[test]
fn results_without_an_output_are_held() {
    require_host!();
    let site = Site::new();
    let live = Live::start(site.0.path(), &[], "echo x >\"$RUNSEAL_OUTPUT/x\"; ready");
    live.wait_for("held");
    let said = problem(&live);
    assert!(said.contains("no --output was given") && said.contains("output: 1 file of 2 B"), "{said}");
    say(&["end", &live.id]).expect(69, &["--discard"]);
    say(&["resume", &live.id]).expect(69, &["still held", "resume --output DIR"]);
    live.wait_for("held");
    let output = site.path("rescued");
    say(&["resume", "--output", text(&output), &live.id]).expect(0, &[]);
    live.end().expect(0, &["runseal resume --output DIR", "runseal end --discard"]);
    assert_eq!(site.read("rescued/x"), "x\n");
    // Whatever else a run without an output leaves is what it says it is: scratch.
    run(&[], "echo x >file; mkdir \"$RUNSEAL_OUTPUT/empty\"").expect(0, &[]);
}

// promise: S-113
#[test]
fn replacing_results_says_what_was_removed_and_the_report_counts_it() {
    require_host!();
    let site = Site::new();
    let path = site.path("report.json");
    site.run(&[], "cd \"$RUNSEAL_OUTPUT\"; mkdir sub; echo 1 >a; echo 1 >sub/b").expect(0, &[]);
    let second = "echo 2 >\"$RUNSEAL_OUTPUT/a\"";
    site.run(&["--overwrite", "--keep-old", "--report", text(&path)], second).expect(0, &["kept, as asked: 1 (sub/b)"]);
    assert_eq!((site.read("out/a").as_str(), site.read("out/sub/b").as_str()), ("2\n", "1\n"));
    assert_eq!(report(&path)["published"]["kept"], 1);

    let site = Site::new();
    let path = site.path("report.json");
    site.run(&[], "cd \"$RUNSEAL_OUTPUT\"; mkdir sub; echo 1 >a; echo 1 >sub/b").expect(0, &[]);
    site.run(&["--overwrite", "--report", text(&path)], second).expect(0, &["were removed: 1"]);
    assert_eq!(site.names("out"), ["a", "runseal-manifest.json"]);
    assert_eq!((&report(&path)["published"]["removed"], &report(&path)["published"]["files"]), (&1.into(), &1.into()));
    say(&["run", "--keep-old", "--", "true"]).expect(64, &["--overwrite"]);
}

// promise: S-112
#[test]
fn links_of_the_command_lead_to_results_or_hold_the_run() {
    require_host!();
    let site = Site::new();
    site.run(&[], "cd \"$RUNSEAL_OUTPUT\"; echo x >real; ln -s \"$RUNSEAL_OUTPUT/real\" link; ln -s /usr/bin usr")
        .expect(0, &[]);
    assert_eq!(fs::read_link(site.path("out/link")).expect("a link"), Path::new("real"));
    assert_eq!(site.read("out/link"), "x\n");
    assert_eq!(fs::read_link(site.path("out/usr")).expect("a link"), Path::new("/usr/bin"));

    let site = Site::new();
    let astray = "echo data >data; ln -s \"$PWD/data\" \"$RUNSEAL_OUTPUT/link\"";
    let live = site.held(&[], astray);
    let said = problem(&live);
    assert!(said.contains("`link` is a symbolic link to `work/data`") && said.contains("--dereference"), "{said}");
    assert!(!site.path("out/link").exists());
    say(&["resume", "--dereference", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert!(!site.path("out/link").is_symlink());
    assert_eq!(site.read("out/link"), "data\n");

    let site = Site::new();
    site.run(&["--dereference"], astray).expect(0, &[]);
    assert_eq!(site.read("out/link"), "data\n");

    // What the command finds at /tmp is the scratch.
    let site = Site::new();
    let live = site.held(&[], "echo part >/tmp/part; ln -s /var/tmp/part \"$RUNSEAL_OUTPUT/link\"");
    assert!(problem(&live).contains("`link` is a symbolic link to `tmp/part`"), "{}", problem(&live));
    say(&["resume", "--dereference", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(site.read("out/link"), "part\n");
}

// promise: S-111
#[test]
fn a_link_out_of_an_input_stops_preflight_or_is_copied() {
    require_host!();
    let site = Site::new();
    fs::create_dir(site.path("set")).expect("made");
    fs::write(site.path("original"), "original\n").expect("written");
    symlink("../original", site.path("set/link")).expect("linked");
    let input = site.path("set");
    let show = "cat \"$RUNSEAL_INPUT/set/link\"; test ! -L \"$RUNSEAL_INPUT/set/link\"";
    run(&["--input", text(&input)], show).expect(66, &["INPUT_LINK_OUTSIDE", "set/link", "--dereference"]);
    let said = say(&["preflight", "--json", "--input", text(&input)]).expect(66, &[]);
    let verdict: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(verdict["findings"][0]["code"], "INPUT_LINK_OUTSIDE");
    assert_eq!(run(&["--dereference", "--input", text(&input)], show).expect(0, &[]).out, "original\n");
}

// promise: S-114
#[test]
fn a_shared_directory_hands_its_group_on_whoever_runs() {
    require_host!();
    const PROJECT: &str = "4711";
    for user in ["0", "65534"] {
        let site = Site::new();
        fs::set_permissions(site.0.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let (shared, backing, state) = (site.path("shared"), site.path("backing"), site.path("state"));
        for directory in [&shared, &backing, &state] {
            fs::create_dir(directory).expect("made");
            fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)).expect("chmod");
        }
        chown(&shared, None, Some(4_711)).expect("chgrp");
        chown(&state, Some(user.parse().expect("a number")), None).expect("chown");
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o2777)).expect("chmod");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--groups", PROJECT]);
        command.arg(runseal().get_program()).args(["run", "--backing", text(&backing), "--shared-output", "--output"]);
        command.arg(shared.join("out")).env("XDG_RUNTIME_DIR", &state);
        command.args(["--", "sh", "-euc", "cd \"$RUNSEAL_OUTPUT\"; mkdir -p sub/deep; echo x >sub/deep/x; echo y >y"]);
        let said = finish(command);
        if user != "0" && said.code == 77 {
            println!("SKIP: {}: users may not make namespaces here: {}", module_path!(), said.err);
            continue;
        }
        said.expect(0, &[]);
        for (name, bit) in [("", true), ("sub", true), ("sub/deep", true), ("sub/deep/x", false), ("y", false)] {
            let found = fs::metadata(shared.join("out").join(name)).expect("published");
            assert_eq!((found.gid(), found.mode() & 0o2000 != 0), (4_711, bit), "user {user}: {name}");
        }
    }
}

// promise: T-51, T-54
#[test]
fn root_is_led_nowhere_by_the_owner_of_the_output() {
    require_host!();
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIP: not root");
    }
    let site = Site::new();
    fs::set_permissions(site.0.path(), fs::Permissions::from_mode(0o755)).expect("set");
    fs::create_dir(site.path("out")).expect("made");
    chown(site.path("out"), Some(4_001), Some(4_001)).expect("given");
    let script = "printf x >\"$RUNSEAL_OUTPUT/x\"";
    site.run(&[], script).expect(73, &["users other than root may change it", "--shared-output"]);
    assert_eq!(site.names("out"), [""; 0]);
    site.run(&["--shared-output"], script).expect(0, &[]);
    assert_eq!(site.read("out/x"), "x");

    // The report: neither its own name nor that of a temporary file leads to a file of root.
    fs::write(site.path("victim"), "of root").expect("written");
    symlink(site.path("victim"), site.path("out/report.json")).expect("planted");
    let path = site.path("out/report.json");
    run(&["--report", text(&path)], "true").expect(0, &[]);
    assert_eq!(site.read("victim"), "of root");
    assert_eq!(report(&path)["outcome"], "succeeded");
    assert!(path.symlink_metadata().expect("there").is_file());
}
