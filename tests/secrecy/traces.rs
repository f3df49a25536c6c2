//! Traces on the disk: plaintext, names, files, blocks, equal ciphertext.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::disk::Disk;
use crate::family::{Family, children, code, descendants, lives, slay};
use crate::{canary, require_host, wait_until};

/// Words hidden in every place a file system has for them.
struct Canaries {
    contents: String,
    input: String,
    name: String,
    directory: String,
    target: String,
    attribute: String,
}

impl Canaries {
    fn new() -> Self {
        Self {
            contents: canary("content"),
            input: canary("input"),
            name: canary("name"),
            directory: canary("folder"),
            target: canary("target"),
            attribute: canary("xattr"),
        }
    }

    fn all(&self) -> [&str; 6] {
        [&self.contents, &self.input, &self.name, &self.directory, &self.target, &self.attribute]
    }

    /// Stages a file full of canaries.
    fn input(&self, folder: &Path) -> String {
        let file = folder.join("input.txt");
        fs::write(&file, format!("{}\n", self.input).repeat(50_000)).expect("the input can be written");
        file.to_str().expect("our paths are UTF-8").to_owned()
    }

    /// A shell script that leaves each canary where it belongs, in large and small files, renamed and deleted ones.
    fn script(&self) -> String {
        let Self { contents, name, directory, target, attribute, .. } = self;
        format!(
            "yes {contents} | head -c 20000000 >large
             mkdir -p {directory}/deep
             for i in 1 2 3 4 5 6 7 8 9; do echo {contents} >{directory}/{name}-$i; done
             mv {directory}/{name}-1 {directory}/deep/{name}-moved
             yes {contents} | head -c 3000000 >gone; sync gone; rm gone
             ln -s /{target}/{target} {directory}/link
             command -v setfattr >/dev/null && setfattr -n user.{attribute} -v {attribute} large
             cp large \"$TMPDIR/copy\"
             cp {directory}/{name}-2 \"$RUNSEAL_OUTPUT/\"
             sync -f ."
        )
    }
}

// promise: T-01, T-02, T-03
#[test]
fn the_disk_shows_nothing_during_and_after_a_run() {
    require_host!();
    let disk = Disk::new();
    let canaries = Canaries::new();
    let input = canaries.input(disk.outside());
    let output = disk.outside().join("results");
    let arguments =
        ["--backing", disk.mount.to_str().unwrap(), "--input", &input, "--output", output.to_str().unwrap()];

    let family = Family::start(disk.outside(), &arguments, &format!("{}\nwait_at_gate", canaries.script()));
    assert!(disk.used() * 4096 > 20_000_000, "the data must have reached the disk for this test to mean anything");
    assert_eq!(disk.names(), [""; 0], "no file in the backing has a name");
    assert_eq!(disk.search(&canaries.all()), [""; 0], "on the disk during the run");

    let outcome = family.finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(output.join(format!("{}-2", canaries.name)).exists(), "the result was published");
    wait_until("every block is free again", || disk.used() == 0);
    assert_eq!(disk.names(), [""; 0]);
    assert_eq!(disk.search(&canaries.all()), [""; 0], "on the disk after the run");

    // The search itself: what is written in the open is found.
    fs::write(disk.mount.join(&canaries.name), &canaries.contents).expect("the disk takes a file");
    let mut open = vec![canaries.contents.as_str(), canaries.name.as_str()];
    open.sort_unstable();
    assert_eq!(disk.search(&canaries.all()), open, "the search must find what is there");
}

// promise: T-03, S-55
#[test]
fn kill_9_of_the_sealed_process_leaves_nothing() {
    require_host!();
    let disk = Disk::new();
    let canaries = Canaries::new();
    let arguments = ["--backing", disk.mount.to_str().unwrap()];
    let script = format!("(setsid sleep 1000 >/dev/null 2>&1 &)\n{}\nwait_at_gate", canaries.script());
    let family = Family::start(disk.outside(), &arguments, &script);
    let tree = descendants(family.supervisor());
    assert!(tree.len() >= 3, "sealed process, shell and daemon: {tree:?}");

    let state = family.state();
    slay(family.sealed);
    let outcome = family.outcome();
    assert_eq!(code(&outcome), 71, "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(tree.iter().filter(|process| lives(**process)).count(), 0, "the command's whole tree is gone");
    assert_eq!(mounts_below(&state), [""; 0], "nothing stays mounted");
    wait_until("every block is free again", || disk.used() == 0);
    assert_eq!(disk.names(), [""; 0]);
    assert_eq!(disk.search(&canaries.all()), [""; 0], "on the disk after kill -9");
}

// promise: T-03, S-56
#[test]
fn kill_9_of_the_whole_family_leaves_nothing() {
    require_host!();
    let disk = Disk::new();
    let canaries = Canaries::new();
    let arguments = ["--backing", disk.mount.to_str().unwrap()];
    let family = Family::start(disk.outside(), &arguments, &format!("{}\nwait_at_gate", canaries.script()));
    let tree = descendants(family.supervisor());
    let (supervisor, sealed, state) = (family.supervisor(), family.sealed, family.state());

    slay(supervisor);
    if lives(sealed) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(sealed), nix::sys::signal::Signal::SIGKILL);
    }
    assert_eq!(code(&family.outcome()), 128 + 9);
    wait_until("every process is gone", || !tree.iter().any(|process| lives(*process)));
    assert_eq!(mounts_below(&state), [""; 0], "nothing stays mounted");
    wait_until("every block is free again", || disk.used() == 0);
    assert_eq!(disk.names(), [""; 0]);
    assert_eq!(disk.search(&canaries.all()), [""; 0], "on the disk after kill -9");
    let _ = fs::remove_dir_all(state);
}

// promise: S-56
#[test]
fn kill_9_of_the_supervisor_ends_everything_below_it() {
    require_host!();
    let disk = Disk::new();
    let family = Family::start(disk.outside(), &["--backing", disk.mount.to_str().unwrap()], "wait_at_gate");
    let (tree, state) = (descendants(family.supervisor()), family.state());
    assert!(!children(family.sealed).is_empty(), "the command is a child of the sealed process");

    slay(family.supervisor());
    wait_until("every process is gone", || !tree.iter().any(|process| lives(*process)));
    assert_eq!(mounts_below(&state), [""; 0], "nothing stays mounted");
    drop(family);
    let _ = fs::remove_dir_all(state);
}

// promise: T-04
#[test]
fn no_two_runs_and_no_two_sectors_share_ciphertext() {
    require_host!();
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let disk = Disk::new();
        // 8 MiB of one sector over and over, and the same written again (not copied: a copy shares sectors), in both runs.
        let script =
            "for file in same again; do yes 0123456789abcde | head -c 8388608 >$file; done; sync -f .; wait_at_gate";
        let family = Family::start(disk.outside(), &["--backing", disk.mount.to_str().unwrap()], script);
        let blocks = disk.ciphertext();
        assert!(blocks.len() >= 4096, "16 MiB must lie on the disk, {} blocks do", blocks.len());
        for block in blocks {
            assert!(seen.insert(block), "one block of ciphertext stands on the disk twice");
        }
        assert_eq!(code(&family.finish()), 0);
    }
}

/// Mountpoints below `folder` that this process sees.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}
