//! Root stages for others, and in directories of others: what they plant there leads nowhere they could not go themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::geteuid;
use runseal::aws::UploadSettings;
use runseal::fs::{ROOT, SetAttr};
use runseal::preflight::{Cleared, Report, Request};
use runseal::spec::{Identity, InputSpec, Location, StagingRules};
use runseal::stage::{Stager, View};
use runseal::sys::identity::assume;

use crate::support::{Hooks, MANIFEST, MOUNT, PARTIAL, Place, RUN, tree};

const MALLORY: u32 = 4_001;
/// A group of hers.
const TEAM: u32 = 4_999;
const SHARED: StagingRules =
    StagingRules { dereference: false, keep_old: false, allow_empty: false, shared_output: true, keep_set_id: false };

/// A directory of hers, one of root's that she cannot enter, and results.
struct Scene {
    place: Place,
    theirs: PathBuf,
    secret: PathBuf,
}

impl Scene {
    fn set() -> Option<Self> {
        if !geteuid().is_root() {
            println!("SKIP: not root");
            return None;
        }
        let place = Place::new();
        fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o755)).unwrap();
        let (theirs, secret) = (place.dir.join("theirs"), place.dir.join("secret"));
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(MALLORY), Some(MALLORY)).unwrap();
        fs::create_dir(&secret).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(secret.join("key"), "of root").unwrap();
        place.results(&[
            ("a", "planted"),
            ("d/", ""),
            ("d/b", "planted"),
            ("d/e/", ""),
            ("d/e/c", "planted"),
            ("key", "x"),
        ]);
        Some(Self { place, theirs, secret })
    }

    fn check(
        &self,
        inputs: &[&Path],
        output: Option<&Path>,
        who: Option<&Identity>,
        rules: StagingRules,
    ) -> Result<Cleared, Report> {
        let input = |path: &&Path| InputSpec { source: path.to_path_buf().into(), target: "in".into() };
        let inputs: Vec<_> = inputs.iter().map(input).collect();
        let output = output.map(|path| Location::Path(path.to_owned()));
        let request = Request {
            run: &RUN.parse().unwrap(),
            inputs: &inputs,
            output: output.as_ref(),
            uploads: &UploadSettings { overwrite: true, ..UploadSettings::default() },
            rules,
            on_behalf: who,
            run_key: None,
            explain: false,
            space: u64::MAX,
        };
        runseal::preflight::check(&request, None)
    }

    fn stager(&self, cleared: Cleared, hooks: Arc<Hooks>) -> Stager {
        let stager = Stager::new(cleared, Arc::clone(&self.place.scratch), RUN.parse().unwrap(), hooks, Arc::default());
        stager.with_view(View { mountpoint: MOUNT.into(), aliases: Vec::new() })
    }

    /// Whether what is root's is as it was.
    fn assert_untouched(&self) {
        let names: Vec<_> =
            tree(&self.secret).into_iter().map(|(path, node)| (path, node.mode, node.contents)).collect();
        let expected = [(PathBuf::new(), 0o700, Vec::new()), ("key".into(), 0o644, b"of root".to_vec())];
        assert_eq!(names, expected);
    }
}

fn mallory() -> Identity {
    Identity { uid: MALLORY, gid: MALLORY, groups: vec![TEAM] }
}

/// As she does it.
fn by_mallory(act: impl FnOnce()) {
    let _her_rights = assume(MALLORY, MALLORY, &[TEAM]).unwrap();
    act();
}

