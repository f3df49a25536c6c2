//! Suites of others: pjdfstest for what POSIX says, fsx for contents. `scripts/pjdfstest.sh` and `scripts/fsx.sh` install
//! them and run these tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::scratch_mount::{mount, mount_options, skip, succeed};

// promise: S-02
#[test]
fn pjdfstest_passes() {
    let Some(tool) = tool("pjdfstest") else { return };
    let Some(scratch) = mount_options(&["suid", "dev"]) else { return };
    let output = Command::new(tool)
        .arg("-c")
        .arg(config("pjdfstest.toml"))
        .arg("-p")
        .arg(scratch.root())
        .arg("--secondary-fs")
        .arg(scratch.beside("other"))
        .current_dir("/")
        .output()
        .expect("pjdfstest");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let summary = text.lines().rev().find(|line| line.contains("failed")).expect("a summary");
    assert!(summary.contains(" 0 failed"), "{text}");
    println!("{summary}");
}

// promise: S-15
#[test]
fn fsx_finds_no_difference() {
    let Some(tool) = tool("fsx") else { return };
    let Some(scratch) = mount() else { return };
    for seed in ["1", "7", "42"] {
        succeed(&mut fsx(&tool, &config("fsx.toml"), seed, &scratch.path(&format!("f{seed}")), &scratch.beside("art")));
    }
    let (aligned, art) = (config("fsx-aligned.toml"), scratch.beside("art"));
    let together = [
        fsx(&tool, &config("fsx.toml"), "11", &scratch.path("a"), &art).stdout(Stdio::null()).spawn().expect("fsx"),
        fsx(&tool, &aligned, "12", &scratch.path("b"), &art).stdout(Stdio::null()).spawn().expect("fsx"),
    ];
    for child in together {
        let output = child.wait_with_output().expect("fsx ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn fsx(tool: &Path, config: &Path, seed: &str, file: &Path, artifacts: &Path) -> Command {
    let operations = std::env::var("RUNSEAL_FSX_OPERATIONS").unwrap_or_else(|_| "5000".to_owned());
    let mut command = Command::new(tool);
    command.args(["-N", &operations, "-S", seed, "-f"]).arg(config).arg("-P").arg(artifacts).arg(file);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    if path.exists() { Some(path) } else { skip(&format!("scripts/{name}.sh installs what this test runs")) }
}

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/posix").join(name)
}
