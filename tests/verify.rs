//! `runseal verify` against outputs and manifests that somebody tampered with.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "runseal-manifest.json";

/// An output as a run publishes one, in a directory of its own that has something beside it.
struct Published {
    dir: tempfile::TempDir,
    manifest: Value,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn line(path: &str, contents: &str) -> Value {
    json!({"path": path, "size": contents.len(), "sha256": sha256(contents.as_bytes()), "mode": "0644"})
}

impl Published {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let output = dir.path().join("out");
        fs::create_dir_all(output.join("sub/deep")).expect("made");
        fs::create_dir(output.join("empty")).expect("made");
        for (name, contents) in [("a", "first"), ("sub/b", "second"), ("sub/deep/c", ""), ("sub/d", "fourth")] {
            fs::write(output.join(name), contents).expect("written");
        }
        fs::write(output.join(OsStr::from_bytes(b"odd\xff")), "odd").expect("written");
        symlink("sub/b", output.join("link")).expect("made");
        fs::write(dir.path().join("secret"), "secret").expect("written");
        let mut odd = line("odd\u{fffd}", "odd");
        odd["path_bytes"] = "6f6464ff".into();
        let manifest = json!({
            "format": "runseal-manifest", "version": 1, "run": "run-1", "created": "2026-12-01T00:00:00Z",
            "totals": {}, "skipped": [],
            "files": [line("a", "first"), line("sub/b", "second"), line("sub/deep/c", ""), line("sub/d", "fourth"), odd],
            "directories": [{"path": "sub", "mode": "0755"}, {"path": "sub/deep", "mode": "0755"}, {"path": "empty"}],
            "symlinks": [{"path": "link", "target": "sub/b"}],
        });
        let published = Self { dir, manifest };
        published.write();
        published
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.output().join(name)
    }

    fn write(&self) {
        fs::write(self.at(MANIFEST), serde_json::to_vec_pretty(&self.manifest).expect("JSON")).expect("written");
    }

    fn verify(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runseal"));
        command.arg("verify").args(flags).arg(self.output()).output().expect("the binary runs")
    }