// promise: T-50
#[test]
fn what_is_staged_for_a_user_is_reached_with_the_rights_of_that_user() {
    let Some(scene) = Scene::set() else { return };
    let (link, file) = (scene.theirs.join("in"), scene.theirs.join("file"));
    by_mallory(|| {
        symlink(scene.secret.join("key"), &link).unwrap();
        symlink(&scene.secret, scene.theirs.join("out")).unwrap();
        symlink(scene.secret.join("new"), scene.theirs.join("later")).unwrap();
        fs::write(&file, "hers").unwrap();
    });
    let who = mallory();
    for input in [&link, &scene.secret.join("key"), &scene.secret] {
        let report = scene.check(&[input], None, Some(&who), StagingRules::default()).unwrap_err();
        assert!(report.to_string().contains("Permission denied"), "{report}");
    }
    for output in [&scene.theirs.join("out"), &scene.theirs.join("later"), &scene.secret, &scene.place.dir.join("new")]
    {
        scene.check(&[], Some(output), Some(&who), SHARED).unwrap_err();
    }
    scene.assert_untouched();

    // What she may read herself is read, by her groups too, and what is published is hers.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&file, Some(0), Some(TEAM)).unwrap();
    let output = scene.theirs.join("results");
    let cleared = scene.check(&[&file], Some(&output), Some(&who), StagingRules::default()).unwrap();
    let stager = scene.stager(cleared, Hooks::none());
    stager.fetch(ROOT, None).unwrap();
    assert_eq!(scene.place.contents("in"), b"hers");
    stager.publish(ROOT, None).unwrap();
    let published = tree(&output);
    assert!(published.values().all(|node| node.owner == (MALLORY, MALLORY)), "{published:?}");
    assert_eq!(published[Path::new("d/e/c")].contents, b"planted");
    assert!(fs::write(scene.secret.join("probe"), "").is_ok(), "this thread has its rights back");
}

// promise: T-50
#[test]
fn a_link_put_in_the_way_between_check_and_copy_is_of_no_use() {
    let Some(scene) = Scene::set() else { return };
    let (set, aside) = (scene.theirs.join("set"), scene.theirs.join("aside"));
    by_mallory(|| {
        fs::create_dir_all(set.join("sub")).unwrap();
        fs::write(set.join("sub/key"), "of root").unwrap();
    });
    // The same name, size and times: only where it is differs.
    let swap = || {
        by_mallory(|| {
            fs::rename(set.join("sub"), &aside).unwrap();
            symlink(&scene.secret, set.join("sub")).unwrap();
        });
    };
    let cleared = scene.check(&[&set], None, None, StagingRules::default()).unwrap();
    swap();
    let error = scene.stager(cleared, Hooks::none()).fetch(ROOT, None).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
    // As hers it is not even seen.
    let report = scene.check(&[&set.join("sub")], None, Some(&mallory()), StagingRules::default()).unwrap_err();
    assert!(report.to_string().contains("Permission denied"), "{report}");
    scene.assert_untouched();
}

// promise: T-51
#[test]
fn root_publishes_to_no_directory_that_others_may_change_unless_told() {
    let Some(scene) = Scene::set() else { return };
    let open = scene.place.dir.join("open");
    fs::create_dir_all(open.join("inner")).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for output in [scene.theirs.clone(), scene.theirs.join("new"), open.clone(), open.join("inner"), open.join("new")] {
        let report = scene.check(&[], Some(&output), None, StagingRules::default()).unwrap_err();
        assert!(report.to_string().contains("--shared-output"), "{}: {report}", output.display());
        scene.check(&[], Some(&output), None, SHARED).unwrap();
    }
    // Others may add names there, but not exchange what is root's.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    scene.check(&[], Some(&open.join("inner")), None, StagingRules::default()).unwrap();

    // What has become theirs since is found when it is published.
    let output = scene.place.dir.join("out");
    let cleared = scene.check(&[], Some(&output), None, StagingRules::default()).unwrap();
    let stager = scene.stager(cleared, Hooks::none());
    fs::create_dir(&output).unwrap();
    chown(&output, Some(MALLORY), None).unwrap();
    let error = stager.publish(ROOT, None).unwrap_err();
    assert!(error.to_string().contains("--shared-output"), "{error}");
    assert_eq!(scene.place.published(), [""; 0]);
    stager.set_rules(SHARED);
    stager.publish(ROOT, None).unwrap();
    assert!(scene.place.published().contains(&MANIFEST.to_owned()));
}

