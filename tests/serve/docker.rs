//! Docker itself, with containers that have no rights at all.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::engine::{self, Engine};
use crate::node::{Node, mounts_below};
use crate::program::{obstacle, wait_until};

pub const BUSYBOX: &str = "/bin/busybox";
/// A container without a single right, as a user nobody knows.
const UNPRIVILEGED: [&str; 7] = [
    "--user=61001:61001",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=none",
    "--init=false",
    "--pull=never",
    "--stop-timeout=1",
];
/// The image.
const IMAGE: &str = "busybox";
/// The name of the plugin.
const DRIVER: &str = "runseal";

/// A node whose plugin Docker finds, and a Docker with an image of busybox.
struct Host {
    engine: Engine,
    node: Node,
    containers: Vec<String>,
}

/// Leaves the test with a visible reason where it cannot run; otherwise the host.
macro_rules! host {
    ($flags:expr) => {
        match Host::start($flags) {
            Ok(host) => host,
            Err(reason) => return println!("SKIP: {}: {reason}", module_path!()),
        }
    };
}

impl Host {
    /// An engine with `flags` and what it needs; the error says why that cannot be here.
    fn start(flags: &'static [&'static str]) -> Result<Self, String> {
        if let Some(reason) = obstacle().or_else(engine::obstacle) {
            return Err(reason.to_owned());
        }
        let engine = Engine::start(flags)?;
        let mut node = Node::prepare("");
        let (socket, root) = (engine.plugins().join(format!("{DRIVER}.sock")), engine.volumes());
        node.configure(&format!("[docker]\nenabled = true\nsocket = {socket:?}\nroot = {root:?}"));
        node.launch();
        let tree = tempfile::tempdir().expect("tempdir");
        fs::create_dir(tree.path().join("bin")).expect("made");
        fs::copy(BUSYBOX, tree.path().join("bin/busybox")).expect("copied");
        for applet in ["sh", "cat", "dd", "sleep", "ls", "id", "grep", "wc", "sync"] {
            std::os::unix::fs::symlink("busybox", tree.path().join("bin").join(applet)).expect("linked");
        }
        let archive = node.path().join("image.tar");
        let packed = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(tree.path()).arg("bin").status();
        assert!(packed.expect("tar runs").success());
        engine.must(&["import", archive.to_str().expect("text"), IMAGE]);
        Ok(Self { engine, node, containers: Vec::new() })
    }

    fn run(&self, flags: &[&str], script: &str) -> Output {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(UNPRIVILEGED);
        arguments.extend(flags);
        arguments.extend([IMAGE, "sh", "-euc", script]);
        self.engine.docker(&arguments)
    }

    /// Starts a container that waits; returns its name.
    fn start_container(&mut self, mount: &str) -> String {
        let name = self.node.fresh_id();
        let mut arguments = vec!["run", "--detach", "--name", &name];
        arguments.extend(UNPRIVILEGED);
        arguments.extend([mount, IMAGE, "sleep", "1000"]);
        self.engine.must(&arguments);
        self.containers.push(name.clone());
        name
    }

    fn exec(&self, container: &str, script: &str) -> String {
        self.engine.must(&["exec", container, "sh", "-euc", script])
    }

    /// With the last container that uses it the volume is wiped, and nothing is left.
    #[track_caller]
    fn expect_end(&self, container: &str, volume: &str) {
        self.engine.must(&["rm", "--force", container]);
        assert!(self.idle(), "wiped with the last user");
        self.engine.must(&["volume", "rm", volume]);
        assert!(self.node.must("GET", "/v1/runs", "")["runs"].as_array().expect("runs").is_empty());
    }

    /// No volume is mounted.
    fn idle(&self) -> bool {
        let volumes = self.engine.volumes();
        mounts_below(&volumes).iter().all(|mount| *mount == volumes)
    }

    /// The file `file` of the only volume that is mounted, as the machine sees it.
    fn seen_from_outside(&self) -> PathBuf {
        let volumes = self.engine.volumes();
        let mut mounts = mounts_below(&volumes);
        mounts.retain(|mount| *mount != volumes);
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        mounts.remove(0).join("file")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for container in &self.containers {
            let _ = self.engine.docker(&["rm", "--force", container]);
        }
    }
}

