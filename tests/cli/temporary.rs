//! What programs write to `/tmp` and `/var/tmp` is in the scratch, whatever they think of `TMPDIR`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::program::{Live, Said, finish, fresh_id, require_host, run, runseal, say, text};

/// Whether a name is in the directories of this machine.
fn leaked(name: &str) -> bool {
    ["/tmp", "/var/tmp"].iter().any(|tmp| Path::new(tmp).join(name).exists())
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output();
    found.is_ok_and(|output| output.status.success())
}

macro_rules! require_program {
    ($program:expr) => {
        if !has($program) {
            println!("SKIP: {}: needs {}", module_path!(), $program);
            return;
        }
    };
}

// promise: S-133
#[test]
fn the_scratch_covers_both_directories() {
    require_host!();
    let name = fresh_id();
    let script = format!(
        "for dir in /tmp /var/tmp; do df $dir | grep -q ^runseal; echo patient >$dir/{name}; cat \"$TMPDIR/{name}\"; done"
    );
    let said = run(&[], &script).expect(0, &[]);
    assert_eq!(said.out, "patient\npatient\n");
    assert!(!leaked(&name));
    let said = run(&["--tmp=host"], &format!("df /tmp | grep -q ^runseal || echo patient >/tmp/{name}")).expect(0, &[]);
    assert!(leaked(&name), "{said:?}");
    fs::remove_file(format!("/tmp/{name}")).expect("removed");
}

// promise: S-133
#[test]
fn a_visitor_has_the_same_view() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let name = fresh_id();
    let live = Live::start(dir.path(), &[], &format!("echo patient >/tmp/{name}; ready; sleep 3600"));
    let said = say(&["exec", &live.id, "--", "cat", &format!("/var/tmp/{name}")]).expect(0, &[]);
    assert_eq!(said.out, "patient\n");
    assert!(!leaked(&name));
}

/// Opens `tmpfile(3)`, which knows no `TMPDIR`, and shows on which file system it is.
const TMPFILE: &str = "
import ctypes, os
libc = ctypes.CDLL(None)
libc.tmpfile.restype = ctypes.c_void_p
libc.fileno.argtypes = [ctypes.c_void_p]
fd = libc.fileno(libc.tmpfile())
print(os.fstat(fd).st_dev == os.stat(os.environ['RUNSEAL_SCRATCH']).st_dev)
";

// promise: S-133
#[test]
fn tmpfile_is_in_the_scratch() {
    require_host!();
    require_program!("python3");
    let said = say(&["run", "--", "python3", "-c", TMPFILE]).expect(0, &[]);
    assert_eq!(said.out, "True\n");
}

const JAVA: &str = "
import java.nio.file.*;
public class Temporary {
    public static void main(String[] arguments) throws Exception {
        Path file = Files.createTempFile(arguments[0], \".txt\");
        Files.writeString(file, \"patient\");
        System.out.println(file.getParent() + \" \" + Files.getFileStore(file).type());
    }
}
";

// promise: S-133
#[test]
fn files_of_java_are_in_the_scratch() {
    require_host!();
    require_program!("javac");
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("Temporary.java"), JAVA).expect("written");
    let mut compile = Command::new("javac");
    compile.args(["-d", text(dir.path())]).arg(dir.path().join("Temporary.java"));
    finish(compile).expect(0, &[]);
    let name = fresh_id();
    let said = say(&["run", "--", "java", "-cp", text(dir.path()), "Temporary", &name]).expect(0, &[]);
    assert_eq!(said.out, "/tmp fuse.runseal\n");
    let listed = fs::read_dir("/tmp").expect("readable").flatten();
    assert_eq!(listed.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)).count(), 0);
}

// promise: S-133
#[test]
fn what_the_command_line_names_below_tmp_is_there_and_read_only() {
    require_host!();
    for tmp in ["/tmp", "/var/tmp"] {
        let dir = tempfile::tempdir_in(tmp).expect("tempdir");
        let (script, library) = (dir.path().join("bin/job"), dir.path().join("lib"));
        fs::create_dir(dir.path().join("bin")).expect("made");
        fs::write(&library, "word=found\n").expect("written");
        let body = "#!/bin/sh\n. \"${0%/*}/../lib\"; echo $word; echo x >\"${0%/*}/new\" || echo kept\n";
        fs::write(&script, body).expect("written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        for command in [&[text(&script)][..], &["sh", text(&script)]] {
            let said = say(&[&["run", "--"], command].concat()).expect(0, &["Read-only file system"]);
            assert_eq!(said.out, "found\nkept\n", "{command:?}");
        }
        let mut by_name = runseal();
        by_name.args(["run", "--", "job"]);
        let path = std::env::var("PATH").expect("a PATH");
        by_name.env("PATH", format!("{}:{path}", text(&dir.path().join("bin"))));
        assert_eq!(finish(by_name).expect(0, &[]).out, "found\nkept\n");
        assert!(!dir.path().join("bin/new").exists());
    }
}