// promise: T-51
#[test]
fn who_owns_the_output_leads_no_result_out_of_it() {
    let Some(scene) = Scene::set() else { return };
    let output = scene.theirs.join("out");
    by_mallory(|| fs::create_dir(&output).unwrap());
    // To move what is root's into another directory she has no right.
    let (partial, aside, secret) = (output.join(PARTIAL), output.join("aside"), scene.secret.clone());
    let swap = move || {
        by_mallory(|| {
            fs::rename(&partial, &aside).unwrap();
            symlink(&secret, &partial).unwrap();
        });
    };
    for hooks in [Hooks::once_under_way(swap.clone()), Hooks::once_written(swap)] {
        let cleared = scene.check(&[], Some(&output), None, SHARED).unwrap();
        let published = scene.stager(cleared, hooks).publish(ROOT, None);
        scene.assert_untouched();
        // The directory that is held is where it was told to be, wherever it is called now.
        published.unwrap();
        assert_eq!(fs::read(output.join("d/e/c")).unwrap(), b"planted");
        by_mallory(|| fs::remove_file(output.join(PARTIAL)).unwrap());
        by_mallory(|| fs::remove_dir(output.join("aside")).unwrap());
    }
}

// promise: T-51
#[test]
fn nor_does_a_race() {
    let Some(scene) = Scene::set() else { return };
    let output = scene.theirs.join("out");
    by_mallory(|| fs::create_dir(&output).unwrap());
    let over = AtomicBool::new(false);
    let (mut whole, mut broken) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            by_mallory(|| {
                let (partial, aside) = (output.join(PARTIAL), output.join("aside"));
                while !over.load(Ordering::Relaxed) {
                    for name in [PARTIAL, "d"] {
                        let place = output.join(name);
                        if fs::rename(&place, &aside).is_ok() {
                            let _ = symlink(&scene.secret, &place);
                            let _ = fs::remove_file(&place);
                            let _ = fs::rename(&aside, &place);
                            let _ = fs::rename(&aside, output.join("lost"));
                        }
                    }
                    let _ = fs::remove_file(&partial);
                }
            });
        });
        for _ in 0..40 {
            let cleared = scene.check(&[], Some(&output), None, SHARED);
            let published = cleared.map(|cleared| scene.stager(cleared, Hooks::none()).publish(ROOT, None));
            match published {
                Ok(Ok(_)) => whole += 1,
                _ => broken += 1,
            }
            scene.assert_untouched();
            for left in [PARTIAL, "aside", "lost"] {
                let _ = fs::remove_dir_all(output.join(left));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{whole} whole, {broken} refused or broken off");
}

// promise: T-53
#[test]
fn set_user_id_stays_in_the_scratch_unless_it_is_asked_for() {
    for (keep, file, group) in [(false, 0o755, 0o750), (true, 0o4755, 0o2750)] {
        let place = Place::new();
        place.results(&[("tool", "#!"), ("group", "#!")]);
        for (name, mode) in [("tool", 0o4755), ("group", 0o2750)] {
            place.scratch.setattr(place.find(name), &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
        }
        let rules = StagingRules { keep_set_id: keep, ..StagingRules::default() };
        place.run_publisher(false, rules, &Hooks::none()).publish(ROOT, None).unwrap();
        let mode = |name| fs::metadata(place.output(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("tool"), mode("group")), (file, group), "keep: {keep}");
        let manifest = place.manifest();
        let told = |name: &str| {
            manifest["files"].as_array().unwrap().iter().find(|f| f["path"] == name).unwrap()["mode"].clone()
        };
        assert_eq!((told("tool"), told("group")), ("4755".into(), "2750".into()));
    }
}