/// Volume `volume` on /scratch: made by this driver if it is new.
fn on(volume: &str, size: &str) -> String {
    format!(
        "--mount=type=volume,src={volume},dst=/scratch,volume-driver={DRIVER},volume-opt=size={size},volume-opt=uid=61001"
    )
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_unprivileged_container_has_a_sealed_volume_until_it_ends() {
    let host = host!(&[]);
    let mount = on(&host.node.fresh_id(), "32M");
    let said = host.run(
        &[&mount],
        "grep CapEff /proc/self/status; id -u; echo data >/scratch/file; cat /scratch/file; grep /scratch /proc/mounts; \
         dd if=/dev/zero of=/scratch/big bs=1M count=64 conv=fsync && exit 9; wc -c </scratch/file",
    );
    let said = (said.status.code(), text(&said));
    assert_eq!(said.0, Some(0), "{said:?}");
    for part in ["CapEff:\t0000000000000000", "61001", "data", "fuse.runseal", "No space left", "\n5"] {
        assert!(said.1.contains(part), "no `{part}` in {}", said.1);
    }
    assert!(host.idle(), "wiped with the last user");
    let again = host.run(&[&mount], "ls -a /scratch | wc -l");
    assert_eq!(text(&again).trim(), "2", "nothing of the first container is left");
    let refused = host.run(&[&on(&host.node.fresh_id(), "lots")], "true");
    assert!(text(&refused).contains("option size=lots"), "{}", text(&refused));
}

#[test]
fn a_volume_without_a_name_goes_with_its_container() {
    let host = host!(&[]);
    let mount = format!("--mount=type=volume,dst=/scratch,volume-driver={DRIVER},volume-opt=size=32M");
    let said = host.run(&[&mount], "grep -c fuse.runseal /proc/mounts");
    assert_eq!(text(&said).trim(), "1");
    assert!(host.idle());
    assert_eq!(host.engine.must(&["volume", "ls", "--quiet"]), "");
}

#[test]
fn two_containers_share_a_volume_that_outlives_the_service_and_a_kill() {
    let mut host = host!(&[]);
    let volume = host.node.fresh_id();
    let mount = on(&volume, "32M");
    let (first, second) = (host.start_container(&mount), host.start_container(&mount));
    host.exec(&first, "echo shared >/scratch/file");
    assert_eq!(host.exec(&second, "cat /scratch/file"), "shared");

    host.node.signal(Signal::SIGKILL);
    host.node.wait();
    host.exec(&second, "echo more >>/scratch/file");
    host.node.launch();

    host.engine.must(&["kill", "--signal=KILL", &first]);
    host.engine.must(&["rm", "--force", &first]);
    assert_eq!(host.exec(&second, "cat /scratch/file"), "shared\nmore", "the other one goes on");
    host.engine.must(&["rm", "--force", &second]);
    wait_until("the volume is wiped", || host.idle());
    host.engine.must(&["volume", "rm", &volume]);
}

#[test]
fn a_container_of_512_mib_writes_4_gib() {
    let host = host!(&[]);
    let said = host.run(
        &["--memory=512m", &on(&host.node.fresh_id(), "5G")],
        "dd if=/dev/zero of=/scratch/big bs=1M count=4096 conv=fsync; ls -l /scratch/big; dd if=/scratch/big of=/dev/null bs=1M",
    );
    assert!(said.status.success() && text(&said).contains(" 4294967296 "), "{}", text(&said));
    assert_eq!(text(&said).matches("4096+0 records in").count(), 2, "all of it can be read: {}", text(&said));
    assert!(host.idle());
}

#[test]
fn a_volume_goes_with_its_containers_when_docker_restarts() {
    let mut host = host!(&[]);
    let volume = host.node.fresh_id();
    let container = host.start_container(&on(&volume, "32M"));
    host.exec(&container, "echo first >/scratch/file");
    host.engine.stop(Signal::SIGTERM);
    assert!(host.idle(), "wiped before Docker had ended");
    host.engine.launch().expect("it starts again");
    assert_eq!(host.engine.must(&["inspect", "--format={{.State.Running}}", &container]), "false");
    assert_eq!(host.engine.must(&["volume", "inspect", "--format={{.Driver}}", &volume]), DRIVER);
    host.engine.must(&["start", &container]);
    assert_eq!(host.exec(&container, "ls -A /scratch"), "", "a fresh scratch");
    host.expect_end(&container, &volume);
}

/// Docker that was killed ends its containers when it starts again, and unmounts nothing.
#[test]
fn a_volume_outlives_docker_that_is_killed_until_its_container_has_ended_again() {
    let mut host = host!(&[]);
    let [again, never] = [(); 2].map(|()| host.node.fresh_id());
    let [first, second] = [&again, &never].map(|volume| host.start_container(&on(volume, "32M")));
    host.exec(&first, "echo first >/scratch/file");
    host.engine.stop(Signal::SIGKILL);
    host.engine.launch().expect("it starts again");
    assert_eq!(host.engine.must(&["inspect", "--format={{.State.Running}}", &first]), "false");
    host.engine.must(&["start", &first]);
    assert_eq!(host.exec(&first, "cat /scratch/file"), "first");
    host.engine.must(&["rm", "--force", &first, &second]);
    host.engine.must(&["volume", "rm", &again]);
    let refused = host.engine.docker(&["volume", "rm", &never]);
    assert!(text(&refused).contains("is in use by"), "{}", text(&refused));
    // What docs/operations.md tells to do.
    host.node.must("DELETE", &format!("/v1/runs/vol-{never}"), "");
    host.engine.must(&["volume", "rm", &never]);
    assert!(host.idle());
}

/// With `--live-restore` containers go on without Docker, and so does what they see; also if the service restarts as well.
#[test]
fn a_volume_in_use_outlives_docker_if_its_containers_do() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut host = host!(&["--live-restore"]);
        let volume = host.node.fresh_id();
        let container = host.start_container(&on(&volume, "32M"));
        host.exec(&container, "echo first >/scratch/file");
        host.engine.stop(signal);
        host.node.signal(Signal::SIGKILL);
        host.node.wait();
        assert_eq!(fs::read_to_string(host.seen_from_outside()).expect("there"), "first\n", "{signal}");
        host.node.launch();
        host.engine.launch().expect("it starts again");
        host.exec(&container, "echo second >>/scratch/file");
        assert_eq!(host.exec(&container, "cat /scratch/file"), "first\nsecond", "{signal}");
        assert!(!host.engine.docker(&["volume", "rm", &volume]).status.success(), "{signal}: it is in use");
        host.expect_end(&container, &volume);
    }
}
