//! Who else can get at the processes of a run: an attacker tries every way the kernel knows.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::disk::Disk;
use crate::family::{Family, children, code};
use crate::require_host;

/// A user who has no name on any machine, and ids that nobody has.
const CALLER: u32 = 1_879_044_001;
const OTHERS: std::ops::RangeInclusive<u32> = 1_879_048_192..=1_879_048_292;

/// The attacker, compiled into `folder`; `None` without a C compiler.
fn attacker(folder: &Path) -> Option<PathBuf> {
    use std::io::Write;
    let program = folder.join("attack");
    let mut compiler =
        Command::new("cc").args(["-O1", "-x", "c", "-o"]).arg(&program).arg("-").stdin(Stdio::piped()).spawn().ok()?;
    let source = include_bytes!("attack.c");
    compiler.stdin.take().expect("piped").write_all(source).expect("the compiler reads");
    assert!(compiler.wait().expect("wait").success(), "attack.c compiles");
    Some(program)
}

/// What has worked.
fn won(said: &str) -> Vec<&str> {
    assert!(said.contains("done"), "the attacker got through its list: {said}");
    said.lines().filter_map(|line| line.strip_prefix("WON ")).collect()
}

/// The attacker outside of the run, as an ordinary user.
fn attack_as(user: u32, program: &Path, process: i32) -> String {
    let user = user.to_string();
    let attack = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(program)
        .args([&process.to_string(), "signal"])
        .output()
        .expect("setpriv runs");
    String::from_utf8_lossy(&attack.stdout).into_owned()
}

// promise: T-14, T-15
#[test]
fn a_command_of_root_does_not_reach_the_key() {
    require_host!();
    let disk = Disk::new();
    let Some(attacker) = attacker(disk.outside()) else { return crate::skip("no C compiler") };
    let said = disk.outside().join("said");
    let script =
        format!("'{}' 1 >'{}'; grep Cap /proc/self/status >>'{1}'; wait_at_gate", attacker.display(), said.display());
    let unmounting = format!("{script}; umount \"$RUNSEAL_SCRATCH\" 2>/dev/null && exit 9 || exit 0");
    let backing = disk.mount.to_str().expect("UTF-8");
    let family = Family::start(disk.outside(), &["--backing", backing], &unmounting);
    let outcome = family.finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    let text = fs::read_to_string(&said).expect("written");
    assert_eq!(won(&text), [""; 0]);
    // 16 SYS_MODULE, 17 SYS_RAWIO, 19 SYS_PTRACE, 21 SYS_ADMIN, 22 SYS_BOOT, 38 PERFMON, 39 BPF, 40 CHECKPOINT_RESTORE
    let reaching: u64 = [16, 17, 19, 21, 22, 38, 39, 40].iter().map(|number| 1 << number).sum();
    for line in text.lines().filter(|line| line.starts_with("Cap")) {
        let set = u64::from_str_radix(line.split_whitespace().last().expect("a set"), 16).expect("hexadecimal");
        assert_eq!(set & reaching, 0, "{line}");
    }
    assert!(text.contains("CapBnd:"), "{text}");

    // Control: with all capabilities the attacker gets through.
    let flags = ["--backing", backing, "--keep-capabilities"];
    let outcome = Family::start(disk.outside(), &flags, &script).finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    let text = fs::read_to_string(&said).expect("written");
    for way in ["environ", "mem", "root", "ptrace", "process_vm_readv", "pidfd_getfd", "setns mnt"] {
        assert!(won(&text).contains(&way), "{way} is no control: {text}");
    }
}

/// A probe of tracefs reads the registers and the memory of any process, and a second procfs has the knobs of the first.
// promise: T-14, T-15
#[test]
fn a_command_of_root_finds_no_way_into_the_kernel() {
    require_host!();
    let disk = Disk::new();
    let backing = disk.mount.to_str().expect("UTF-8");
    let (second, said) = (disk.outside().join("proc"), disk.outside().join("said"));
    fs::create_dir(&second).expect("made");
    let look = format!(
        "{{ ls /sys/kernel/tracing | wc -l; [ -w '{0}/sys/kernel/core_pattern' ] && : 3>>'{0}/sys/kernel/core_pattern' && echo open
         for group in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - cgroup2* .*/\\1/p' /proc/self/mountinfo); do
             mkdir \"$group/runseal-attack\" && rmdir \"$group/runseal-attack\" && echo group; done; }} >'{1}' 2>/dev/null; wait_at_gate",
        second.display(),
        said.display()
    );
    let host =
        format!("mount -t tracefs none /sys/kernel/tracing; mount -t proc proc '{}' && exec \"$@\"", second.display());
    let attack = |flags: &[&str]| {
        let mut launcher = Command::new("unshare");
        launcher.args(["-m", "sh", "-c", &host, "sh", env!("CARGO_BIN_EXE_runseal")]);
        let outcome =
            Family::start_as(launcher, disk.outside(), &[&["--backing", backing], flags].concat(), &look).finish();
        assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
        fs::read_to_string(&said).expect("written")
    };
    assert_eq!(attack(&[]).trim(), "0");
    // Control: with all capabilities they are there.
    let open = attack(&["--keep-capabilities"]);
    assert!(open.contains("open") && !open.starts_with("0\n"), "{open}");
}

