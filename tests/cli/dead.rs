//! Mounts whose processes die, stop or hang: nothing is written below them, and `end` ends them.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::mounts::Mounted;
use crate::program::{
    Live, lives, mounted, phase, processes_with, require_host, say, send, state_dir, status, text, wait_until,
};

/// Requests that were under way get another error than those that come later.
#[track_caller]
fn assert_cut_off(errors: &[i32]) {
    let (last, earlier) = errors.split_last().expect("errors were seen");
    assert!(*last == libc::ENOTCONN && earlier.iter().all(|error| *error == libc::ECONNABORTED), "{errors:?}");
}

/// A program that goes on by absolute path, whatever happens to its directory.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<i32>>,
}

impl Writer {
    fn start(dir: &Path) -> Self {
        let (dir, stop) = (dir.to_owned(), Arc::<AtomicBool>::default());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut errors = Vec::new();
            for count in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if let Err(error) = fs::write(dir.join(format!("f{count}")), "patient") {
                    errors.extend(error.raw_os_error());
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            errors.dedup();
            errors
        });
        Self { stop, thread }
    }

    /// The errors it saw, each once in a row.
    fn end(self) -> Vec<i32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

fn kill(mount: &Mounted, victims: &[&str]) {
    let family = [mount.process("sealed"), mount.process("supervisor")];
    let victims: Vec<i32> = victims.iter().map(|who| mount.process(who)).collect();
    victims.iter().for_each(|&process| send(process, Signal::SIGKILL));
    wait_until("both processes end", || !family.iter().any(|&process| lives(process)));
}