/// What shows through is not in the scratch: in its place there is nothing that could be published.
// promise: S-112
#[test]
fn a_link_to_what_shows_through_is_never_published_as_an_empty_file() {
    require_host!();
    let dir = tempfile::tempdir_in("/tmp").expect("tempdir");
    let (file, output) = (dir.path().join("reference"), dir.path().join("out"));
    fs::write(&file, "genome\n").expect("written");
    let script = "cat \"$0\" >seen; mkdir work; echo own >work/own
        ln -s \"$0\" \"$RUNSEAL_OUTPUT/direct\"; ln -s \"$TMPDIR/$1/reference\" \"$RUNSEAL_OUTPUT/by-scratch\"
        ln -s \"${0%/*}\" \"$RUNSEAL_OUTPUT/folder\"; ln -s \"$TMPDIR\" \"$RUNSEAL_OUTPUT/tmp\"; cp seen \"$RUNSEAL_OUTPUT\"";
    let name = dir.path().file_name().and_then(|name| name.to_str()).expect("text");
    let said = say(&["run", "--dereference", "--output", text(&output), "--", "sh", "-euc", script, text(&file), name]);
    said.expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("seen")).expect("published"), "genome\n");
    for (link, target) in [("direct", &*file), ("by-scratch", &*file), ("folder", dir.path())] {
        assert_eq!(fs::read_link(output.join(link)).expect(link), target, "{link}");
    }
    assert_eq!(fs::read_link(output.join("tmp").join(name)).expect("a link"), dir.path(), "inside of a directory, too");
}

// promise: S-133
#[test]
fn inputs_outputs_reports_and_trails_may_be_below_tmp() {
    require_host!();
    let dir = tempfile::tempdir_in("/tmp").expect("tempdir");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("in"), "data").expect("written");
    let (input, output, report) = (path("in"), path("out"), path("report"));
    let trail = path("trail");
    let flags =
        ["--input", text(&input), "--output", text(&output), "--report", text(&report), "--audit", text(&trail)];
    let flags = [&flags[..], &["--backing", text(dir.path())]].concat();
    let mut command = runseal();
    command.arg("run").args(flags).args(["--", "sh", "-euc", "cp \"$RUNSEAL_INPUT/in\" \"$RUNSEAL_OUTPUT\"; ls /tmp"]);
    command.current_dir(dir.path());
    assert_eq!(finish(command).expect(0, &[]).out, "", "nothing of it is in the command's own");
    assert_eq!(fs::read_to_string(output.join("in")).expect("published"), "data");
    assert!(report.exists() && trail.exists());
}

// promise: S-133
#[test]
fn sockets_that_the_environment_names_still_answer() {
    require_host!();
    require_program!("python3");
    let dir = tempfile::tempdir_in("/tmp").expect("tempdir");
    let socket = dir.path().join("agent.1");
    let listener = UnixListener::bind(&socket).expect("bound");
    let server = std::thread::spawn(move || listener.accept().map(drop));
    let connect = "import os, socket; socket.socket(socket.AF_UNIX).connect(os.environ['SSH_AUTH_SOCK'])";
    let mut command = runseal();
    command.args(["run", "--", "python3", "-c", connect]).env("SSH_AUTH_SOCK", &socket);
    finish(command).expect(0, &[]);
    server.join().expect("no panic").expect("accepted");
}

// promise: S-133
#[test]
fn other_variables_for_temporary_files_lead_into_the_scratch() {
    require_host!();
    let mut command = runseal();
    command.args(["run", "--", "sh", "-c", "echo $TMP $TEMP ${TEMPDIR-unset}"]);
    command.env("TMP", "/tmp").env("TEMP", "/var/tmp/x").env_remove("TEMPDIR");
    let said: Said = finish(command).expect(0, &[]);
    let tmp = "/run/runseal/mnt/tmp";
    assert_eq!(said.out, format!("{tmp} {tmp} unset\n"));
}