// promise: T-16
#[test]
fn a_command_with_a_user_of_its_own_is_out_of_reach_of_the_user_who_started_it() {
    require_host!();
    let disk = Disk::new();
    let outside = disk.outside();
    let Some(attacker) = attacker(outside) else { return crate::skip("no C compiler") };
    let mode = fs::Permissions::from_mode(0o777);
    [outside, &disk.mount].iter().for_each(|path| fs::set_permissions(path, mode.clone()).expect("chmod"));
    let (input, output) = (outside.join("input"), outside.join("results"));
    fs::write(&input, "secret\n").expect("written");
    fs::set_permissions(&input, fs::Permissions::from_mode(0o600)).expect("chmod");
    std::os::unix::fs::chown(&input, Some(CALLER), Some(CALLER)).expect("chown");
    let (launcher, node) = as_caller(outside);
    let Some(launcher) = launcher else { return crate::skip(node) };
    let isolate = format!("--isolate=uid:{}-{}", OTHERS.start(), OTHERS.end());
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let flags = ["--backing", &text(&disk.mount), "--input", &text(&input), "--output", &text(&output), &isolate];
    let script = "umask 077; cat \"$RUNSEAL_INPUT/input\" >\"$RUNSEAL_OUTPUT/copy\"; echo x >\"$TMPDIR/x\"
        mkdir \"$RUNSEAL_OUTPUT/sub\"; echo z >\"$RUNSEAL_OUTPUT/sub/z\"; cd; : >.cache; cp \"$TMPDIR/x\" \"$RUNSEAL_OUTPUT/who\"; chmod 7777 \"$RUNSEAL_OUTPUT/who\" \"$RUNSEAL_OUTPUT\" \"$RUNSEAL_OUTPUT/sub\"
        id -u >\"$RUNSEAL_OUTPUT/who\"; id -G >>\"$RUNSEAL_OUTPUT/who\"; wait_at_gate";
    let family = Family::start_as(launcher, outside, &flags, script);

    let command = *children(family.sealed).first().expect("the command lives");
    let status = fs::read_to_string(format!("/proc/{command}/status")).expect("it lives");
    let field =
        |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).expect("a field").trim().to_owned();
    let user: u32 = field("Uid:").split_whitespace().next().expect("a number").parse().expect("a number");
    assert!(OTHERS.contains(&user), "{status}");
    assert_eq!((field("CapPrm:"), field("NoNewPrivs:")), ("0000000000000000".into(), "1".into()));
    let said = attack_as(CALLER, &attacker, command);
    assert_eq!(won(&said), [""; 0], "the user who started the run, against its command");
    // The process with the key is that user's: ending one's own run is no attack.
    let said = attack_as(CALLER, &attacker, family.sealed);
    let won_more: Vec<_> = won(&said).into_iter().filter(|way| !["kill", "prlimit"].contains(way)).collect();
    assert_eq!(won_more, [""; 0], "the user who started the run, against the process with the key");
    // Nor by asking for it: what runseal itself offers.
    for arguments in [vec!["exec", &family.id, "--", "true"], vec!["cp", &format!("{}:work", family.id), "copied"]] {
        let asked = bare_caller(outside).args(&arguments).output().expect("it runs");
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(!asked.status.success() && said.contains("only root may look"), "{arguments:?}: {said}");
    }
    // Control: a process that the caller has as an ordinary user.
    let mut own = Command::new("setpriv")
        .args(["--reuid", &CALLER.to_string(), "--regid", &CALLER.to_string(), "--clear-groups", "sleep", "60"])
        .spawn()
        .expect("setpriv runs");
    let victim = i32::try_from(own.id()).expect("fits");
    crate::wait_until("it sleeps", || fs::read_to_string(format!("/proc/{victim}/comm")).is_ok_and(|n| n == "sleep\n"));
    let said = attack_as(CALLER, &attacker, victim);
    for way in ["environ", "mem", "root", "kill", "pidfd_getfd"] {
        assert!(won(&said).contains(&way), "{way} is no control: {said}");
    }
    own.kill().and_then(|()| own.wait()).expect("it ends");

    let outcome = family.finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(fs::read_to_string(output.join("copy")).expect("published"), "secret\n");
    let told = fs::read_to_string(output.join("who")).expect("published");
    assert_eq!(told, format!("{user}\n{user}\n"), "no group of anybody else");
    for result in ["", "copy", "sub", "sub/z", "who"] {
        let found = fs::metadata(output.join(result)).expect("published");
        assert_eq!(found.mode() & 0o7022, 0, "{result}: the command does not say who may change what is published");
        assert_eq!((found.uid(), found.gid()), (CALLER, CALLER), "{result} belongs to who started the run");
    }
}

