//! systemd as PID 1 of a container: the units, fstab, and the node daemon as a service.

use std::path::PathBuf;

use crate::containers::{Container, Image, binary, no_docker, no_mounts, repository, require, wait_until};
use crate::program::text;

/// Highest exposure that `systemd-analyze security` may find, times ten.
const THRESHOLD: &str = "48";

/// A container may see the control groups, but systemd needs a hierarchy of its own that it can write.
const INIT: &str = "
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mount -o remount,rw /sys/fs/cgroup
    else
        mount -o remount,rw /sys/fs/cgroup
        umount /sys/fs/cgroup/systemd 2>/dev/null || mkdir -p /sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    fi
    exec /lib/systemd/systemd --show-status=no";

fn root_file_system() -> PathBuf {
    repository().join("target/tools/systemd.tar")
}

fn no_systemd() -> Option<&'static str> {
    (!root_file_system().exists()).then_some("no target/tools/systemd.tar (scripts/install-deps.sh, debootstrap)")
}

/// A machine with systemd and runseal, installed as the installer does it.
struct Machine {
    container: Container,
    _image: Image,
}

impl Machine {
    fn boot() -> Self {
        let image = Image::import("systemd", &root_file_system());
        let bind = |from: &str, to: &str| format!("--volume={}:{to}:ro", text(&repository().join(from)));
        let program = format!("--volume={}:/src/runseal:ro", text(binary()));
        let container = Container::start(&[
            "--cap-add=SYS_ADMIN",
            "--cap-add=IPC_LOCK",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "--device=/dev/fuse",
            "--cgroupns=private",
            "--tmpfs=/run",
            "--tmpfs=/tmp",
            "--volume=/var/tmp",
            "--env=container=docker",
            "--stop-signal=SIGRTMIN+3",
            &bind("scripts", "/src/scripts"),
            &bind("deploy", "/src/deploy"),
            &bind("docs", "/src/docs"),
            &program,
            "--entrypoint=/bin/sh",
            &image.name,
            "-euc",
            INIT,
        ]);
        let machine = Self { container, _image: image };
        wait_until("systemd is up", || {
            let said = machine.container.exec(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&said.out.trim())
        });
        machine.shell("/src/scripts/install.sh --prefix /usr --binary /src/runseal");
        machine
    }

    /// Runs a script that must succeed; what it wrote.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.container.shell(script).expect_said(0, &[]).out
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.shell(&format!("systemctl show --property {name} --value '{unit}'")).trim().to_owned()
    }

    #[track_caller]
    fn wait_for(&self, unit: &str, name: &str, value: &str) {
        wait_until(&format!("{unit}: {name}={value}"), || self.property(unit, name) == value);
    }

    /// What is mounted by runseal.
    fn mounts(&self) -> String {
        self.container.shell("grep ' fuse.runseal ' /proc/self/mounts || true").out
    }

    /// Writes a drop-in of a unit.
    fn configure(&self, unit: &str, text: &str) {
        let dir = format!("/etc/systemd/system/{unit}.d");
        self.shell(&format!("mkdir -p '{dir}'; printf '{text}' >'{dir}/test.conf'; systemctl daemon-reload"));
    }

    /// A request to the node daemon by a process of the machine: it refuses those that it cannot look at.
    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let talk = r#"$s = IO::Socket::UNIX->new(Peer => "/run/runseal/serve.sock") or die "connect: $!";
            my ($method, $path, $body) = @ARGV;
            syswrite $s, "$method $path HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: "
                . length($body) . "\r\n\r\n$body";
            print while <$s>;"#;
        let answer = self
            .container
            .exec(&["perl", "-MIO::Socket::UNIX", "-e", talk, method, path, body])
            .expect_said(0, &[])
            .out;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer)
    }
}

