//! Runs inside of runs, and paths that are short whatever a run is called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Live, Said, finish, fresh_id, phase, require_host, run, runseal, say, text};

const BINARY: &str = env!("CARGO_BIN_EXE_runseal");

// promise: S-134
#[test]
fn a_run_inside_a_run_stages_from_it_publishes_to_it_and_may_lie_in_it() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (output, inner) = (dir.path().join("out"), dir.path().join("inner.sh"));
    // The scratch of the outer run is still there, and a third one fits in.
    let script = format!(
        "cat \"$RUNSEAL_INPUT/in/file\" >\"$RUNSEAL_OUTPUT/x\"; cat \"$1/file\"; {BINARY} run -- sh -c 'df . | grep -c ^runseal'"
    );
    fs::write(&inner, script).expect("written");
    let script = format!(
        "mkdir in backing; echo data >in/file
         {BINARY} run --backing \"$PWD/backing\" --input \"$PWD/in\" --output \"$RUNSEAL_OUTPUT/inner\" -- \
            sh -eu {} \"$PWD/in\"
         ls -A backing \"$RUNSEAL_SCRATCH\"",
        inner.display()
    );
    let said = run(&["--output", text(&output)], &script).expect(0, &[]);
    assert_eq!(said.out, "data\n1\n/run/runseal/mnt:\ninput\noutput\ntmp\nwork\n\nbacking:\n");
    assert_eq!(fs::read_to_string(output.join("inner/x")).expect("published"), "data\n");
    assert!(output.join("inner/runseal-manifest.json").exists());
}

// promise: S-134
#[test]
fn a_run_inside_a_run_may_have_its_name_and_sees_no_other() {
    require_host!();
    let id = fresh_id();
    let script = format!(
        "{BINARY} run --run-id {id} -- sh -euc 'ls -d \"$RUNSEAL_SCRATCH/output\"; {BINARY} status'; {BINARY} status; echo outer"
    );
    let said = run(&["--run-id", &id], &script).expect(0, &[]);
    assert_eq!(said.out, "/run/runseal/within/mnt/output\nouter\n");
}

// promise: S-135
#[test]
fn sockets_have_room_below_tmpdir_whatever_the_run_is_called() {
    require_host!();
    let id = format!("{}-{}", fresh_id(), "x".repeat(64));
    let script = "python3 -c 'import os, socket
path = os.environ[\"TMPDIR\"] + \"/\" + \"s\" * 40
socket.socket(socket.AF_UNIX).bind(path)'; echo ${#TMPDIR}";
    let said = run(&["--run-id", &id[..64]], script).expect(0, &[]);
    assert_eq!(said.out.trim().parse::<usize>().expect("a number"), "/run/runseal/mnt/tmp".len());
}

/// A user without rights: a device node that it may open, and a runtime directory.
struct Nobody {
    dir: tempfile::TempDir,
    runtime: PathBuf,
}

impl Nobody {
    /// `None`, with a reason, where such a user cannot run.
    fn with(runtime: PathBuf) -> Option<Self> {
        let nobody = Self { dir: tempfile::tempdir().expect("tempdir"), runtime };
        for path in [nobody.dir.path(), &nobody.runtime] {
            nix::unistd::chown(path, Some(65534.into()), Some(65534.into())).expect("chown");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let node = Command::new("mknod").args(["-m", "666", text(&nobody.device()), "c", "10", "229"]).status();
        assert!(node.is_ok_and(|status| status.success()));
        let mut probe = nobody.launcher();
        probe.arg("doctor");
        let said = finish(probe);
        if said.code != 0 {
            println!("SKIP: {}: nobody cannot run here: {}", module_path!(), said.out);
        }
        (said.code == 0).then_some(nobody)
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("fuse")
    }

    /// A way to call the binary as this user.
    fn launcher(&self) -> Command {
        let script = format!(
            "mount --bind {} /dev/fuse; exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all \
             env XDG_RUNTIME_DIR={} {BINARY} \"$@\"",
            text(&self.device()),
            text(&self.runtime)
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-euc", &script, "sh"]);
        command
    }

    fn runs(&self, arguments: &[&str]) -> Said {
        let mut command = self.launcher();
        command.args(arguments);
        finish(command)
    }
}

/// A user whose XDG_RUNTIME_DIR is longer than the address of a socket.
// promise: S-135
#[test]
fn a_long_runtime_directory_is_no_obstacle() {
    require_host!();
    let home = tempfile::tempdir().expect("tempdir");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let runtime = home.path().join("r".repeat(120));
    fs::create_dir(&runtime).expect("made");
    let Some(nobody) = Nobody::with(runtime) else { return };
    let script = "echo ${#TMPDIR}; [ ${#TMPDIR} -le 64 ]; ready; while [ ! -e done ]; do sleep 0.05; done";
    let live = Live::start_with(nobody.launcher(), nobody.dir.path(), &[], script);
    let said = nobody.runs(&["status", &live.id]).expect(0, &[]);
    assert!(said.out.contains("command"), "the socket is found: {said:?}");
    nobody.runs(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &[]);
}

// promise: S-136
#[test]
fn a_run_beside_whose_scratch_something_was_made_has_not_succeeded() {
    require_host!();
    let runtime = tempfile::tempdir_in("/run").expect("tempdir");
    let Some(nobody) = Nobody::with(runtime.path().to_owned()) else { return };
    let go = nobody.dir.path().join("go");
    let script = format!("ready; while [ ! -e '{}' ]; do sleep 0.05; done", go.display());
    let live = Live::start_with(nobody.launcher(), nobody.dir.path(), &[], &script);
    let place = runtime.path().join("runseal/mnt");
    fs::remove_file(&place).expect("removed");
    fs::create_dir_all(place.join("work")).expect("as a container engine would");
    fs::write(go, "").expect("written");
    live.end().expect(74, &[text(&place), "not sealed"]);
    nobody.runs(&["run", "--", "true"]).expect(73, &[text(&place), "in the way"]);
}

// promise: S-136
#[test]
fn outside_of_a_run_nothing_can_be_made_where_its_scratch_is() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; while [ ! -e done ]; do sleep 0.05; done");
    let place = Path::new("/run/runseal/mnt");
    let error = fs::create_dir_all(place.join("work")).expect_err("a file is in the way");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    assert_eq!(phase(&live.id).as_deref(), Some("command"));
    let shown = say(&["status", &live.id]).expect(0, &[]);
    assert!(shown.out.contains(text(place)), "{shown:?}");
    let mut own = runseal();
    own.args(["run", "--run-id", "mnt", "--", "true"]);
    finish(own).expect(64, &["mnt"]);
}
