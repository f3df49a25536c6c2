//! Runs with inputs and an output through the API: staged, published, held, resumed; who may name what.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::aws_double::{
    Credential, Denial, Double, Effect, Fault, INPUT_KEY, KeyState, Layer, OUTPUT_KEY, Wording, World,
};
use crate::node::{ALICE, Answer, BOB, Node, block_on, mounts_below};
use crate::program::{phase, require_host, wait_until};

const MANIFEST: &str = "out/runseal-manifest.json";

/// A node that knows where AWS is, but has no credentials, and the double behind it.
struct Site {
    node: Node,
    double: Double,
}

impl Site {
    fn new(more: &str) -> Self {
        let double = Double::start(World::default());
        double.put("inputs", "reads/a.fq", "ACGT");
        double.put("inputs", "reads/deep/b.fq", "TTTT");
        let mut node = Node::prepare(more);
        let secret = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        node.environment = double.environment("runner");
        node.environment.retain(|(name, _)| !secret.contains(&name.as_str()));
        node.launch();
        Self { node, double }
    }

    fn credentials(&self) -> Value {
        let (id, Credential { secret, token, .. }) = self.double.credentials("runner");
        json!({ "access_key_id": id, "secret_access_key": secret, "session_token": token })
    }

    /// What the environment of the service withholds.
    fn with_credentials(more: &str) -> Self {
        let mut site = Self::new(more);
        site.node.signal(Signal::SIGTERM);
        site.node.wait();
        site.node.environment = site.double.environment("runner");
        site.node.launch();
        site
    }

    /// A request for a run that reads all and publishes, with credentials, for ALICE.
    fn request(&self, id: &str) -> Value {
        json!({
            "id": id,
            "size": "64M",
            "owner": { "uid": ALICE, "gid": BOB },
            "inputs": ["s3://inputs/reads/a.fq", "s3://inputs/reads/=all"],
            "output": "s3://outputs/out",
            "aws": { "credentials": self.credentials() },
        })
    }

    fn mountpoint(&self, id: &str) -> PathBuf {
        self.node.root().join(id)
    }

    #[track_caller]
    fn assert_nothing_left(&self, id: &str) {
        assert!(!self.mountpoint(id).exists() && !Path::new("/run/runseal/@runs").join(id).exists());
        assert!(mounts_below(self.node.path()).is_empty());
        assert_eq!(self.double.uploads(), []);
    }
}

/// Where one of `secrets` can be read that must not be: state, log, arguments, environments.
fn leaks(site: &Site, id: &str, secrets: &[String]) -> Vec<String> {
    let has =
        |bytes: &[u8]| secrets.iter().any(|secret| bytes.windows(secret.len()).any(|part| part == secret.as_bytes()));
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in [Path::new("/run/runseal/@runs").join(id), site.node.path().to_owned()] {
        files.extend(fs::read_dir(directory).expect("there").map(|entry| entry.expect("entry").path()));
    }
    for process in fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path()) {
        // This process has them, of course, in its memory only.
        files.extend(["cmdline", "environ"].map(|name| process.join(name)));
    }
    let found = files.into_iter().filter(|file| fs::read(file).is_ok_and(|bytes| has(&bytes)));
    found.map(|file| file.display().to_string()).collect()
}

