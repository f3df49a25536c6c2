//! `runseal verify` of results in S3, as they were published and after somebody tampered with them.

use std::fs;

use serde_json::Value;

use crate::fixture::Site;
use crate::program::{Said, finish, require_host};

const MANIFEST: &str = "out/runseal-manifest.json";

impl Site {
    fn verify(&self, flags: &[&str]) -> Said {
        let mut command = self.runseal();
        command.arg("verify").args(flags).arg("s3://outputs/out/");
        finish(command)
    }

    /// The exit status, and each problem with its path.
    fn differences(&self, flags: &[&str]) -> (i32, Vec<(String, String)>) {
        let said = self.verify(&[flags, &["--json"]].concat());
        let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let found = json["differences"].as_array().expect("a list").iter();
        (said.code, found.map(|found| (text(&found["problem"]), text(&found["path"]))).collect())
    }
}

fn published() -> Site {
    let site = Site::holding([("secret", b"one\n".to_vec())]);
    site.double.change(|world| {
        world.persona("runner").allow_everything();
    });
    let script = "cd \"$RUNSEAL_OUTPUT\"; echo one >a; mkdir d empty; echo two >d/b; head -c 20971520 /dev/zero >large";
    let mut command = site.runseal();
    command.args(["run", "--output", "s3://outputs/out/", "--report", "report.json", "--audit", "trail"]);
    command.args(["--", "sh", "-euc", script]);
    finish(command).expect(0, &[]);
    site
}

fn named(found: &[(&str, &str)]) -> Vec<(String, String)> {
    found.iter().map(|&(problem, path)| (problem.to_owned(), path.to_owned())).collect()
}

// promise: T-47, T-48
#[test]
fn results_in_s3_are_compared_by_reading_or_by_stored_checksums() {
    require_host!();
    let site = published();
    for flags in [&[][..], &["--stored-checksums"]] {
        let said = site.verify(flags);
        assert!(said.code == 0 && said.out.starts_with("3 of 3 files are as run "), "{said:?}");
    }
    let report: Value = serde_json::from_slice(&fs::read(site.path("report.json")).expect("written")).expect("JSON");
    let sum = report["published"]["manifest_sha256"].as_str().expect("a hash");
    assert_eq!(site.differences(&["--manifest-sha256", sum]), (0, Vec::new()));
    let trail = fs::read_to_string(site.path("trail")).expect("written");
    // `printf 'one\n' | sha256sum`
    assert!(trail.contains("2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806"), "{trail}");

    site.double.put("outputs", "out/a", "onE\n");
    site.double.put("outputs", "out/large", vec![1; 20 << 20]);
    site.double.put("outputs", "out/d/b", "two and more\n");
    site.double.put("outputs", "out/new", "");
    let expected = named(&[("changed", "a"), ("changed", "d/b"), ("changed", "large"), ("extra", "new")]);
    assert_eq!(site.differences(&[]), (65, expected.clone()));
    assert_eq!(site.differences(&["--stored-checksums"]), (65, expected.clone()));
    assert_eq!(site.differences(&["--allow-extra"]), (65, expected[..3].to_vec()));
}

// promise: T-47
#[test]
fn a_hostile_manifest_in_s3_reaches_no_other_object() {
    require_host!();
    let site = published();
    let manifest = site.double.read("outputs", MANIFEST).expect("published");
    let manifest = String::from_utf8(manifest.to_vec()).expect("UTF-8");
    site.double.put("outputs", "other/a", "one\n");
    site.double.clear_calls();
    // An object elsewhere that is just what the manifest says, another result's, one that is not there.
    for (key, problem) in [("other/a", "unsafe"), ("out/d/b", "unsafe"), ("out/gone", "missing"), (MANIFEST, "unsafe")]
    {
        let hostile = manifest.replace("\"key\": \"out/a\"", &format!("\"key\": \"{key}\""));
        assert_ne!(hostile, manifest);
        site.double.put("outputs", MANIFEST, hostile);
        let (code, found) = site.differences(&[]);
        assert!(code == 65 && found.iter().any(|(is, _)| is == problem), "{key}: {found:?}");
    }
    assert!(site.double.calls().iter().all(|call| !format!("{call:?}").contains("other/a")), "nobody looked there");
    let mut command = site.runseal();
    command.args(["verify", "s3://outputs/elsewhere/"]);
    let said = finish(command);
    assert!(said.code == 66 && said.err.contains("elsewhere/runseal-manifest.json"), "{said:?}");
}
