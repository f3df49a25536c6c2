//! Names that somebody else chose, with all that a terminal obeys and a reader does not see, through every way out of the
//! binary: nothing of it arrives, and no line is forged. JSON says them exactly.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runseal::audit::{Event, Trail};
use runseal::spec::AuditDestination;
use runseal::units::text::is_hidden;
use serde_json::Value;

/// What a forged line says, at its beginning.
const FORGED: &str = "runseal: forged";

/// Names that attack a terminal, a log or a reader; none has a slash or a zero.
fn names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "a\nrunseal: forged\r\nb\u{b}\u{c}\u{8}\u{7f}\u{85}c\td",
        "a\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\u{2028}runseal: forged\u{2029}\u{202e}gpj.exe\u{2066}x\u{2069}\
         \u{200b}b\u{200d}\u{feff}\u{ad}\u{2060}\u{e0041}\u{e007f}\u{fe0f}\u{e0101}\u{3164}",
    ]
    .map(OsString::from)
    .into();
    // Bytes that are no UTF-8, which old terminals take for controls (CSI as one byte).
    names.push(OsString::from_vec(b"a\xff\x9b31m\xc2\xe2\x80b".to_vec()));
    names
}

fn runseal(args: &[&OsStr]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runseal"));
    command.args(args).env_remove("RUNSEAL_BACKING").env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

fn os(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn joined(before: &str, name: &OsStr) -> OsString {
    let mut text = OsString::from(before);
    text.push(name);
    text
}

/// Nothing that `output` has moves a cursor, hides, or is a line that the attacker wrote.
fn is_clean(what: &str, output: &Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {error}: {bytes:?}"));
        let hidden = text.chars().find(|&c| c != '\n' && (is_hidden(c) || c.is_control()));
        assert_eq!(hidden, None, "{what}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with(FORGED)), "{what}: {text}");
    }
}

/// Runs the binary, which must have something to say about the name.
fn said(args: &[&OsStr]) -> Output {
    let output = runseal(args).output().expect("the binary runs");
    let what = format!("{args:?}");
    is_clean(&what, &output);
    assert!(!(output.stdout.is_empty() && output.stderr.is_empty()), "{what} says nothing");
    output
}

// promise: T-44
#[test]
fn no_name_on_the_command_line_reaches_the_terminal() {
    let dir = tempfile::tempdir().expect("tempdir");
    for name in &names() {
        let path = dir.path().join(name);
        let path = path.as_os_str();
        let below = Path::new(path).join("x");
        let below = below.as_os_str();
        for args in [
            &[os("run"), os("--input"), path, os("--"), os("true")][..],
            &[os("run"), os("--output"), below, os("--"), os("true")],
            &[os("run"), os("--report"), below, os("--"), os("true")],
            &[os("run"), os("--audit"), below, os("--"), os("true")],
            &[os("run"), os("--audit"), os("/dev/null"), os("--audit-sign"), path, os("--"), os("true")],
            &[os("run"), os("--backing"), path, os("--"), os("true")],
            &[os("run"), os("--"), path],
            &[os("run"), os("--"), name],
            &[os("preflight"), os("--input"), path],
            &[os("preflight"), os("--input"), path, os("--json")],
            &[os("mount"), path],
            &[os("doctor"), os("--backing"), path],
            &[os("doctor"), os("--backing"), path, os("--json")],
            &[os("audit"), os("verify"), path],
            &[os("audit"), os("keygen"), below],
            &[os("policy"), os("lint"), path],
            &[os("serve"), os("--config"), path],
        ] {
            said(args);
        }
        // What must be text is refused as what it is.
        for args in [
            &[os("run"), os("--size"), name, os("--"), os("true")][..],
            &[os("run"), os("--run-id"), name, os("--"), os("true")],
            &[os("run"), &joined("--", name)],
            &[name],
            &[os("end"), name],
            &[os("status"), name],
            &[os("exec"), name, os("true")],
            &[os("cp"), &joined("run:", name), os("/tmp")],
            &[os("cp"), &joined(&name.to_string_lossy(), os(":x")), os("/tmp")],
            &[os("run"), os("--input"), &joined("s3://Bucket/", name), os("--"), os("true")],
            &[os("run"), os("--input"), &joined("x://", name), os("--"), os("true")],
        ] {
            said(args);
        }
    }
}

// promise: T-44
#[test]
fn the_mount_helper_and_policies_show_nothing_hidden() {
    for name in names() {
        let place = joined("/nonexistent/", &name);
        let (place, name) = (place.as_os_str(), name.as_os_str());
        for args in [[os("runseal"), place, os("-fv")], [name, place, os("-fv")], [os("runseal"), place, name]] {
            let mut command = runseal(&args);
            let output = command.arg0("/sbin/mount.fuse.runseal").output().expect("the binary runs");
            is_clean(&format!("{args:?}"), &output);
        }
        let Some(text) = name.to_str() else { continue };
        let uri = format!("s3://bucket/{text}");
        said(&[os("policy"), os("--input"), os(&uri)]);
        said(&[os("policy"), os("--input"), os(&uri), os("--no-kms")]);
        let json = said(&[os("policy"), os("--input"), os(&uri), os("--no-kms"), os("--json")]);
        // Some of them cannot be keys.
        if json.status.success() {
            let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
            assert!(json.to_string().contains(serde_json::to_string(text).expect("JSON").trim_matches('"')), "exact");
        }
    }
}

// promise: T-44
#[test]
fn what_is_in_a_file_is_not_obeyed() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (turn, name) in names().iter().enumerate() {
        let name = name.to_string_lossy();
        // A trail by an attacker, its chain intact and the name of its run hostile.
        let path = dir.path().join(format!("trail-{turn}"));
        let trail = Trail::open(&AuditDestination::File(path.clone()), &name).expect("a trail");
        trail.record(&Event::create_run_key(None));
        let verified = said(&[os("audit"), os("verify"), path.as_os_str()]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        assert!(String::from_utf8_lossy(&verified.stdout).contains("no end"), "{verified:?}");
        let json = said(&[os("audit"), os("verify"), os("--json"), path.as_os_str()]);
        let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!(json["unfinished"][0], *name, "exact");
        is_clean("the trail itself", &Output { stdout: fs::read(&path).expect("readable"), ..verified });
        // A policy and a configuration.
        let text = serde_json::json!({"Version": name, name.to_string(): name, "Statement": [{"Effect": name}]});
        let file = dir.path().join(format!("file-{turn}"));
        fs::write(&file, text.to_string()).expect("written");
        said(&[os("policy"), os("lint"), file.as_os_str()]);
        said(&[os("policy"), os("lint"), os("--json"), file.as_os_str()]);
        fs::write(&file, format!("[node]\n{} = 1\n", serde_json::to_string(&name).expect("JSON"))).expect("written");
        said(&[os("serve"), os("--config"), file.as_os_str()]);
    }
}

/// Inputs and results of a run, by names in directories: preflight, staging and publishing tell of them.
// promise: T-44
#[test]
fn names_of_inputs_and_results_are_told_safely() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    for directory in [&input, &output] {
        fs::create_dir(directory).expect("made");
    }
    for name in names() {
        symlink("/nonexistent", input.join(&name)).expect("made");
        fs::write(output.join(&name), "old").expect("written");
    }
    let flags = [os("--input"), input.as_os_str(), os("--dereference"), os("--output"), output.as_os_str()];
    said(&[&[os("preflight")][..], &flags].concat());
    let json = said(&[&[os("preflight"), os("--json")][..], &flags].concat());
    serde_json::from_slice::<Value>(&json.stdout).expect("JSON");
    let report = dir.path().join("report");
    said(&[&[os("run"), os("--report"), report.as_os_str()][..], &flags, &[os("--"), os("true")]].concat());
    is_clean("the report", &Output { stdout: fs::read(report).expect("written"), ..said(&[os("--version")]) });
}

// promise: T-44
#[test]
fn live_runs_and_mounts_with_hostile_names_are_shown_safely() {
    if !nix::unistd::geteuid().is_root() || fs::File::open("/dev/fuse").is_err() {
        println!("SKIP: root and /dev/fuse are needed");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    for (turn, name) in names().into_iter().enumerate() {
        let output = dir.path().join(format!("out-{turn}"));
        let script = r#"ln -s "$RUNSEAL_SCRATCH/work/none" "$RUNSEAL_OUTPUT/$1""#;
        let flags =
            [os("run"), os("--on-hold"), os("fail"), os("--size"), os("16M"), os("--output"), output.as_os_str()];
        let failed = said(&[&flags[..], &[os("--"), os("sh"), os("-c"), os(script), os("sh"), &name]].concat());
        assert_eq!(failed.status.code(), Some(75), "a link that leads nowhere: {failed:?}");

        let mount = Mount { id: format!("names-{turn}-{}", std::process::id()), at: dir.path().join(&name) };
        fs::create_dir(&mount.at).expect("made");
        let made =
            said_or_not(&[os("mount"), os("--run-id"), os(&mount.id), os("--size"), os("16M"), mount.at.as_os_str()]);
        if mount.at.to_str().is_none() && !made.status.success() {
            continue;
        }
        assert_eq!(made.status.code(), Some(0), "{made:?}");
        said(&[os("status")]);
        let json = said(&[os("status"), os("--json"), os(&mount.id)]);
        let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        if let Some(text) = mount.at.to_str() {
            assert_eq!(json[0]["state"]["mountpoint"], text, "exact");
        }
        let again = said(&[os("mount"), os("--size"), os("16M"), mount.at.as_os_str()]);
        assert_eq!(again.status.code(), Some(73), "taken: {again:?}");
    }
}

fn said_or_not(args: &[&OsStr]) -> Output {
    let output = runseal(args).output().expect("the binary runs");
    is_clean(&format!("{args:?}"), &output);
    output
}

struct Mount {
    id: String,
    at: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        said_or_not(&[os("end"), os(&self.id)]);
    }
}
