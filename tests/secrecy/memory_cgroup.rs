//! Serving process and writer in one memory cgroup that is far smaller than what is written: must stay live.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::family::{descendants, lives};
use crate::require_host;

const LIMIT: u64 = 256 << 20;
const WRITTEN_MIB: u64 = 2048;
const DEADLINE: Duration = Duration::from_secs(180);

#[test]
fn a_run_in_a_small_memory_cgroup_stays_live() {
    require_host!();
    let cgroup = match Cgroup::new() {
        Ok(cgroup) => cgroup,
        Err(reason) => return crate::skip(&reason),
    };
    let script = format!(
        "dd if=/dev/zero of=big bs=1M count={WRITTEN_MIB} status=none; [ $(stat -c %s big) -eq {} ]; \
         [ $(du -m big | cut -f1) -ge {WRITTEN_MIB} ]; dd if=big of=/dev/null bs=1M status=none",
        WRITTEN_MIB << 20
    );
    let join = format!("echo $$ >'{}/cgroup.procs' && exec \"$@\"", cgroup.path.display());
    let mut run = Command::new("sh")
        .args(["-c", &join, "sh", env!("CARGO_BIN_EXE_runseal"), "run", "--size", "3G", "--", "sh", "-euc", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the run starts");
    let supervisor = i32::try_from(run.id()).expect("process ids fit");
    let start = Instant::now();
    while run.try_wait().expect("wait").is_none() {
        if start.elapsed() > DEADLINE {
            let tree = descendants(supervisor);
            abort_connections(&tree);
            let _ = run.kill();
            for process in tree.into_iter().filter(|process| lives(*process)) {
                crate::family::slay(process);
            }
            panic!("{WRITTEN_MIB} MiB in a cgroup of {} MiB: stuck after {DEADLINE:?}", LIMIT >> 20);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = run.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    println!("{WRITTEN_MIB} MiB written and read in a {} MiB cgroup in {:.1?}", LIMIT >> 20, start.elapsed());
}

/// A memory cgroup of [`LIMIT`] bytes, version 1 or 2; removed on drop.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn new() -> Result<Self, String> {
        let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
        let (root, file) =
            if v1 { ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") } else { ("/sys/fs/cgroup", "memory.max") };
        let path = Path::new(root).join(format!("runseal-test-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("no memory cgroup can be made in {root}: {error}"))?;
        let cgroup = Self { path };
        fs::write(cgroup.path.join(file), LIMIT.to_string())
            .map_err(|error| format!("no memory controller in {root}: {error}"))?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed process leaves its cgroup a moment after it was reaped.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{}: could not be removed", self.path.display());
    }
}

/// Aborts the FUSE connections in the mount namespaces of `processes`: a writer stuck in a request dies of nothing else.
fn abort_connections(processes: &[i32]) {
    let control = Path::new("/sys/fs/fuse/connections");
    if fs::read_dir(control).is_ok_and(|mut entries| entries.next().is_none()) {
        let _ = Command::new("mount").args(["-t", "fusectl", "none"]).arg(control).status();
    }
    for process in processes {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        for line in mounts.lines().filter(|line| line.contains(" - fuse") && line.contains("runseal")) {
            let minor = line.split(' ').nth(2).and_then(|device| device.split(':').nth(1)).unwrap_or_default();
            let _ = fs::write(control.join(minor).join("abort"), "1");
        }
    }
}