// promise: S-86, T-37
#[test]
fn a_run_is_staged_and_published_even_if_the_service_dies_in_between() {
    require_host!();
    let mut site = Site::new("");
    let id = site.node.fresh_id();
    let credentials = site.credentials();
    let secrets: Vec<String> =
        credentials.as_object().expect("object").values().filter_map(Value::as_str).map(str::to_owned).collect();
    let run = site.node.must("POST", "/v1/runs", &site.request(&id).to_string());
    assert_eq!((&run["state"], &run["user"]), (&"serving".into(), &ALICE.into()));
    assert_eq!(run["inputs"], json!(["s3://inputs/reads/a.fq=a.fq", "s3://inputs/reads/=all"]));
    assert_eq!(run["output"], "s3://outputs/out/");
    let scratch = site.mountpoint(&id);
    for (name, text) in [("input/a.fq", "ACGT"), ("input/all/a.fq", "ACGT"), ("input/all/deep/b.fq", "TTTT")] {
        assert_eq!(fs::read_to_string(scratch.join(name)).expect("staged"), text);
    }
    for name in ["input", "input/a.fq", "input/all", "input/all/deep/b.fq", "output", "work", "tmp"] {
        let found = fs::metadata(scratch.join(name)).expect("made");
        assert_eq!((found.uid(), found.gid()), (ALICE, BOB), "{name}");
    }
    fs::create_dir(scratch.join("output/sub")).expect("made");
    fs::write(scratch.join("output/sub/result"), "done\n").expect("written");
    std::os::unix::fs::symlink("/etc", scratch.join("output/link")).expect("linked");

    site.node.signal(Signal::SIGKILL);
    site.node.wait();
    site.node.launch();
    assert_eq!(site.node.must("GET", &format!("/v1/runs/{id}"), ""), run, "taken over as it was");
    assert!(leaks(&site, &id, &secrets).is_empty(), "{:?}", leaks(&site, &id, &secrets));
    let said = site.node.must_not("DELETE", &format!("/v1/runs/{id}"), "", "held");
    assert!(said.contains("not published"), "{said}");
    site.node.must_not("POST", &format!("/v1/runs/{id}/resume"), "", "busy");

    let published = site.node.must("POST", &format!("/v1/runs/{id}/publish"), "");
    assert_eq!(published["state"], "published");
    assert_eq!(site.double.read("outputs", "out/sub/result").expect("published"), "done\n");
    assert!(site.double.read("outputs", MANIFEST).is_some());
    assert!(secrets.iter().all(|secret| !published.to_string().contains(secret) && !site.node.log().contains(secret)));
    site.node.must_not("POST", &format!("/v1/runs/{id}/publish"), "", "busy");
    site.node.must("DELETE", &format!("/v1/runs/{id}"), "");
    site.assert_nothing_left(&id);
}

// promise: S-110
#[test]
fn an_empty_output_is_held_until_it_is_allowed() {
    require_host!();
    let site = Site::new("");
    let id = site.node.fresh_id();
    site.node.must("POST", "/v1/runs", &site.request(&id).to_string());
    fs::write(site.mountpoint(&id).join("work/result"), "forgotten").expect("written");
    let publish = format!("/v1/runs/{id}/publish");
    let said = site.node.must_not("POST", &publish, "", "held");
    assert!(said.contains("work: 1 file of 9 B"), "{said}");
    assert_eq!(site.node.must("GET", &format!("/v1/runs/{id}"), "")["state"], "held");
    assert_eq!(site.node.must("POST", &publish, "{\"allow_empty\": true}")["state"], "published");
    assert_eq!(site.double.keys("outputs"), [""; 0], "no manifest stands in the way of the next run");
    site.node.must("DELETE", &format!("/v1/runs/{id}"), "");
    site.assert_nothing_left(&id);
}

// promise: S-87
#[test]
fn what_stands_in_the_way_comes_back_with_its_repair() {
    require_host!();
    let site = Site::new("");
    let id = site.node.fresh_id();
    let denial = Denial::of("kms:Decrypt").on(INPUT_KEY).worded(Wording::NotAllowed(Layer::Identity));
    site.double.change(|world| {
        world.persona("runner").deny(denial);
    });
    let answer = block_on(site.node.call("POST", "/v1/runs", &site.request(&id).to_string()));
    assert_eq!(answer.status, 403, "{answer:?}");
    answer.expect_problem("forbidden");
    let finding = &answer.body["findings"][0];
    assert_eq!(
        (&finding["code"], &finding["action"], &finding["key"]),
        (&"IMPORT_FAILED".into(), &"kms:Decrypt".into(), &INPUT_KEY.into())
    );
    assert!(finding["remedy"].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
    assert!(finding["repair"]["iam"].to_string().contains("kms:Decrypt"), "{finding}");
    site.assert_nothing_left(&id);

    let mut missing = site.request(&id);
    missing["inputs"] = json!(["s3://inputs/none"]);
    site.node.must_not("POST", "/v1/runs", &missing.to_string(), "no-input");
    site.double.change(|world| world.expire("runner"));
    let (_, fresh) = (missing, site.request(&id));
    let mut nobody = fresh;
    nobody["aws"]["credentials"]["access_key_id"] = "AKIAIOSFODNN7EXAMPLE".into();
    site.node.must_not("POST", "/v1/runs", &nobody.to_string(), "unavailable");
    site.assert_nothing_left(&id);
}

// promise: S-88
#[test]
fn results_that_cannot_be_published_are_held_until_they_can() {
    require_host!();
    let mut site = Site::new("");
    let id = site.node.fresh_id();
    let path = format!("/v1/runs/{id}");
    site.node.must("POST", "/v1/runs", &site.request(&id).to_string());
    fs::write(site.mountpoint(&id).join("output/result"), "kept\n").expect("written");

    site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Disabled);
    let said = site.node.must_not("POST", &format!("{path}/publish"), "", "held");
    assert!(said.contains("KMS.DisabledException"), "{said}");
    let held = site.node.must("GET", &path, "");
    assert_eq!(held["state"], "held");
    assert!(held["problem"].as_str().is_some_and(|problem| problem.contains("KMS.DisabledException")), "{held}");
    site.node.must_not("DELETE", &path, "", "held");
    assert_eq!(site.double.read("outputs", MANIFEST), None);

    site.node.signal(Signal::SIGKILL);
    site.node.wait();
    site.node.launch();
    assert_eq!(site.node.must("GET", "/v1/runs", "")["runs"][0]["state"], "held", "known without being asked again");
    site.double.change(|world| {
        world.key(OUTPUT_KEY).state = KeyState::Enabled;
        world.expire("runner");
    });
    let said = site.node.must_not("POST", &format!("{path}/resume"), "", "held");
    assert!(said.contains("ExpiredToken"), "{said}");
    let renewed = json!({ "credentials": site.credentials() }).to_string();
    assert_eq!(site.node.must("POST", &format!("{path}/resume"), &renewed)["state"], "published");
    assert_eq!(site.double.read("outputs", "out/result").expect("published"), "kept\n");
    site.node.must("DELETE", &path, "");

    let given_up = site.node.fresh_id();
    let mut again = site.request(&given_up);
    again["overwrite"] = true.into();
    site.node.must("POST", "/v1/runs", &again.to_string());
    site.node.must("DELETE", &format!("/v1/runs/{given_up}?discard=true"), "");
    site.assert_nothing_left(&given_up);
}

