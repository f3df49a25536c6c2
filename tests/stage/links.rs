//! Symbolic links: what becomes of each on its way in and on its way out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runseal::fs::{ROOT, SetAttr};
use runseal::preflight::{Code, Report};
use runseal::spec::{InputSpec, Location, S3Uri, StagingRules};
use runseal::stage::{Astray, StageError, Stager, Totals};
use runseal::sys::path;

use crate::bucket::{BUCKET, Bucket};
use crate::support::{Hooks, Place, RUN, assert_published, check_by, check_in_by};

const DEREFERENCE: StagingRules =
    StagingRules { dereference: true, keep_old: false, allow_empty: false, shared_output: false, keep_set_id: false };

/// A scratch as a run has it: results, and files elsewhere.
fn scratch() -> Place {
    let place = Place::new();
    place.results(&[("output/", ""), ("output/data", "data"), ("output/sub/", ""), ("output/sub/deep", "deep")]);
    place.results(&[
        ("work/", ""),
        ("work/tree/", ""),
        ("work/tree/leaf", "leaf"),
        ("work/file", "file"),
        ("tmp/", ""),
    ]);
    place.results(&[("tmp/part", "part")]);
    place
}

fn publish(place: &Place, rules: StagingRules) -> Result<Totals, StageError> {
    place.run_publisher(false, rules, &Hooks::none()).publish(place.find("output"), None)
}