fn is_dead(path: &Path) -> bool {
    use nix::errno::Errno;
    matches!(nix::sys::statvfs::statvfs(path), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

const DEATHS: [&[&str]; 3] = [&["sealed"], &["supervisor"], &["supervisor", "sealed"]];

// promise: S-130
#[test]
fn who_goes_on_after_a_death_never_reaches_the_directory_below() {
    require_host!();
    for victims in DEATHS {
        let mount = Mounted::new(&[]);
        let writer = Writer::start(mount.path());
        wait_until("it writes", || mount.path().join("f3").exists());
        kill(&mount, victims);
        // Whoever looks, or does something else, does not take the dead mount away. The last threads of the dead may hold
        // its name for a moment.
        let problem = || status(&mount.id).and_then(|shown| Some(shown["problem"].as_str()?.to_owned()));
        wait_until("it is shown as dead", || problem().is_some_and(|problem| problem.starts_with("dead")));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(is_dead(mount.path()), "{victims:?}");
        assert_cut_off(&writer.end());
        say(&["end", &mount.id]).expect(0, &[]);
        mount.wait_gone();
        assert_eq!(fs::read_dir(mount.path()).expect("readable").count(), 0, "{victims:?}");
    }
}

// promise: S-130
#[test]
fn a_connection_that_is_aborted_leaves_the_mount_dead() {
    require_host!();
    let mount = Mounted::new(&[]);
    let device = nix::sys::stat::stat(mount.path()).expect("served").st_dev;
    let (sealed, writer) = (mount.process("sealed"), Writer::start(mount.path()));
    wait_until("it writes", || mount.path().join("f3").exists());
    runseal::sys::mount::abort_fuse_connection(libc::minor(device)).expect("aborted");
    wait_until("the family ends", || !lives(sealed));
    assert!(is_dead(mount.path()));
    assert_cut_off(&writer.end());
    say(&["end", text(mount.path())]).expect(0, &[]);
    mount.wait_gone();
    assert_eq!(fs::read_dir(mount.path()).expect("readable").count(), 0);
}

// promise: S-130
#[test]
fn the_next_mount_covers_a_dead_one_without_a_gap() {
    require_host!();
    let mount = Mounted::new(&[]);
    let writer = Writer::start(mount.path());
    kill(&mount, &["sealed"]);
    // As after a crash of the machine's /run.
    fs::remove_dir_all(state_dir(&mount.id)).expect("removed");
    let id = crate::program::fresh_id();
    say(&["mount", "--run-id", &id, text(mount.path())]).expect(0, &["dead", text(mount.path())]);
    assert_cut_off(&writer.end());
    fs::write(mount.path().join("file"), "data").expect("the new mount works");
    say(&["end", &id]).expect(0, &[]);
    wait_until("both mounts are gone", || !mounted(mount.path()));
    assert_eq!(fs::read_dir(mount.path()).expect("readable").count(), 0);
}

#[test]
fn the_name_of_a_dead_mount_can_be_used_again_and_its_mount_be_ended_by_path() {
    require_host!();
    let mount = Mounted::new(&[]);
    kill(&mount, &["sealed", "supervisor"]);
    let other = tempfile::tempdir().expect("tempdir");
    say(&["mount", "--run-id", &mount.id, text(other.path())]).expect(0, &[]);
    assert!(is_dead(mount.path()), "it stays until somebody asks");
    say(&["end", text(mount.path())]).expect(0, &[]);
    assert!(!mounted(mount.path()));
    say(&["end", text(mount.path())]).expect(69, &[]);
    say(&["end", &mount.id]).expect(0, &[]);
    mount.wait_gone();
}

// promise: S-131
#[test]
fn a_mount_whose_processes_are_stopped_is_ended_by_force() {
    require_host!();
    for victims in DEATHS {
        let mount = Mounted::new(&[]);
        let family = [mount.process("sealed"), mount.process("supervisor")];
        fs::write(mount.path().join("file"), "data").expect("written");
        let numbers: Vec<i32> = victims.iter().map(|who| mount.process(who)).collect();
        numbers.iter().for_each(|&process| send(process, Signal::SIGSTOP));
        if victims.contains(&"sealed") {
            let shown = status(&mount.id).expect("shown");
            assert!(shown["problem"].as_str().is_some_and(|problem| problem.contains("kill -CONT")), "{shown}");
        }
        say(&["end", &mount.id]).expect(0, &["killing processes of run"]);
        assert!(!family.iter().any(|&process| lives(process)), "{victims:?}");
        assert!(!mounted(mount.path()) && !state_dir(&mount.id).exists(), "{victims:?}");
    }
}

// promise: S-56
#[test]
fn a_stopped_sealed_process_of_a_mount_dies_with_its_supervisor() {
    require_host!();
    let mount = Mounted::new(&[]);
    let (sealed, supervisor) = (mount.process("sealed"), mount.process("supervisor"));
    send(sealed, Signal::SIGSTOP);
    send(supervisor, Signal::SIGKILL);
    wait_until("it dies, too", || !lives(sealed));
    assert!(is_dead(mount.path()));
}

// promise: S-131
#[test]
fn a_run_that_is_stopped_is_killed_only_if_its_results_may_be_lost() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let word = format!("4400.{}", std::process::id());
    let live = Live::start(dir.path(), &[], &format!("ready; sleep {word}"));
    let (id, sealed) = (live.id.clone(), live.sealed());
    send(sealed, Signal::SIGSTOP);
    say(&["end", &id]).expect(69, &["end --discard", &format!("kill -CONT {sealed}")]);
    assert!(lives(sealed));
    say(&["end", "--discard", &id]).expect(0, &["does not answer", &sealed.to_string()]);
    assert_eq!(processes_with(&word), [0; 0]);
    live.end().expect(71, &["sealed process died"]);
    assert!(!state_dir(&id).exists());
}

/// A process in a mount namespace of its own, with copies of all mounts.
struct Elsewhere(Child);

impl Elsewhere {
    fn start(word: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sleep", word]).stdin(Stdio::null()).process_group(0);
        let child = command.spawn().expect("unshare starts");
        wait_until("it has its own namespace", || processes_with(word).iter().any(|&process| is_sleep(process)));
        Self(child)
    }
}

fn is_sleep(process: i32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// promise: S-132
#[test]
fn a_mount_that_lives_on_in_another_namespace_says_so_and_can_be_ended() {
    require_host!();
    let mount = Mounted::new(&[]);
    let sealed = mount.process("sealed");
    let _elsewhere = Elsewhere::start(&format!("4500.{}", std::process::id()));
    assert!(Command::new("umount").arg(mount.path()).status().expect("umount runs").success());
    wait_until("it says so", || phase(&mount.id).as_deref() == Some("unmounted"));
    let said = say(&["status", &mount.id]).expect(0, &[]);
    assert!(said.out.contains("another mount namespace") && said.out.contains("runseal end"), "{said:?}");
    assert!(lives(sealed));
    say(&["end", &mount.id]).expect(0, &[]);
    wait_until("it ends", || !lives(sealed) && !state_dir(&mount.id).exists());
}

#[test]
fn a_plain_umount_is_no_death() {
    require_host!();
    let mount = Mounted::new(&[]);
    let file = fs::File::create(mount.path().join("open")).expect("created");
    let umount = |flags: &[&str]| Command::new("umount").args(flags).arg(mount.path()).status().expect("umount runs");
    assert!(!umount(&["-q"]).success(), "it is in use");
    assert!(umount(&["-l"]).success());
    wait_until("it says so", || phase(&mount.id).as_deref() == Some("unmounted"));
    io::Write::write_all(&mut &file, b"still served").and_then(|()| file.sync_all()).expect("served");
    drop(file);
    mount.wait_gone();
}