// promise: T-37
#[test]
fn users_have_neither_the_paths_nor_the_credentials_of_the_node() {
    require_host!();
    let site = Site::new("");
    let id = site.node.fresh_id();
    let as_alice =
        |request: &Value| -> Option<Answer> { site.node.call_as(ALICE, "POST", "/v1/runs", &request.to_string()) };
    let mut own = site.request(&id);
    own["owner"] = Value::Null;
    for (change, word) in [
        (json!({ "aws": {} }), "aws.credentials"),
        (json!({ "inputs": ["/etc/shadow"] }), "/etc/shadow"),
        (json!({ "inputs": ["etc/shadow=x"] }), "etc/shadow"),
        (json!({ "output": "/etc/cron.d" }), "/etc/cron.d"),
        (json!({ "aws": { "profile": "admin", "credentials": site.credentials() } }), "aws.profile"),
        (json!({ "inputs": [], "output": null, "aws": { "run_key_kms": INPUT_KEY } }), "aws.credentials"),
    ] {
        let mut request = own.clone();
        for (name, value) in change.as_object().expect("an object") {
            request[name] = value.clone();
        }
        let Some(answer) = as_alice(&request) else { return println!("SKIP: setpriv or curl is missing") };
        let said = answer.expect_problem("forbidden");
        assert!(said.contains(word), "{said}");
    }
    site.assert_nothing_left(&id);
    assert_eq!(site.double.calls().len(), 0, "nobody was asked in their name");
    for (body, word) in [
        (json!({ "inputs": ["s3://inputs/x"], "aws": { "credentials": "hush-hush" } }), "access_key_id"),
        (json!({ "inputs": ["s3://inputs/x"], "aws": { "endpoint": "http://127.0.0.1" } }), "endpoint"),
        (
            json!({ "output": "s3://outputs/x", "aws": { "sse": "AES256", "sse_kms_key_id": OUTPUT_KEY } }),
            "takes no KMS key",
        ),
        (json!({ "inputs": ["relative"] }), "absolute"),
        (json!({ "overwrite": true }), "nothing is staged"),
    ] {
        let said = site.node.must_not("POST", "/v1/runs", &body.to_string(), "usage");
        assert!(said.contains(word) && !said.contains("hush"), "{body}: {said}");
    }

    let made = as_alice(&own).expect("as before");
    assert_eq!((made.status, &made.body["user"]), (201, &ALICE.into()), "{made:?}");
    fs::write(site.mountpoint(&id).join("output/result"), "").expect("written");
    for (user, path) in [(BOB, "publish"), (BOB, "resume")] {
        let answer = site.node.call_as(user, "POST", &format!("/v1/runs/{id}/{path}"), "{}").expect("as before");
        answer.expect_problem("not-found");
    }
    let published = site.node.call_as(ALICE, "POST", &format!("/v1/runs/{id}/publish"), "{}").expect("as before");
    assert_eq!(published.body["state"], "published", "{published:?}");
    site.node.call_as(ALICE, "DELETE", &format!("/v1/runs/{id}"), "").expect("as before");
    site.assert_nothing_left(&id);
}

