//! Wrong command lines: the exit status, and a message that names the thing and the remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::program::{fresh_id, require_host, run, say, text};

#[test]
fn wrong_flags_are_usage_errors() {
    say(&["run", "--size", "0", "--", "true"]).expect(64, &["--size", "leave --size out"]);
    say(&["run", "--size", "many", "--", "true"]).expect(64, &["many", "10G"]);
    say(&["run", "--run-id", "a/b", "--", "true"]).expect(64, &["a/b", "A-Z a-z 0-9"]);
    say(&["run", "--run-id", &"x".repeat(65), "--", "true"]).expect(64, &["64"]);
    say(&["run"]).expect(64, &["COMMAND"]);
    say(&["run", "--overwrite", "--", "true"]).expect(64, &["--output"]);
    say(&["run", "--input", "/etc/hostname=/abs", "--", "true"]).expect(64, &["/abs", "RUNSEAL_INPUT"]);
    say(&["run", "--input", "/etc/hostname=../up", "--", "true"]).expect(64, &["../up"]);
    say(&["run", "--input", "/", "--", "true"]).expect(64, &["--input /=NAME"]);
    say(&["run", "--input", "s3://Bucket/key", "--", "true"]).expect(64, &["Bucket", "lower-case"]);
    say(&["run", "--input", "https://host/key", "--", "true"]).expect(64, &["https://", "s3://BUCKET/KEY"]);
    say(&["run", "--output", "out", "--sse", "AES256", "--", "true"]).expect(64, &["--sse", "s3://BUCKET/PREFIX/"]);
    say(&["run", "--role-arn", "me", "--", "true"]).expect(64, &["arn:aws:iam::"]);
    say(&["run", "--concurrency", "0", "--", "true"]).expect(64, &["--concurrency"]);
    say(&["run", "--cipher-engine", "rot13", "--", "true"]).expect(64, &["rot13", "portable"]);
    say(&["mount"]).expect(64, &["MOUNTPOINT"]);
    say(&["no-such-thing"]).expect(64, &["no-such-thing"]);
}

#[cfg(not(feature = "aws"))]
#[test]
fn a_build_without_aws_says_so() {
    require_host!();
    say(&["run", "--input", "s3://bucket/key", "--", "true"]).expect(69, &["feature `aws`"]);
    say(&["run", "--output", "s3://bucket/out/", "--", "true"]).expect(69, &["feature `aws`"]);
}

#[test]
fn commands_that_cannot_start_are_refused_before_any_work() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("data");
    fs::write(&file, "data").expect("written");
    // The report is what would be written first.
    let report = dir.path().join("report.json");
    let flags = ["run", "--report", text(&report), "--"];
    let with = |command: &str| say(&[&flags[..], &[command]].concat());
    with("no-such-command-anywhere").expect(127, &["no-such-command-anywhere", "PATH"]);
    with("/no/such/command").expect(127, &["/no/such/command", "not found"]);
    with(text(&file)).expect(126, &[text(&file), "chmod +x"]);
    with(text(dir.path())).expect(126, &[text(dir.path())]);
    assert!(!report.exists());
}

#[test]
fn commands_in_the_scratch_are_looked_for_when_they_start() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let tool = dir.path().join("tool");
    fs::write(&tool, "#!/bin/sh\nexit 7\n").expect("written");
    let input = text(&tool);
    say(&["run", "--input", input, "--", "../input/tool"]).expect(126, &["../input/tool", "chmod +x"]);
    say(&["run", "--input", input, "--", "../input/other"]).expect(127, &["../input/other"]);
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("chmod");
    say(&["run", "--input", input, "--", "../input/tool"]).expect(7, &[]);
}

#[test]
fn a_report_that_cannot_be_written_is_found_first() {
    let dir = tempfile::tempdir().expect("tempdir");
    let missing = dir.path().join("missing/report.json");
    say(&["run", "--report", text(&missing), "--", "true"]).expect(73, &["missing/report.json", "--report"]);
    say(&["run", "--report", text(dir.path()), "--", "true"]).expect(73, &["--report"]);
}

#[test]
fn inputs_and_outputs_in_the_way_are_named() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    run(&["--input", text(&input)], "true").expect(66, &[text(&input)]);
    fs::write(&input, "x").expect("written");
    let twice = format!("{}=same", input.display());
    run(&["--input", &twice, "--input", &twice], "true").expect(64, &["same"]);
    fs::create_dir(&output).expect("created");
    fs::write(output.join("old"), "old").expect("written");
    run(&["--output", text(&output)], "echo new >\"$RUNSEAL_OUTPUT/new\"").expect(73, &[text(&output), "--overwrite"]);
    assert!(!output.join("new").exists());
    run(&["--output", text(&output), "--overwrite"], "echo new >\"$RUNSEAL_OUTPUT/old\"").expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("old")).expect("published"), "new\n");
}

#[test]
fn a_backing_that_will_not_do_is_named() {
    require_host!();
    run(&["--backing", "/no/such/dir"], "true").expect(73, &["/no/such/dir", "--backing"]);
    run(&["--backing", "/etc/hostname"], "true").expect(73, &["/etc/hostname"]);
    let said = run(&["--size", "100000T"], "true").expect(0, &["--size", "more than the backing has free"]);
    assert!(said.out.is_empty());
}

#[test]
fn runs_that_are_not_there() {
    let id = fresh_id();
    say(&["status", &id]).expect(69, &[&id, "runseal status"]);
    say(&["resume", &id]).expect(69, &[&id]);
    say(&["end", &id]).expect(69, &[&id]);
    say(&["end", "--discard", &id]).expect(69, &[&id]);
}

#[test]
fn help_version_completions_and_manual_go_to_stdout() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"], &["completions", "bash"], &["man"]] {
        let said = say(arguments).expect(0, &[]);
        assert!(said.out.contains("runseal"), "{arguments:?}");
        assert!(said.err.is_empty(), "{arguments:?}");
    }
    let dir = tempfile::tempdir().expect("tempdir");
    say(&["man", text(dir.path())]).expect(0, &[]);
    assert!(dir.path().join("runseal-run.1").exists());
}