// promise: S-94
#[test]
fn a_mount_is_a_service() {
    require!(no_mounts(), no_docker(), no_systemd());
    let machine = Machine::boot();
    let unit = "runseal@mnt-scratch.service";
    machine.shell("mkdir -p /etc/runseal/mount; echo RUNSEAL_MOUNT_OPTIONS=--size=64M --run-id=unit >/etc/runseal/mount/mnt-scratch.conf");

    // `start` returns when the mount is ready, and not before.
    let size =
        machine.shell(&format!("systemctl start {unit}; echo data >/mnt/scratch/x; df -k --output=size /mnt/scratch"));
    assert!(size.contains("65536"), "{size}");
    assert_eq!(machine.property(unit, "StatusText"), "serving /mnt/scratch");
    machine.shell(&format!("systemctl stop {unit}; ! [ -e /mnt/scratch/x ]"));
    assert_eq!((machine.property(unit, "Result"), machine.mounts()), ("success".into(), String::new()));

    // A live run keeps its program.
    machine.shell(&format!("systemctl start {unit}"));
    let uninstall = "/src/scripts/install.sh --prefix /usr --uninstall";
    machine.container.shell(uninstall).expect_said(1, &["live runs", "/mnt/scratch"]);
    machine.shell(&format!("systemctl stop {unit}"));

    // What hangs is killed. Its mount stays, dead, so that nobody goes on below it.
    let is_dead = |when: &str| {
        let said = machine.container.shell("echo secret >/mnt/scratch/file");
        assert!(said.code != 0 && said.err.contains("not connected"), "{when}: {said:?}");
    };
    machine.configure(unit, "[Service]\\nWatchdogSec=2\\n");
    machine.shell(&format!("systemctl start {unit}; sleep 3; systemctl is-active {unit}"));
    machine.shell(&format!("kill -STOP $(cat /proc/$(systemctl show -P MainPID {unit})/task/*/children)"));
    machine.wait_for(unit, "Result", "watchdog");
    machine.wait_for(unit, "ActiveState", "failed");
    is_dead("after the watchdog");

    // The next start covers it; and so it is with what was killed as a whole.
    machine.shell(&format!("systemctl restart {unit}; echo data >/mnt/scratch/x; systemctl stop {unit}"));
    assert_eq!(machine.mounts(), "", "what was stopped as asked takes what was dead with it");
    machine.shell(&format!("systemctl start {unit}; systemctl kill --signal=KILL {unit}"));
    machine.wait_for(unit, "ActiveState", "failed");
    is_dead("after kill -9");
    machine.shell("runseal end /mnt/scratch");
    assert_eq!((machine.mounts(), machine.shell("ls -A /mnt/scratch")), (String::new(), String::new()));

    // A mountpoint that will not do is told to who started it.
    machine.shell("mkdir -p /mnt/full; touch /mnt/full/x");
    assert_ne!(machine.container.shell("systemctl start runseal@mnt-full").code, 0);
    machine
        .container
        .shell("journalctl --no-pager --unit runseal@mnt-full")
        .expect_said(0, &["/mnt/full", "not empty"]);

    machine.shell(uninstall);
    assert_eq!(machine.property("runseal.service", "LoadState"), "not-found");
    assert_ne!(machine.container.shell("command -v runseal").code, 0);
}

// promise: S-95
#[test]
fn a_line_in_fstab_is_a_mount() {
    require!(no_mounts(), no_docker(), no_systemd());
    let machine = Machine::boot();
    let line = "runseal /fs fuse.runseal size=64M,run-id=fs,noexec,noauto,nofail,_netdev,x-systemd.requires-mounts-for=/var/tmp 0 0";
    machine.shell(&format!("mkdir /fs; echo '{line}' >>/etc/fstab; systemctl daemon-reload"));

    // As a unit of systemd.
    machine.shell("systemctl start fs.mount; echo data >/fs/x; systemctl is-active fs.mount");
    assert!(machine.mounts().contains(" /fs fuse.runseal rw,nosuid,nodev,noexec"), "{}", machine.mounts());
    machine.shell("systemctl stop fs.mount");
    wait_until("no process is left", || machine.shell("runseal status").is_empty());
    assert_eq!((machine.property("fs.mount", "Result"), machine.mounts()), ("success".into(), String::new()));

    // By mount(8) and umount(8): the directory is enough, a second `mount -a` is no error, and what was in it is gone.
    machine.shell(
        "mount /fs; ! [ -e /fs/x ]; umount /fs; sed -i s/noauto,// /etc/fstab; mount -a; mount -a; mountpoint /fs",
    );
    machine.shell("umount /fs");
    for (command, code, word) in [
        ("mount -t fuse.runseal runseal /fs -o size=nonsense", 1, "nonsense"),
        ("mount -t fuse.runseal runseal /fs -o bogus", 1, "`bogus`"),
        ("mount -t fuse.runseal /dev/sdx /fs", 1, "backing=DIR"),
        ("mount -t fuse.runseal runseal /nowhere", 32, "/nowhere"),
        ("mount -f -t fuse.runseal runseal /fs", 0, ""),
        ("mount -s -t fuse.runseal runseal /fs -o bogus && umount /fs", 0, ""),
    ] {
        machine.container.shell(command).expect_said(code, &[word]);
        assert_eq!(machine.mounts(), "", "{command}");
    }
}