// promise: T-37
#[test]
fn users_have_the_credentials_of_the_node_if_the_administrator_says_so() {
    require_host!();
    for (more, allowed) in [("", false), ("[aws]\nnode_credentials = true", true)] {
        let site = Site::with_credentials(more);
        let id = site.node.fresh_id();
        let mut request = site.request(&id);
        (request["owner"], request["aws"]) = (Value::Null, json!({}));
        let Some(answer) = site.node.call_as(ALICE, "POST", "/v1/runs", &request.to_string()) else {
            return println!("SKIP: setpriv or curl is missing");
        };
        if !allowed {
            answer.expect_problem("forbidden");
            continue;
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let scratch = site.mountpoint(&id);
        let work = format!("cat {0}/input/a.fq {0}/input/all/deep/b.fq >{0}/output/joined", scratch.display());
        let alice = ALICE.to_string();
        let rights = ["--reuid", &alice, "--regid", &alice, "--clear-groups", "sh", "-ec", &work];
        assert!(Command::new("setpriv").args(rights).status().expect("it was there").success());
        let path = format!("/v1/runs/{id}");
        let published = site.node.call_as(ALICE, "POST", &format!("{path}/publish"), "{}").expect("as before");
        assert_eq!(published.body["state"], "published", "{published:?}");
        assert_eq!(site.double.read("outputs", "out/joined").expect("published"), "ACGTTTTT");
        site.node.call_as(ALICE, "DELETE", &path, "").expect("as before");
        site.assert_nothing_left(&id);
    }
}

// promise: S-86
#[test]
fn a_run_that_is_staging_can_be_ended() {
    require_host!();
    let site = Site::new("");
    site.double.fault(Fault::on("GetObject", Effect::Delay(Duration::from_secs(30))).at("inputs/reads/deep/b.fq"));
    let id = site.node.fresh_id();
    let path = format!("/v1/runs/{id}");
    let request = site.request(&id).to_string();
    std::thread::scope(|scope| {
        let made = scope.spawn(|| block_on(site.node.call("POST", "/v1/runs", &request)));
        wait_until("its inputs are on their way", || phase(&id).as_deref() == Some("fetch"));
        assert_eq!(site.node.must("GET", &path, "")["state"], "starting");
        site.node.must_not("DELETE", &path, "", "busy");
        site.node.must("DELETE", &format!("{path}?discard=true"), "");
        assert!(made.join().expect("answered").status >= 400);
    });
    site.assert_nothing_left(&id);
}

#[test]
fn a_held_run_of_the_service_is_resumed_from_the_command_line() {
    require_host!();
    let site = Site::new("");
    let id = site.node.fresh_id();
    let path = format!("/v1/runs/{id}");
    site.node.must("POST", "/v1/runs", &site.request(&id).to_string());
    fs::write(site.mountpoint(&id).join("output/result"), "").expect("written");
    site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Disabled);
    site.node.must_not("POST", &format!("{path}/publish"), "", "held");
    site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Enabled);
    let resumed = Command::new(env!("CARGO_BIN_EXE_runseal")).args(["resume", &id]).output().expect("it runs");
    assert!(resumed.status.success(), "{resumed:?}");
    assert_eq!(site.node.must("GET", &path, "")["state"], "published");
    assert!(site.double.read("outputs", MANIFEST).is_some());
    site.node.must("DELETE", &path, "");
    site.assert_nothing_left(&id);
}

#[test]
fn root_stages_paths_of_the_node() {
    require_host!();
    let node = Node::start("");
    let (id, output) = (node.fresh_id(), node.path().join("results"));
    fs::write(node.path().join("data"), "local\n").expect("written");
    let body = json!({ "id": id, "size": "64M", "inputs": [node.path().join("data")], "output": output });
    node.must("POST", "/v1/runs", &body.to_string());
    let scratch = node.root().join(&id);
    fs::copy(scratch.join("input/data"), scratch.join("output/copy")).expect("copied");
    node.must("POST", &format!("/v1/runs/{id}/publish"), "");
    assert_eq!(fs::read_to_string(output.join("copy")).expect("published"), "local\n");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert!(mounts_below(node.path()).is_empty());
}