    /// The exit status, and each problem with its path.
    fn found(&self, flags: &[&str]) -> (i32, Vec<(String, String)>) {
        let output = self.verify(&[flags, &["--json"]].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let differences = json["differences"].as_array().expect("a list").iter();
        let found: Vec<_> = differences.map(|found| (text(&found["problem"]), text(&found["path"]))).collect();
        assert_eq!(json["intact"], found.is_empty(), "{json}");
        (output.status.code().expect("an exit status"), found)
    }

    /// Fails unless exactly these problems are found.
    fn expect(&self, expected: &[(&str, &str)]) {
        let (status, found) = self.found(&[]);
        let found: Vec<_> = found.iter().map(|(problem, path)| (problem.as_str(), path.as_str())).collect();
        assert_eq!((status, &found[..]), (if expected.is_empty() { 0 } else { 65 }, expected));
    }
}

// promise: T-47
#[test]
fn what_was_changed_is_missing_or_was_added_is_found() {
    let published = Published::new();
    published.expect(&[]);
    let said = published.verify(&[]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.starts_with("5 of 5 files are as run run-1 published them at 2026-12-01T00:00:00Z: 20 B read\n"),
        "{said}"
    );

    // Of the same length, another length, gone, of another kind.
    fs::write(published.at("a"), "firsT").expect("written");
    fs::write(published.at("sub/b"), "second and more").expect("written");
    fs::remove_file(published.at("sub/deep/c")).expect("removed");
    fs::remove_file(published.at("sub/d")).expect("removed");
    fs::create_dir(published.at("sub/d")).expect("made");
    fs::remove_file(published.at("link")).expect("removed");
    symlink("sub/d", published.at("link")).expect("made");
    fs::remove_dir(published.at("empty")).expect("removed");
    fs::write(published.at("sub/new"), "").expect("written");
    fs::create_dir(published.at(".hidden")).expect("made");
    fs::write(published.at(".hidden/x"), "").expect("written");
    published.expect(&[
        ("changed", "a"),
        ("changed", "link"),
        ("changed", "sub/b"),
        ("changed", "sub/d"),
        ("missing", "empty"),
        ("missing", "sub/deep/c"),
        ("extra", ".hidden"),
        ("extra", "sub/new"),
    ]);
    let said = published.verify(&[]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("changed  a: its SHA-256 is "), "{said:?}");
    let (status, found) = published.found(&["--allow-extra"]);
    assert_eq!((status, found.len()), (65, 6));
}

// promise: T-47
#[test]
fn a_manifest_changed_with_the_results_shows_to_who_kept_its_hash() {
    let mut published = Published::new();
    let kept = sha256(&fs::read(published.at(MANIFEST)).expect("readable"));
    assert_eq!(published.found(&["--manifest-sha256", &kept]), (0, Vec::new()));
    let copy = published.dir.path().join("kept.json");
    fs::copy(published.at(MANIFEST), &copy).expect("copied");
    // Whoever may write to the output changes a result, and what the manifest says of it.
    fs::write(published.at("a"), "forged").expect("written");
    published.manifest["files"][0] = line("a", "forged");
    published.write();
    published.expect(&[]);
    let refused = published.verify(&["--manifest-sha256", &kept]);
    assert_eq!(refused.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another manifest"), "{refused:?}");
    let copy = copy.to_str().expect("UTF-8");
    assert_eq!(published.found(&["--manifest", copy]), (65, vec![("changed".into(), "a".into())]));

    // Hidden or renamed: there is none, and what it was called is one file too many.
    fs::rename(published.at(MANIFEST), published.at(".m")).expect("renamed");
    let refused = published.verify(&[]);
    assert_eq!(refused.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--manifest"), "{refused:?}");
    let (status, found) = published.found(&["--manifest", copy]);
    assert_eq!((status, &found[1]), (65, &("extra".into(), ".m".into())));
}

// promise: T-47
#[test]
fn a_hostile_manifest_reaches_nothing_outside() {
    let mut published = Published::new();
    let secret = published.dir.path().join("secret");
    let files = published.manifest["files"].as_array_mut().expect("a list");
    for path in ["../secret", secret.to_str().expect("UTF-8"), "sub/../../secret", "./a", "", "/", ".."] {
        files.push(line(path, "secret"));
    }
    files.push(line(MANIFEST, "x"));
    files.push(line("a", "first"));
    published.write();
    let (status, found) = published.found(&[]);
    assert_eq!(status, 65);
    let count = |problem: &str| found.iter().filter(|(is, _)| is == problem).count();
    assert_eq!((count("unsafe"), found.len()), (9, 9), "{found:?}");

    // Links on the way, to a file or to a directory, with just what the manifest wants behind them.
    let published = Published::new();
    fs::rename(published.at("sub"), published.dir.path().join("sub")).expect("moved");
    symlink(published.dir.path().join("sub"), published.at("sub")).expect("made");
    fs::remove_file(published.at("a")).expect("removed");
    fs::write(published.dir.path().join("first"), "first").expect("written");
    symlink(published.dir.path().join("first"), published.at("a")).expect("made");
    let (status, found) = published.found(&[]);
    assert_eq!(status, 65);
    assert!(found.iter().all(|(problem, _)| problem == "changed"), "{found:?}");
    assert!(["a", "sub", "sub/b", "sub/d"].iter().all(|path| found.iter().any(|(_, is)| is == path)), "{found:?}");
    // The manifest itself a link.
    fs::rename(published.at(MANIFEST), published.dir.path().join("m")).expect("moved");
    symlink(published.dir.path().join("m"), published.at(MANIFEST)).expect("made");
    assert_eq!(published.verify(&[]).status.code(), Some(66));
}

// promise: T-47
#[test]
fn odd_files_and_numbers_neither_hang_nor_crash_it() {
    let published = Published::new();
    for name in ["a", "sub/d"] {
        fs::remove_file(published.at(name)).expect("removed");
    }
    // Opening a FIFO waits for who writes; a socket cannot be opened.
    let made = Command::new("mkfifo").arg(published.at("a")).status().expect("mkfifo runs");
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(published.at("sub/d")).expect("bound");
    published.expect(&[("changed", "a"), ("changed", "sub/d")]);

    let mut published = Published::new();
    published.manifest["files"][0]["size"] = u64::MAX.into();
    published.manifest["files"][1]["sha256"] = "zz".into();
    published.manifest["files"][3].as_object_mut().expect("an object").remove("size");
    published.write();
    published.expect(&[("changed", "a"), ("changed", "sub/b"), ("changed", "sub/d")]);

    for (text, status, word) in [
        ("", 65, "not a manifest"),
        ("{}", 65, "not a manifest"),
        (r#"{"format": "runseal-manifest", "version": 2}"#, 65, "newer"),
        (r#"{"format": "other", "version": 1}"#, 65, "not a manifest"),
        (r#"{"format": "runseal-manifest", "version": 1, "withdrawn": true}"#, 65, "vouches for nothing"),
        (r#"{"format": "runseal-manifest", "version": 1, "files": [{"path": "a", "size": -1}]}"#, 65, "not a manifest"),
        (&format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000)), 65, "not a manifest"),
    ] {
        fs::write(published.at(MANIFEST), text).expect("written");
        let said = published.verify(&[]);
        assert_eq!(said.status.code(), Some(status), "{word}: {said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains(word), "{said:?}");
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_runseal")).args(["verify", "/nonexistent"]).output().expect("runs");
    assert_eq!(missing.status.code(), Some(66), "{missing:?}");
    assert_eq!(published.verify(&["--stored-checksums"]).status.code(), Some(64));
}

#[test]
fn what_cannot_be_read_is_not_called_changed() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: root is needed to be somebody else");
        return;
    }
    let published = Published::new();
    for path in [published.dir.path().to_owned(), published.output()] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    }
    fs::set_permissions(published.at("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    // By path, the binary may be where only root may look.
    let binary = Path::new(env!("CARGO_BIN_EXE_runseal"));
    let here = published.dir.path().join("runseal");
    fs::copy(binary, &here).expect("copied");
    let said = Command::new("setpriv")
        .args(["--reuid", "4001", "--regid", "4001", "--clear-groups"])
        .arg(&here)
        .args(["verify", "--json"])
        .arg(published.output())
        .output()
        .expect("setpriv runs");
    let json: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!((said.status.code(), &json["differences"][0]["problem"]), (Some(74), &"unreadable".into()), "{json}");
}

/// A whole run: what it publishes is verified, and what its report and its trail tell of it is evidence.
// promise: T-47, T-48
#[test]
fn a_run_leaves_evidence_of_who_made_what_from_what() {
    if !nix::unistd::geteuid().is_root() || fs::File::open("/dev/fuse").is_err() {
        println!("SKIP: root and /dev/fuse are needed");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).expect("made");
    // Small, larger than a part of staging, and with a hole.
    let large: Vec<u8> = (0..17_u32 << 20).map(|i| (i / 4096) as u8).collect();
    fs::write(at("in/small"), "small").expect("written");
    fs::write(at("in/large"), &large).expect("written");
    fs::File::create(at("in/hole")).and_then(|file| file.set_len(1 << 20)).expect("made");
    let script = "cd $RUNSEAL_OUTPUT; mkdir -p d/e none; cp $RUNSEAL_INPUT/in/small d/e/f; ln -s d/e/f l; : >empty; \
                  printf y >\"$(printf 'o\\377')\"";
    let run = |output: &str, report: &str, flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runseal"));
        command.args(["run", "--size", "64M", "--input"]).arg(at("in")).arg("--output").arg(at(output));
        command.arg("--report").arg(at(report)).arg("--audit").arg(at(&format!("{report}.trail"))).args(flags);
        let ran = command.args(["--", "sh", "-c", script, "sh", "private-argument"]).output().expect("the binary runs");
        assert!(ran.status.success(), "{ran:?}");
        let report: Value = serde_json::from_slice(&fs::read(at(report)).expect("written")).expect("JSON");
        report
    };
    let report = run("out", "report", &["--record-command"]);
    let verify = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runseal"));
        command.arg("verify").args(flags).arg(at("out")).output().expect("runs")
    };
    let sum = report["published"]["manifest_sha256"].as_str().expect("a hash");
    assert_eq!(sum, sha256(&fs::read(at("out").join(MANIFEST)).expect("published")));
    let said = verify(&["--manifest-sha256", sum]);
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("3 of 3 files are as run "), "{said:?}");

    let host = nix::sys::utsname::uname().expect("a name").nodename().to_string_lossy().into_owned();
    let origin = &report["origin"];
    assert_eq!((&origin["uid"], &origin["user"], &origin["host"]), (&0.into(), &"root".into(), &host.as_str().into()));
    assert_eq!(origin["command"][4], "private-argument");
    let trail = fs::read_to_string(at("report.trail")).expect("written");
    let events: Vec<Value> = trail.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let start = &events[0]["requestParameters"];
    assert_eq!((&events[0]["eventName"], &start["uid"], &start["host"]), (&"StartRun".into(), &0.into(), &host.into()));
    assert_eq!((&start["command"], &start["inputs"]), (&origin["command"], &json!([at("in")])));
    let told = |event: &str| -> Vec<(String, String)> {
        let events = events.iter().filter(|found| found["eventName"] == event);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let mut told: Vec<_> = events
            .map(|found| (text(&found["resources"][0]["path"]), text(&found["requestParameters"]["sha256"])))
            .collect();
        told.sort();
        told
    };
    let path = |name: &str| at(name).to_str().expect("UTF-8").to_owned();
    let hole = vec![0; 1 << 20];
    let inputs = [("in/hole", &hole[..]), ("in/large", &large), ("in/small", b"small")];
    assert_eq!(told("StageFile"), inputs.map(|(name, contents)| (path(name), sha256(contents))));
    let results = [("out/d/e/f", &b"small"[..]), ("out/empty", b""), ("out/o\u{fffd}", b"y")];
    assert_eq!(told("PublishFile"), results.map(|(name, contents)| (path(name), sha256(contents))));

    // Arguments may be secrets: nobody tells them unasked.
    let report = run("out2", "report2", &[]);
    assert!(!report.to_string().contains("private-argument"), "{report}");
    assert!(!fs::read_to_string(at("report2.trail")).expect("written").contains("private-argument"));

    fs::write(at("out/d/e/f"), "smalL").expect("written");
    assert_eq!(verify(&[]).status.code(), Some(65));
}