// promise: S-96
#[test]
fn the_node_daemon_is_a_service_whose_runs_survive_it() {
    require!(no_mounts(), no_docker(), no_systemd());
    let machine = Machine::boot();
    let unit = "runseal.service";
    for unit in [unit, "runseal@x.service"] {
        let judged = machine.shell(&format!("systemd-analyze security --no-pager --threshold={THRESHOLD} {unit}"));
        println!("{}", judged.lines().last().unwrap_or_default());
    }

    // The socket is enough: the first request starts the daemon.
    machine.shell("systemctl enable --now runseal.socket 2>/dev/null");
    assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    assert_eq!(machine.request("GET", "/v1/health", "").0, 200);
    assert_eq!(machine.property(unit, "ActiveState"), "active");
    assert_eq!(machine.shell("stat -c '%a %U' /run/runseal/serve.sock").trim(), "660 root");

    let made = machine.request("POST", "/v1/runs", r#"{"id":"live","size":"64MiB"}"#);
    assert_eq!(made.0, 201, "{}", made.1);
    let file = "/mnt/runseal/live/file";
    machine.shell(&format!("echo data >{file}"));
    let alive = |when: &str| {
        assert_eq!(machine.shell(&format!("cat {file}")), "data\n", "{when}");
        let (status, answer) = machine.request("GET", "/v1/runs/live", "");
        assert!(status == 200 && answer.contains("\"serving\""), "{when}: {answer}");
    };

    // Results leave it, with the rights that the unit has: as root, and for a user.
    machine.shell("mkdir /srv/theirs; chown 4001:4001 /srv/theirs; chmod 700 /srv/theirs; echo in >/srv/theirs/data");
    for (id, owner, output) in [("ours", 0, "/srv/ours"), ("theirs", 4001, "/srv/theirs/out")] {
        let body = format!(
            r#"{{"id":"{id}","size":"64MiB","owner":{{"uid":{owner},"gid":{owner}}},"inputs":["/srv/theirs/data"],"output":"{output}"}}"#
        );
        let made = machine.request("POST", "/v1/runs", &body);
        assert_eq!(made.0, 201, "{}", made.1);
        machine.shell(&format!("cp /mnt/runseal/{id}/input/data /mnt/runseal/{id}/output/copy"));
        let published = machine.request("POST", &format!("/v1/runs/{id}/publish"), "");
        assert_eq!(published.0, 200, "{}", published.1);
        let found = machine.shell(&format!("stat -c %u {output}/runseal-manifest.json; cat {output}/copy"));
        assert_eq!(found, format!("{owner}\nin\n"));
        let ended = machine.request("DELETE", &format!("/v1/runs/{id}"), "");
        assert!((200..300).contains(&ended.0), "{}", ended.1);
    }

    // Reload, with a configuration that can be used and with one that cannot.
    let daemon = machine.property(unit, "MainPID");
    machine.shell("systemctl reload runseal");
    machine.shell("cp /etc/runseal/serve.toml /tmp/good; echo nonsense >>/etc/runseal/serve.toml");
    assert_ne!(machine.container.shell("systemctl reload runseal").code, 0);
    machine.shell("cp /tmp/good /etc/runseal/serve.toml");
    assert_eq!(machine.property(unit, "MainPID"), daemon);
    alive("after a reload");

    machine.shell("systemctl restart runseal");
    assert_ne!(machine.property(unit, "MainPID"), daemon);
    assert_eq!(machine.property(unit, "StatusText"), "1 runs taken over");
    alive("after a restart");

    machine.shell(
        "systemctl stop runseal.service runseal.socket; [ -e /mnt/runseal/live/file ]; systemctl start runseal.socket",
    );
    alive("after stop and activation by the socket");

    machine.shell("systemctl kill --kill-who=main --signal=KILL runseal");
    machine.wait_for(unit, "NRestarts", "1");
    machine.wait_for(unit, "ActiveState", "active");
    alive("after kill -9");

    machine.configure(unit, "[Service]\\nWatchdogSec=2\\n");
    machine.shell("systemctl restart runseal");
    let daemon = machine.property(unit, "MainPID");
    machine.shell(&format!("sleep 3; systemctl is-active runseal; kill -STOP {daemon}"));
    wait_until("the watchdog acts", || {
        let now = machine.property(unit, "MainPID");
        now != daemon && now != "0" && machine.property(unit, "ActiveState") == "active"
    });
    machine.container.shell("journalctl --no-pager --unit runseal").expect_said(0, &["watchdog"]);
    alive("after the watchdog");

    let ended = machine.request("DELETE", "/v1/runs/live", "");
    assert!((200..300).contains(&ended.0), "{}", ended.1);
    wait_until("the mount is gone", || machine.mounts().is_empty());
    machine.shell("systemctl stop runseal.service runseal.socket");

    // A configuration that cannot be used is tried once.
    machine.shell("echo nonsense >>/etc/runseal/serve.toml");
    assert_ne!(machine.container.shell("systemctl start runseal").code, 0);
    assert_eq!(machine.property(unit, "ActiveState"), "failed");
}
