//! Docker itself, with containers that have no rights at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::bench::{obstacle, wait_until};
use crate::node::{Node, mounts_below};

const BUSYBOX: &str = "/bin/busybox";
/// A container without a single right, as a user nobody knows.
const UNPRIVILEGED: [&str; 7] = [
    "--user=61001:61001",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=none",
    "--init=false",
    "--pull=never",
    "--label=runseal-serve-test",
];

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().expect("docker starts")
}

#[track_caller]
fn must(arguments: &[&str]) -> String {
    let output = docker(arguments);
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn missing() -> Option<&'static str> {
    let engine = Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success());
    match () {
        () if !engine => Some("no Docker engine answers"),
        () if !Path::new(BUSYBOX).exists() => Some("no static busybox (Debian: busybox-static)"),
        () => obstacle(),
    }
}

/// A node whose plugin Docker finds, and an image of busybox; all gone on drop.
struct Host {
    node: Node,
    name: String,
    containers: Vec<String>,
    volumes: Vec<String>,
}

impl Host {
    fn start() -> Self {
        let mut node = Node::prepare("");
        let name = node.fresh_id();
        let (socket, root) = (plugin(&name), crate::volumes::volume_root(&node));
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
        must(&["import", archive.to_str().expect("text"), &name]);
        Self { node, name, containers: Vec::new(), volumes: Vec::new() }
    }

    /// Volume `volume` on /scratch: made by this driver if it is new.
    fn mount(&mut self, volume: &str, size: &str) -> String {
        self.volumes.push(volume.to_owned());
        format!(
            "--mount=type=volume,src={volume},dst=/scratch,volume-driver={},volume-opt=size={size},volume-opt=uid=61001",
            self.name
        )
    }

    fn run(&self, flags: &[&str], script: &str) -> Output {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(UNPRIVILEGED);
        arguments.extend(flags);
        arguments.extend([self.name.as_str(), "sh", "-euc", script]);
        docker(&arguments)
    }

    /// Starts a container that waits; returns its name.
    fn start_container(&mut self, mount: &str) -> String {
        let name = self.node.fresh_id();
        let mut arguments = vec!["run", "--detach", "--name", &name];
        arguments.extend(UNPRIVILEGED);
        arguments.extend([mount, self.name.as_str(), "sleep", "1000"]);
        must(&arguments);
        self.containers.push(name.clone());
        name
    }

    fn idle(&self) -> bool {
        mounts_below(self.node.path()).is_empty()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for container in &self.containers {
            let _ = docker(&["rm", "--force", container]);
        }
        for volume in &self.volumes {
            let _ = docker(&["volume", "rm", "--force", volume]);
        }
        let _ = docker(&["image", "rm", "--force", &self.name]);
        let _ = fs::remove_file(plugin(&self.name));
    }
}

fn plugin(name: &str) -> PathBuf {
    Path::new("/run/docker/plugins").join(format!("{name}.sock"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_unprivileged_container_has_a_sealed_volume_until_it_ends() {
    if let Some(reason) = missing() {
        return println!("SKIP: {reason}");
    }
    let mut host = Host::start();
    let volume = host.node.fresh_id();
    let mount = host.mount(&volume, "32M");
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
    let wrong = host.node.fresh_id();
    let refused = host.run(&[&host.mount_of(&wrong)], "true");
    assert!(text(&refused).contains("option size=lots"), "{}", text(&refused));
}

impl Host {
    fn mount_of(&self, volume: &str) -> String {
        format!("--mount=type=volume,src={volume},dst=/scratch,volume-driver={},volume-opt=size=lots", self.name)
    }
}

#[test]
fn two_containers_share_a_volume_that_outlives_the_service_and_a_kill() {
    if let Some(reason) = missing() {
        return println!("SKIP: {reason}");
    }
    let mut host = Host::start();
    let volume = host.node.fresh_id();
    let mount = host.mount(&volume, "32M");
    let (first, second) = (host.start_container(&mount), host.start_container(&mount));
    must(&["exec", &first, "sh", "-c", "echo shared >/scratch/file"]);
    assert_eq!(must(&["exec", &second, "cat", "/scratch/file"]), "shared");

    host.node.signal(Signal::SIGKILL);
    host.node.wait();
    must(&["exec", &second, "sh", "-c", "echo more >>/scratch/file"]);
    host.node.launch();

    must(&["kill", "--signal=KILL", &first]);
    must(&["rm", "--force", &first]);
    assert_eq!(must(&["exec", &second, "cat", "/scratch/file"]), "shared\nmore", "the other one goes on");
    must(&["rm", "--force", &second]);
    wait_until("the volume is wiped", || host.idle());
    must(&["volume", "rm", &volume]);
}

#[test]
fn a_container_of_512_mib_writes_4_gib() {
    if let Some(reason) = missing() {
        return println!("SKIP: {reason}");
    }
    let mut host = Host::start();
    let volume = host.node.fresh_id();
    let mount = host.mount(&volume, "5G");
    let said = host.run(
        &["--memory=512m", &mount],
        "dd if=/dev/zero of=/scratch/big bs=1M count=4096 conv=fsync; ls -l /scratch/big; dd if=/scratch/big of=/dev/null bs=1M",
    );
    assert!(said.status.success() && text(&said).contains(" 4294967296 "), "{}", text(&said));
    assert_eq!(text(&said).matches("4096+0 records in").count(), 2, "all of it can be read: {}", text(&said));
    assert!(host.idle());
}