fn text(place: &Place, name: &str) -> PathBuf {
    fs::read_link(place.output(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn astray(result: Result<Totals, StageError>) -> (String, String, Astray, usize) {
    match result {
        Err(StageError::Astray { link, target, why, others }) => {
            (link.to_str().unwrap().into(), target.to_str().unwrap().into(), why, others)
        }
        other => panic!("{other:?}"),
    }
}

// promise: S-112
#[test]
fn links_between_results_lead_to_the_same_in_the_output() {
    let place = scratch();
    let links = [
        ("plain", "data", "data"),
        ("dangling", "gone", "gone"),
        ("absolute", "/run/scratch/output/data", "data"),
        ("gone", "/run/scratch/output/sub/gone", "sub/gone"),
        ("itself", "/run/scratch/output", "."),
        ("sub/up", "/run/scratch/output/data", "../data"),
        ("sub/round", "../../output/sub/deep", "deep"),
        ("sub/relative", "../data", "../data"),
        ("chain", "/run/scratch/output/absolute", "absolute"),
    ];
    links.iter().for_each(|(link, to, _)| place.link(&format!("output/{link}"), to));
    let totals = publish(&place, StagingRules::default()).unwrap();
    assert_eq!((totals.symlinks, totals.rewritten, totals.dereferenced), (9, 6, 0));
    for (link, _, published) in links {
        assert_eq!(text(&place, link), Path::new(published), "{link}");
    }
    assert_eq!(fs::read_to_string(place.output("sub/up")).unwrap(), "data");
    assert_eq!(fs::read_to_string(place.output("chain")).unwrap(), "data");
    let manifest = place.manifest();
    let line = manifest["symlinks"].as_array().unwrap().iter().find(|line| line["path"] == "sub/up").unwrap();
    assert_eq!(line["target"], "../data");
    assert_published(&place);
    place.assert_nothing_is_held();
}

// promise: S-112
#[test]
fn links_out_of_the_scratch_stay_what_they_are() {
    let place = scratch();
    place.link("output/absolute", "/usr/share/x");
    place.link("output/climbing", "../../../usr/share/x");
    place.link("output/neighbour", "../../scratch-of-another/x");
    publish(&place, StagingRules::default()).unwrap();
    assert_eq!(text(&place, "absolute"), Path::new("/usr/share/x"));
    assert_eq!(text(&place, "climbing"), Path::new("/usr/share/x"), "the way up is another one from the output");
    assert_eq!(text(&place, "neighbour"), Path::new("/run/scratch-of-another/x"));
}

// promise: S-112
#[test]
fn a_link_to_elsewhere_in_the_scratch_holds_the_results_and_is_named() {
    for (to, target, why) in [
        ("/run/scratch/work/file", "work/file", Astray::Elsewhere),
        ("../../work/file", "work/file", Astray::Elsewhere),
        ("/tmp/part", "tmp/part", Astray::Elsewhere),
        ("/run/scratch", ".", Astray::Elsewhere),
        ("../../work/gone", "work/gone", Astray::Missing),
        ("/tmp/gone/deep", "tmp/gone/deep", Astray::Missing),
        ("../../work/circle", "../../work/circle", Astray::Endless),
    ] {
        let place = scratch();
        place.link("work/circle", "circle");
        place.link("output/sub/link", to);
        let found = astray(publish(&place, StagingRules::default()));
        assert_eq!(found, ("sub/link".into(), target.into(), why, 0), "{to}");
        assert_eq!(place.published(), [""; 0], "{to}");
    }
}

// promise: S-112
#[test]
fn all_such_links_are_counted_and_a_corrected_one_lets_the_results_go() {
    let place = scratch();
    for n in 0..4 {
        place.link(&format!("output/link{n}"), "../work/file");
    }
    let stager = place.run_publisher(false, StagingRules::default(), &Hooks::none());
    let error = stager.publish(place.find("output"), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the result `link0` is a symbolic link to `work/file`, which is in the scratch but no result (and 3 more such \
         links); publish what it leads to with --dereference, or move that below $RUNSEAL_OUTPUT"
    );
    for n in 0..4 {
        place.scratch.unlink(place.find("output"), format!("link{n}").as_bytes()).unwrap();
    }
    stager.publish(place.find("output"), None).unwrap();
    assert_published(&place);
}

// promise: S-112
#[test]
fn dereference_publishes_what_a_link_leads_to() {
    let place = scratch();
    place.link("output/file", "../work/file");
    place.link("output/tree", "/run/scratch/work/tree");
    place.link("output/part", "/tmp/part");
    place.link("output/data-again", "/run/scratch/output/data");
    // Below what is copied: a neighbour there is no neighbour of the link, a result is one.
    place.link("work/tree/neighbour", "leaf");
    place.link("work/tree/back", "../../output/data");
    place.scratch.setattr(place.find("work/file"), &SetAttr { mode: Some(0o750), ..SetAttr::default() }).unwrap();
    let totals = publish(&place, DEREFERENCE).unwrap();
    assert_eq!((totals.files, totals.symlinks, totals.dereferenced), (2 + 2 + 2, 2, 4));
    for (name, contents) in
        [("file", "file"), ("tree/leaf", "leaf"), ("tree/neighbour", "leaf"), ("part", "part"), ("tree/back", "data")]
    {
        assert_eq!(fs::read_to_string(place.output(name)).unwrap(), contents, "{name}");
    }
    for copied in ["file", "tree", "tree/neighbour", "part"] {
        assert!(!place.output(copied).is_symlink(), "{copied}");
    }
    assert_eq!(text(&place, "tree/back"), Path::new("../data"));
    assert_eq!(text(&place, "data-again"), Path::new("data"));
    assert_eq!(path::stat(&place.output("file")).unwrap().mode, 0o750);
    assert_published(&place);
    place.assert_nothing_is_held();
}

// promise: S-112
#[test]
fn a_copy_that_would_never_end_is_refused() {
    for (link, to) in [("output/whole", "/run/scratch"), ("work/tree/up", "..")] {
        let place = scratch();
        place.link("output/tree", "../work/tree");
        place.link(link, to);
        assert_eq!(astray(publish(&place, DEREFERENCE)).2, Astray::Circle, "{link}");
        assert_eq!(place.published(), [""; 0]);
    }
    let place = scratch();
    place.link("output/gone", "../work/gone");
    assert_eq!(astray(publish(&place, DEREFERENCE)).2, Astray::Missing);
}

fn to_bucket(place: &Place, bucket: &Arc<Bucket>, rules: StagingRules) -> Stager {
    let output = Location::S3(S3Uri { bucket: BUCKET.into(), key: "out/".into() });
    let cleared = check_in_by(bucket, &[], Some(&output), false, rules).unwrap();
    let stager = Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Hooks::none(), Arc::default());
    stager.with_view(runseal::stage::View { mountpoint: "/run/scratch".into(), aliases: Vec::new() })
}

// promise: S-112, S-79
#[test]
fn in_s3_links_are_in_the_manifest_or_what_they_lead_to_is_uploaded() {
    let (place, bucket) = (scratch(), Bucket::new());
    place.link("output/link", "/run/scratch/output/data");
    place.link("output/folder", "sub");
    place.link("output/dangling", "gone");
    place.link("output/sub/circle", "..");
    place.link("output/usr", "/usr");
    let from = place.find("output");
    let totals = to_bucket(&place, &bucket, StagingRules::default()).publish(from, Some(&bucket.cloud())).unwrap();
    assert_eq!((totals.listed_only, totals.rewritten, totals.dereferenced), (5, 1, 0));
    assert_eq!(bucket.keys(), ["out/data", "out/runseal-manifest.json", "out/sub/deep"]);
    let manifest = bucket.contents("out/runseal-manifest.json").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let line = manifest["symlinks"].as_array().unwrap().iter().find(|line| line["path"] == "link").unwrap();
    assert_eq!(line["target"], "data");

    let bucket = Bucket::new();
    let totals = to_bucket(&place, &bucket, DEREFERENCE).publish(from, Some(&bucket.cloud())).unwrap();
    assert_eq!((totals.files, totals.dereferenced), (2 + 2, 2), "a circle has no contents");
    assert_eq!(bucket.keys(), ["out/data", "out/folder/deep", "out/link", "out/runseal-manifest.json", "out/sub/deep"]);
    assert_eq!(bucket.contents("out/folder/deep").unwrap(), "deep");
    assert_eq!(bucket.contents("out/link").unwrap(), "data");

    let bucket = Bucket::new();
    place.link("output/astray", "../work/file");
    let stager = to_bucket(&place, &bucket, StagingRules::default());
    assert_eq!(astray(stager.publish(from, Some(&bucket.cloud()))).2, Astray::Elsewhere);
    assert_eq!(bucket.keys(), [""; 0]);
    stager.set_rules(DEREFERENCE);
    stager.publish(from, Some(&bucket.cloud())).unwrap();
    assert_eq!(bucket.contents("out/astray").unwrap(), "file");
}

/// An input `set` with links of every kind, and what they lead to beside it.
fn input() -> Place {
    let place = Place::new();
    fs::create_dir_all(place.input("set/dir")).unwrap();
    fs::create_dir_all(place.input("beside/dir")).unwrap();
    fs::write(place.input("set/dir/file"), "file").unwrap();
    fs::write(place.input("beside/dir/other"), "other").unwrap();
    place
}

fn check(place: &Place, rules: StagingRules) -> Result<runseal::preflight::Cleared, Report> {
    let input = InputSpec { source: place.input("set").into(), target: "renamed".into() };
    check_by(&[input], None, false, rules, u64::MAX)
}

fn fetch(place: &Place, rules: StagingRules) -> Result<Totals, StageError> {
    let cleared = check(place, rules).unwrap_or_else(|report| panic!("{report}"));
    let scratch = Arc::clone(&place.scratch);
    Stager::new(cleared, scratch, RUN.parse().unwrap(), Hooks::none(), Arc::default()).fetch(ROOT, None)
}

fn staged(place: &Place, path: &str) -> String {
    String::from_utf8(place.scratch.readlink(place.find(path)).unwrap()).unwrap()
}

// promise: S-111
#[test]
fn links_that_stay_in_an_input_stay_links() {
    let place = input();
    symlink("dir/file", place.input("set/plain")).unwrap();
    symlink("gone", place.input("set/dangling")).unwrap();
    symlink(place.input("set/dir"), place.input("set/absolute")).unwrap();
    symlink("../../set/dir/file", place.input("set/dir/round")).unwrap();
    let totals = fetch(&place, StagingRules::default()).unwrap();
    assert_eq!((totals.files, totals.symlinks), (1, 4));
    for (link, to) in [("plain", "dir/file"), ("dangling", "gone"), ("absolute", "dir"), ("dir/round", "file")] {
        assert_eq!(staged(&place, &format!("renamed/{link}")), to, "{link}");
    }
}

// promise: S-111
#[test]
fn a_link_that_leaves_an_input_is_a_finding_with_a_remedy() {
    for (to, problem, remedy) in [
        ("../beside/dir", "beside/dir", "--dereference"),
        ("/usr", "leads to /usr", "--dereference"),
        ("../gone", "does not exist", "correct the link"),
        ("../../in/circle", "never ends", "correct the link"),
    ] {
        let place = input();
        symlink("circle", place.input("circle")).unwrap();
        symlink(to, place.input("set/link")).unwrap();
        let report = check(&place, StagingRules::default()).expect_err(to);
        let [finding] = &report.findings[..] else { panic!("{report}") };
        assert_eq!(finding.code, Code::InputLinkOutside, "{to}");
        assert!(finding.subject.ends_with("in/set/link"), "{to}: {}", finding.subject);
        assert!(finding.problem.contains(problem) && finding.remedy.contains(remedy), "{to}: {finding:?}");
    }
}

// promise: S-111
#[test]
fn dereference_copies_what_a_link_out_of_an_input_leads_to() {
    let place = input();
    symlink("../beside", place.input("set/tree")).unwrap();
    symlink(place.input("beside/dir/other"), place.input("set/file")).unwrap();
    symlink("tree/dir", place.input("set/through")).unwrap();
    symlink("dir/other", place.input("beside/neighbour")).unwrap();
    symlink("../set/dir/file", place.input("beside/back")).unwrap();
    let totals = fetch(&place, DEREFERENCE).unwrap();
    assert_eq!((totals.files, totals.symlinks), (1 + 1 + 2 + 1, 1));
    for (path, contents) in
        [("tree/dir/other", "other"), ("file", "other"), ("through/other", "other"), ("tree/back", "file")]
    {
        assert_eq!(place.contents(&format!("renamed/{path}")), contents.as_bytes(), "{path}");
    }
    assert_eq!(staged(&place, "renamed/tree/neighbour"), "dir/other", "it stays in what is copied");
}

// promise: S-111
#[test]
fn links_in_inputs_that_cannot_be_copied_are_found() {
    let place = input();
    symlink("..", place.input("set/dir/up")).unwrap();
    assert!(check(&place, DEREFERENCE).is_ok(), "it stays in the input: a link is no copy");
    symlink("../beside", place.input("set/tree")).unwrap();
    symlink("../set", place.input("beside/back")).unwrap();
    let report = check(&place, DEREFERENCE).unwrap_err();
    let [finding] = &report.findings[..] else { panic!("{report}") };
    assert!(finding.code == Code::InputLinkOutside && finding.subject.ends_with("in/beside/back"), "{report}");
    assert!(finding.problem.contains("which it is in itself"), "{report}");
    let place = input();
    symlink("../gone", place.input("set/link")).unwrap();
    assert_eq!(check(&place, DEREFERENCE).unwrap_err().findings[0].code, Code::InputLinkOutside);
}

// promise: S-111
#[test]
fn what_a_link_leads_to_must_not_change_meanwhile() {
    let place = input();
    symlink("../beside/dir/other", place.input("set/link")).unwrap();
    let cleared = check(&place, DEREFERENCE).unwrap();
    fs::write(place.input("beside/dir/other"), "changed").unwrap();
    let scratch = Arc::clone(&place.scratch);
    let stager = Stager::new(cleared, scratch, RUN.parse().unwrap(), Hooks::none(), Arc::default());
    assert!(matches!(stager.fetch(ROOT, None), Err(StageError::Modified { path }) if path.ends_with("dir/other")));
}