// promise: T-50
#[test]
fn root_stages_paths_for_a_user_with_the_rights_of_that_user() {
    require_host!();
    let node = Node::start("");
    let (home, secret) = (node.path().join("home"), node.path().join("secret"));
    for directory in [&home, &secret] {
        fs::create_dir(directory).expect("made");
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).expect("set");
    fs::write(secret.join("key"), "of root").expect("written");
    std::os::unix::fs::chown(&home, Some(ALICE), Some(BOB)).expect("given");
    fs::write(home.join("data"), "hers\n").expect("written");
    for (link, to) in [("in", secret.join("key")), ("out", secret.clone())] {
        std::os::unix::fs::symlink(to, home.join(link)).expect("planted");
    }
    let request = |id: &str, input: &str, output: &str| {
        let owner = json!({ "uid": ALICE, "gid": BOB });
        json!({ "id": id, "size": "64M", "owner": owner, "inputs": [home.join(input)], "output": home.join(output) })
            .to_string()
    };
    let id = node.fresh_id();
    for (input, output) in [("in", "results"), ("data", "out")] {
        let answer = block_on(node.call("POST", "/v1/runs", &request(&id, input, output)));
        assert!(answer.status >= 400 && answer.text.contains("Permission denied"), "{answer:?}");
    }
    node.must("POST", "/v1/runs", &request(&id, "data", "results"));
    let scratch = node.root().join(&id);
    fs::copy(scratch.join("input/data"), scratch.join("output/copy")).expect("copied");
    node.must("POST", &format!("/v1/runs/{id}/publish"), "");
    let found = fs::metadata(home.join("results/copy")).expect("published");
    assert_eq!((found.uid(), found.gid()), (ALICE, BOB));
    assert_eq!(fs::read_to_string(home.join("results/copy")).expect("published"), "hers\n");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert_eq!(fs::read_dir(&secret).expect("listed").count(), 1);
    assert!(mounts_below(node.path()).is_empty());
}

// promise: T-52
#[test]
fn nobody_mounts_in_a_live_run_and_what_is_mounted_there_is_found_before_publishing() {
    require_host!();
    let node = Node::start("");
    let (id, output) = (node.fresh_id(), node.path().join("results"));
    node.must("POST", "/v1/runs", &json!({ "id": id, "size": "64M", "output": output }).to_string());
    let (root, scratch) = (node.root(), node.root().join(&id));
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).expect("set");
    fs::create_dir(root.join("deep")).expect("made");
    // A user has names in a root, and nothing below; least of all in a run of root.
    for place in [scratch.join("output"), scratch.join("new"), scratch.clone(), root.join("deep/own")] {
        let body = json!({ "mountpoint": place, "size": "64M" }).to_string();
        let Some(answer) = node.call_as(ALICE, "POST", "/v1/runs", &body) else {
            return println!("SKIP: setpriv or curl is missing");
        };
        assert!([403, 409].contains(&answer.status), "{answer:?}");
    }
    for place in [scratch.join("output"), scratch.join("new"), scratch.clone()] {
        node.must_not("POST", "/v1/runs", &json!({ "mountpoint": place, "size": "64M" }).to_string(), "in-use");
    }
    // Nor in a scratch that is no run of this node.
    let foreign = root.join("foreign");
    fs::create_dir(&foreign).expect("made");
    mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &foreign);
    for place in [foreign.join("own"), foreign.clone()] {
        let answer =
            block_on(node.call("POST", "/v1/runs", &json!({ "mountpoint": place, "size": "64M" }).to_string()));
        assert!([403, 409].contains(&answer.status) && answer.text.contains("mounted there"), "{answer:?}");
    }
    unmount(&foreign);

    // Whoever is root can do it all the same: then nothing is published that misses what was written there.
    fs::create_dir(scratch.join("output/sub")).expect("made");
    mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &scratch.join("output/sub"));
    fs::write(scratch.join("output/sub/result"), "lost").expect("written");
    let said = node.must_not("POST", &format!("/v1/runs/{id}/publish"), "", "held");
    assert!(said.contains("something is mounted on") && said.contains("output/sub"), "{said}");
    assert!(!output.exists());
    unmount(&scratch.join("output/sub"));
    fs::write(scratch.join("output/sub/result"), "kept").expect("written");
    node.must("POST", &format!("/v1/runs/{id}/resume"), "");
    assert_eq!(fs::read_to_string(output.join("sub/result")).expect("published"), "kept");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert!(mounts_below(node.path()).is_empty());
}

fn mount(options: &[&str], place: &Path) {
    assert!(Command::new("mount").args(options).arg(place).status().expect("mount runs").success());
}

fn unmount(place: &Path) {
    assert!(Command::new("umount").arg(place).status().expect("umount runs").success());
}
