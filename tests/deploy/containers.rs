//! Programs to their end, images made here, containers that are removed again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::program::{Said, text};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(400);
/// Marks what these tests make in Docker.
const LABEL: &str = "runseal-deploy-test";

/// Leaves the test with a visible reason where it cannot run.
macro_rules! require {
    ($($obstacle:expr),+) => {
        $(if let Some(reason) = $obstacle {
            println!("SKIP: {}: {reason}", module_path!());
            return;
        })+
    };
}
pub(crate) use require;

/// Why nothing can be mounted here, if so.
pub fn no_mounts() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    let device = fs::File::options().read(true).write(true).open("/dev/fuse");
    device.err().map(|_| "/dev/fuse cannot be opened")
}

/// Why there is no Docker, if so.
pub fn no_docker() -> Option<&'static str> {
    let version = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
    if !version.is_ok_and(|version| version.status.success()) {
        return Some("no Docker engine answers");
    }
    (!Path::new(BUSYBOX).exists()).then_some("no static busybox (Debian: busybox-static)")
}

/// The tree of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_runseal"))
}

/// A name no other test uses.
pub fn fresh(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{LABEL}-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `done`; containers are slow to start.
#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    crate::program::wait_within(PATIENCE, what, done);
}

/// Runs `command` to its end, which must come in time.
pub fn finish(command: &mut Command) -> Said {
    let mut patient = Command::new("timeout");
    patient.args(["--kill-after=5", &PATIENCE.as_secs().to_string()]).arg(command.get_program());
    patient.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => patient.env(name, value),
            None => patient.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        patient.current_dir(dir);
    }
    Said::of(patient.output().expect("the program starts"))
}

/// Runs `docker` with `arguments`.
pub fn docker(arguments: &[&str]) -> Said {
    finish(Command::new("docker").args(arguments))
}

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 16] = [
    "sh",
    "cat",
    "cut",
    "dd",
    "df",
    "echo",
    "find",
    "grep",
    "id",
    "ls",
    "mkdir",
    "rm",
    "sha256sum",
    "sleep",
    "true",
    "wc",
];

/// An image; removed with its last user.
pub struct Image {
    /// Its name.
    pub name: String,
}

impl Image {
    /// Makes an image of a tar file; its entry point is runseal.
    pub fn import(what: &str, archive: &Path) -> Self {
        let image = Self { name: fresh(what) };
        let label = format!("LABEL {LABEL}=1");
        let entry = "ENTRYPOINT [\"/bin/runseal\"]";
        docker(&["import", "--change", &label, "--change", entry, text(archive), &image.name]).expect_said(0, &[]);
        image
    }

    /// Makes an image of a directory.
    pub fn of(what: &str, tree: &Path) -> Self {
        let archive = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        finish(Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(archive.path()).arg(".")).expect_said(0, &[]);
        Self::import(what, archive.path())
    }

    /// An image with runseal, its libraries and busybox; its entry point is runseal.
    pub fn of_runseal() -> Arc<Self> {
        static SHARED: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().expect("no test fails with it");
        if let Some(image) = shared.upgrade() {
            return image;
        }
        let tree = tempfile::tempdir_in("/var/tmp").expect("tempdir");
        lay_out(tree.path());
        let image = Arc::new(Self::of("runseal", tree.path()));
        *shared = Arc::downgrade(&image);
        image
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = docker(&["image", "rm", "--force", &self.name]);
    }
}

/// What the smallest image for runseal holds, below `tree`.
fn lay_out(tree: &Path) {
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755)).expect("chmod");
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var/tmp"] {
        fs::create_dir_all(tree.join(dir)).expect("created");
    }
    for dir in ["tmp", "var/tmp"] {
        fs::set_permissions(tree.join(dir), fs::Permissions::from_mode(0o1777)).expect("chmod");
    }
    copy_program(&tree.join("bin/runseal"));
    copy(Path::new(BUSYBOX), &tree.join("bin/busybox"));
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("linked");
    }
    for library in libraries(binary()) {
        let place = tree.join(library.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(place.parent().expect("below the tree")).expect("created");
        copy(&library, &place);
    }
}

/// By another process: a descriptor for writing that a fork of another test inherits makes the copy ETXTBSY.
fn copy(from: &Path, to: &Path) {
    finish(Command::new("cp").arg("-L").arg(from).arg(to)).expect_said(0, &[]);
}

/// The program as images take it: some storage drivers of Docker copy it with every layer, so without debug information.
pub fn copy_program(to: &Path) {
    if finish(Command::new("strip").arg("-o").args([to, binary()])).code != 0 {
        copy(binary(), to);
    }
}

/// The shared libraries of a program, as ldd(1) finds them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = finish(Command::new("ldd").arg(program)).expect_said(0, &[]);
    said.out.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// A container; removed on drop, with its volumes.
pub struct Container {
    /// Its name.
    pub name: String,
}

impl Container {
    /// Starts a container in the background: `docker run FLAGS`, in which the image and the command come last.
    pub fn start(flags: &[&str]) -> Self {
        let container = Self { name: fresh("container") };
        let mut arguments = vec!["run", "--detach", "--name", &container.name, "--label", LABEL];
        arguments.extend(flags);
        docker(&arguments).expect_said(0, &[]);
        container
    }

    /// Runs a program in it.
    pub fn exec(&self, command: &[&str]) -> Said {
        let mut arguments = vec!["exec", &self.name];
        arguments.extend(command);
        docker(&arguments)
    }

    /// Runs a shell script in it.
    pub fn shell(&self, script: &str) -> Said {
        self.exec(&["sh", "-euc", script])
    }

    /// What `docker inspect` says of it.
    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.name]).expect_said(0, &[]).out.trim().to_owned()
    }

    /// Waits for its end; its exit status and what it said.
    pub fn end(&self) -> Said {
        let code = docker(&["wait", &self.name]).expect_said(0, &[]).out.trim().parse().expect("an exit status");
        let said = docker(&["logs", &self.name]);
        Said { code, ..said }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker(&["rm", "--force", "--volumes", &self.name]);
    }
}

/// Runs a container to its end: `docker run FLAGS`.
pub fn run(flags: &[&str]) -> Said {
    let mut arguments = vec!["run", "--rm", "--label", LABEL];
    arguments.extend(flags);
    docker(&arguments)
}