/// `runseal` as an ordinary user who has been given the capabilities that a user of its own takes, as a service manager
/// does, or why not.
fn as_caller(outside: &Path) -> (Option<Command>, &'static str) {
    let (node, caller) = (outside.join("fuse"), CALLER.to_string());
    let binary = outside.join("runseal");
    // By another process: a descriptor for writing that a fork of another test inherits makes the copy ETXTBSY.
    let copied = Command::new("cp").args([env!("CARGO_BIN_EXE_runseal"), binary.to_str().expect("UTF-8")]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let capabilities = "+sys_admin,+setuid,+setgid,+kill,+dac_override,+dac_read_search,+setpcap";
    let setup = format!(
        "mknod -m 666 {0} c 10 229 && mount --bind {0} /dev/fuse && exec setpriv --reuid {caller} --regid {caller} \
         --clear-groups --inh-caps {capabilities} --ambient-caps {capabilities} env -i PATH=\"$PATH\" HOME=/ \
         XDG_RUNTIME_DIR={1} {2} \"$@\"",
        node.display(),
        runtime(outside).display(),
        binary.display(),
    );
    let mut launcher = Command::new("unshare");
    launcher.args(["-m", "sh", "-c", &setup, "sh"]);
    let works = Command::new("setpriv").args(["--reuid", &caller, "--ambient-caps", "-all", "true"]).status();
    (works.is_ok_and(|status| status.success()).then_some(launcher), "setpriv knows no ambient capabilities")
}

/// `runseal` as the same user without anything.
fn bare_caller(outside: &Path) -> Command {
    let caller = CALLER.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &caller, "--regid", &caller, "--clear-groups", "env", "-i"]);
    command.arg(format!("XDG_RUNTIME_DIR={}", runtime(outside).display())).arg(outside.join("runseal"));
    command.current_dir("/");
    command
}

fn runtime(outside: &Path) -> PathBuf {
    let runtime = outside.join("r");
    if fs::create_dir(&runtime).is_ok() {
        std::os::unix::fs::chown(&runtime, Some(CALLER), Some(CALLER)).expect("chown");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    runtime
}

// promise: T-17
#[test]
fn the_process_with_the_key_has_no_capability_it_does_not_need() {
    require_host!();
    let disk = Disk::new();
    let family = Family::start(disk.outside(), &["--backing", disk.mount.to_str().expect("UTF-8")], "wait_at_gate");
    // Files and owners (0 to 4, 9, 31), KILL, SETGID, SETUID, SETPCAP, IPC_LOCK, SYS_CHROOT, SYS_ADMIN, SYS_RESOURCE.
    let needed: u64 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 18, 21, 24, 31].iter().map(|number| 1 << number).sum();
    let tasks = fs::read_dir(format!("/proc/{}/task", family.sealed)).expect("it lives");
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.expect("a thread").path().join("status")).expect("it lives");
        for name in ["CapPrm:", "CapEff:"] {
            let set = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim();
            assert_eq!(u64::from_str_radix(set, 16).expect("hexadecimal") & !needed, 0, "{status}");
        }
        threads += 1;
    }
    assert!(threads > 4, "the workers are among them");
    assert_eq!(code(&family.finish()), 0);
}

// promise: T-16
#[test]
fn without_privilege_a_user_of_its_own_is_refused_rather_than_pretended() {
    require_host!();
    let disk = Disk::new();
    let outside = disk.outside();
    fs::set_permissions(outside, fs::Permissions::from_mode(0o777)).expect("chmod");
    let _ = as_caller(outside);
    let refused = bare_caller(outside).args(["run", "--isolate=uid:1879048192-1879048292", "--", "/bin/true"]).output();
    let refused = refused.expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(77) && said.contains("needs root"), "{said}");
}

// promise: T-16
#[test]
fn two_runs_never_have_the_same_user() {
    require_host!();
    let disk = Disk::new();
    let backing = disk.mount.to_str().expect("UTF-8");
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(disk.outside(), mode).expect("chmod");
    let one = format!("--isolate=uid:{0}-{0}", OTHERS.end());
    let family = Family::start(disk.outside(), &["--backing", backing, &one], "wait_at_gate");
    let second = Command::new(env!("CARGO_BIN_EXE_runseal")).args(["run", &one, "--", "true"]).output();
    let second = second.expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(78) && said.contains("in use"), "{said}");
    assert_eq!(code(&family.finish()), 0);
}
