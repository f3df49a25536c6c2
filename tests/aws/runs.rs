//! Whole runs through the binary: staged from S3, published to it, held, resumed, given up, interrupted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::aws_double::{
    ACCOUNT, Denial, Effect, Fault, INPUT_KEY, KeyState, Layer, OUTPUT_KEY, Role, Service, Wording,
};
use crate::fixture::Site;
use crate::program::{Live, Said, finish, fresh_id, lives, require_host, runseal, say, send, status, text, wait_until};

const MANIFEST: &str = "out/runseal-manifest.json";

impl Site {
    fn new() -> Self {
        Self::holding([("reads/a.fq", b"ACGT".to_vec()), ("reads/deep/b.fq", b"TTTT".to_vec())])
    }

    /// `runseal run FLAGS -- sh -euc SCRIPT`, to its end.
    fn run(&self, flags: &[&str], script: &str) -> Said {
        let mut command = self.runseal();
        command.arg("run").args(flags).args(["--", "sh", "-euc", script]);
        finish(command)
    }

    fn live(&self, flags: &[&str], script: &str) -> Live {
        Live::start_with(self.runseal(), self.dir.path(), flags, script)
    }

    /// Results of 20 MiB, which go up in two parts, and a small one, for `out/`.
    fn live_with_results(&self, flags: &[&str]) -> Live {
        const SCRIPT: &str = "head -c 20971520 /dev/zero >\"$RUNSEAL_OUTPUT/large\"; echo small >\"$RUNSEAL_OUTPUT/small\"; \
             ready; while [ ! -e go ]; do sleep 0.05; done";
        let go = self.path("go");
        let script = SCRIPT.replace(" go ", &format!(" '{}' ", go.display()));
        self.live(&[&["--output", "s3://outputs/out/"], flags].concat(), &script)
    }

    /// Lets the command of [`Site::live_with_results`] end.
    fn go(&self) {
        fs::write(self.path("go"), "").expect("written");
    }

    fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).expect("written")).expect("JSON")
    }

    #[track_caller]
    fn assert_published(&self) {
        assert_eq!(self.double.read("outputs", "out/small").expect("published"), "small\n");
        assert_eq!(self.double.read("outputs", "out/large").expect("published").len(), 20 << 20);
        assert!(self.double.read("outputs", MANIFEST).is_some());
        assert_eq!(self.double.uploads(), []);
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert_eq!(self.double.keys("outputs"), [""; 0]);
        assert_eq!(self.double.uploads(), []);
    }

    #[track_caller]
    fn assert_nothing_published(&self) {
        assert_eq!(self.double.read("outputs", MANIFEST), None);
        assert_eq!(self.double.uploads(), []);
    }
}

/// The problem for which a run is held.
fn held(live: &Live) -> String {
    live.wait_for("held");
    status(&live.id).expect("alive")["report"]["held"].as_str().expect("a problem").to_owned()
}

// promise: S-60
#[test]
fn a_run_stages_from_s3_and_publishes_to_it() {
    require_host!();
    let site = Site::new();
    fs::write(site.path("local"), "local\n").expect("written");
    let id = fresh_id();
    let flags = [
        "--run-id",
        &id,
        "--input",
        "s3://inputs/reads/a.fq",
        "--input",
        "s3://inputs/reads/=all",
        "--input",
        "local",
        "--output",
        "s3://outputs/out",
        "--report",
        "report.json",
    ];
    let script = "cd \"$RUNSEAL_INPUT\"; cat a.fq all/a.fq all/deep/b.fq local >\"$RUNSEAL_OUTPUT/joined\"; \
                  mkdir \"$RUNSEAL_OUTPUT/sub\"; echo x >\"$RUNSEAL_OUTPUT/sub/x\"";
    site.run(&flags, script).expect(0, &[]);
    assert_eq!(site.double.read("outputs", "out/joined").expect("published"), "ACGTACGTTTTTlocal\n");
    assert_eq!(site.double.read("outputs", "out/sub/x").expect("published"), "x\n");
    let result = site.double.object("outputs", "out/joined").expect("published");
    assert_eq!(result.encryption.key.as_deref(), Some(OUTPUT_KEY));
    let puts = site.double.calls_of("PutObject");
    assert_eq!(puts.last().expect("results").key, MANIFEST, "the manifest comes last");
    let foreign: Vec<_> = site.double.calls().into_iter().filter(|call| call.service != Service::KmsForS3).collect();
    assert!(foreign.iter().all(|call| call.user_agent().contains("runseal") && call.user_agent().contains(&id)));

    let report = site.report("report.json");
    assert_eq!(report["outcome"], "published");
    assert_eq!(report["inputs"][1], serde_json::json!({ "source": "s3://inputs/reads/", "target": "all" }));
    assert_eq!(report["output"], "s3://outputs/out/");
    let identity = report["aws"]["identity"].as_str().expect("who it was");
    assert!(identity.contains("runner"), "{identity}");
    let keys: Vec<_> = report["aws"]["keys"].as_array().expect("keys").iter().filter_map(Value::as_str).collect();
    assert_eq!(keys, [INPUT_KEY, OUTPUT_KEY]);
    assert!(report["aws"]["result_encryption"].as_str().expect("encrypted").contains(OUTPUT_KEY));
    assert_eq!(report["staged"]["files"], 4);
    assert!(report["staged"]["requests"].as_u64().expect("counted") >= 3);
    assert!(report["published"]["requests"].as_u64().expect("counted") >= 3);
}

#[test]
fn a_run_may_have_no_inputs_and_no_results() {
    require_host!();
    let site = Site::new();
    site.run(&["--output", "s3://outputs/out/"], "true").expect(73, &["--allow-empty"]);
    site.run(&["--allow-empty", "--output", "s3://outputs/out/"], "true").expect(0, &[]);
    assert_eq!(site.double.keys("outputs"), [""; 0], "nothing stands in the way of the next run");
    assert_eq!(site.double.count("GetObject"), 0);
}

#[test]
fn a_command_that_fails_publishes_nothing() {
    require_host!();
    let site = Site::new();
    let said = site.run(&["--output", "s3://outputs/out/"], "echo x >\"$RUNSEAL_OUTPUT/x\"; exit 7");
    said.expect(7, &["nothing was published"]);
    site.assert_nothing_left();
}

// promise: T-30
#[test]
fn the_command_does_not_get_the_credentials() {
    require_host!();
    let site = Site::new();
    let (id, credential) = site.double.credentials("runner");
    let flags = ["--input", "s3://inputs/reads/a.fq"];
    let spying = |flags: &[&str]| {
        let mut command = site.runseal();
        command.env("AWS_PROFILE", "of-the-node").env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-of-the-node");
        command.arg("run").args(flags).args(["--", "sh", "-euc"]);
        command.arg("env; for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ || :; done; test -r /proc/1/environ");
        finish(command)
    };
    // As root, who without capabilities cannot look at the process with the key, and with all of them can: what it had is
    // not there any more.
    for keeping in [&[][..], &["--keep-capabilities"]] {
        let said = spying(&[&flags[..], keeping].concat()).expect(0, &[]);
        let secrets = [&*id, &*credential.secret, "of-the-node", "AWS_SHARED_CREDENTIALS_FILE=/", "AWS_CONFIG_FILE=/"];
        for secret in secrets {
            assert!(!said.out.contains(secret), "the command sees {secret} with {keeping:?}");
        }
        assert!(said.out.contains("AWS_REGION="), "what is no secret stays");
        let seen = said.out.matches("AWS_SECRET_ACCESS_KEY=").count();
        assert_eq!(
            seen,
            keeping.len(),
            "with all capabilities, and only then, the process with the key can be looked at"
        );
    }
    let said = site.run(&[&flags[..], &["--keep-aws-credentials"]].concat(), "env").expect(0, &[]);
    assert!(said.out.contains(&id) && said.out.contains(&credential.secret));
    let said = site.run(&[], "env").expect(0, &[]);
    assert!(said.out.contains(&credential.secret), "a run without AWS changes nothing");
}

// promise: T-30
#[test]
fn no_process_of_a_run_shows_the_credentials_it_was_started_with() {
    require_host!();
    let site = Site::new();
    let (id, credential) = site.double.credentials("runner");
    let live = site.live(&["--input", "s3://inputs/reads/a.fq"], "ready; sleep 3600");
    for process in [live.supervisor(), live.sealed()] {
        let environment = fs::read(format!("/proc/{process}/environ")).expect("root may read it");
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("AWS_REGION=") && environment.contains("AWS_SECRET_ACCESS_KEY=\0"));
        for secret in [&*id, &*credential.secret, "/dev/null"] {
            assert!(!environment.contains(secret), "{process} shows {secret}");
        }
    }
    assert_eq!(in_memory(live.supervisor(), &[credential.secret.into_bytes()]), 0, "the supervisor has the secret");
    send(live.supervisor(), Signal::SIGTERM);
    live.end().expect(143, &[]);
}

// promise: T-30
#[test]
fn a_file_with_credentials_does_not_show_through() {
    require_host!();
    let site = Site::new();
    let file = tempfile::Builder::new().tempfile_in("/var/tmp").expect("a file");
    fs::write(file.path(), "[default]\n").expect("written");
    let script = format!("test -e {}", text(file.path()));
    let with = |variables: &[&str]| {
        let mut command = site.runseal();
        for name in variables {
            command.env(name, file.path());
        }
        command.args(["run", "--input", "s3://inputs/reads/a.fq", "--", "sh", "-c", &script]);
        finish(command).code
    };
    assert_eq!(with(&["AWS_SHARED_CREDENTIALS_FILE"]), 1, "the command finds the file at a path it is not told");
    assert_eq!(with(&["AWS_SHARED_CREDENTIALS_FILE", "OTHER_FILE"]), 0, "what another variable names shows through");
}

#[test]
fn what_stands_in_the_way_is_told_with_its_repair() {
    require_host!();
    let site = Site::new();
    let denial = Denial::of("kms:Decrypt").on(INPUT_KEY).worded(Wording::NotAllowed(Layer::Identity));
    site.double.change(|world| {
        world.persona("runner").deny(denial);
    });
    let flags = ["--input", "s3://inputs/reads/", "--output", "s3://outputs/out/", "--report", "report.json"];
    let said = site.run(&flags, "touch started");
    said.expect(77, &["preflight found", "IMPORT_FAILED", "kms:Decrypt", INPUT_KEY, "IAM policy", "\"Action\""]);
    assert_eq!(site.report("report.json")["outcome"], "refused");
    assert_eq!(site.double.uploads(), []);

    let missing = site.run(&["--input", "s3://inputs/none"], "true");
    missing.expect(66, &["INPUT_URI_NOT_FOUND", "s3://inputs/none"]);
    let mut nobody = site.runseal();
    nobody.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    nobody.args(["run", "--input", "s3://inputs/reads/", "--", "true"]);
    finish(nobody).expect(69, &["credentials"]);
    let mut nowhere = site.runseal();
    nowhere.env_remove("AWS_REGION").args(["run", "--input", "s3://inputs/reads/", "--", "true"]);
    finish(nowhere).expect(69, &["Region"]);
    let mut plain = site.runseal();
    plain.env("AWS_ENDPOINT_URL_S3", "http://192.0.2.1").args(["run", "--input", "s3://inputs/reads/", "--", "true"]);
    finish(plain).expect(69, &["not encrypted"]);
}

// promise: T-31, S-61
#[test]
fn expired_credentials_hold_the_run_until_new_ones_are_handed_over() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&["--report", "report.json"]);
    let (old, _) = site.double.credentials("runner");
    site.double.change(|world| world.expire("runner"));
    site.go();
    let problem = held(&live);
    assert!(problem.contains("ExpiredToken") && problem.contains("s3://outputs/out/"), "{problem}");
    let id = live.id.clone();
    say(&["resume", &id]).expect(69, &["still held", "ExpiredToken"]);
    live.wait_for("held");
    let mut bare = runseal();
    bare.env_remove("AWS_ACCESS_KEY_ID").args(["resume", "--credentials-from-environment", &id]);
    finish(bare).expect(64, &["AWS_ACCESS_KEY_ID"]);

    let mut renewed = site.runseal();
    let (new, credential) = site.double.credentials("runner");
    assert_ne!(old, new);
    renewed.args(["resume", "--credentials-from-environment", &id]);
    finish(renewed).expect(0, &[]);
    let said = live.end().expect(0, &["is held", &format!("runseal resume --credentials-from-environment {id}")]);
    site.assert_published();
    let last = site.double.calls_of("PutObject").pop().expect("published");
    assert_eq!((last.key.as_str(), last.access_key), (MANIFEST, new.clone()));
    let report = fs::read_to_string(site.path("report.json")).expect("written");
    for secret in [&new, &credential.secret] {
        assert!(!report.contains(secret) && !said.err.contains(secret) && !said.out.contains(secret));
    }
}

// promise: S-61
#[test]
fn a_resumed_run_finds_credentials_renewed_in_a_file() {
    require_host!();
    let site = Site::new();
    let write = || {
        let (id, credential) = site.double.credentials("runner");
        let token = credential.token.map(|token| format!("aws_session_token={token}\n")).unwrap_or_default();
        let profile = format!("[job]\naws_access_key_id={id}\naws_secret_access_key={}\n{token}", credential.secret);
        fs::write(site.path("credentials"), profile).expect("written");
    };
    write();
    // A relative path, which must go on to work although the sealed process works elsewhere.
    let mut launcher = site.runseal();
    launcher.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env_remove("AWS_SESSION_TOKEN");
    launcher.env("AWS_SHARED_CREDENTIALS_FILE", "credentials").env("AWS_PROFILE", "job");
    let flags = ["--output", "s3://outputs/out/"];
    let script = "echo x >\"$RUNSEAL_OUTPUT/x\"; ready; while [ ! -e \"$GO\" ]; do sleep 0.05; done";
    launcher.env("GO", site.path("go"));
    let live = Live::start_with(launcher, site.dir.path(), &flags, script);
    site.double.change(|world| world.expire("runner"));
    site.go();
    assert!(held(&live).contains("ExpiredToken"));
    write();
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(site.double.read("outputs", "out/x").expect("published"), "x\n");
}

// promise: S-61
#[test]
fn a_key_disabled_while_the_command_runs_holds_the_results() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&[]);
    site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Disabled);
    site.go();
    let problem = held(&live);
    assert!(problem.contains("KMS.DisabledException") && problem.contains("is disabled"), "{problem}");
    assert_eq!(site.double.read("outputs", MANIFEST), None);
    site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Enabled);
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &["could not be published"]);
    site.assert_published();
}

// promise: S-61
#[test]
fn a_network_cut_holds_the_results() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&[]);
    site.double.fault(Fault::on("*", Effect::Reset).at("outputs/*"));
    site.go();
    let problem = held(&live);
    assert!(problem.contains("s3://outputs/out/") && problem.contains("network"), "{problem}");
    site.double.clear_faults();
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    site.assert_published();
}

// promise: S-62
#[test]
fn results_that_are_given_up_leave_no_uploads() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&[]);
    let denied = Effect::error(403, "AccessDenied", "Access Denied");
    site.double.fault(Fault::on("CompleteMultipartUpload", denied));
    site.go();
    assert!(held(&live).contains("AccessDenied"));
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["discarded", "AccessDenied"]);
    site.assert_nothing_published();
}

// promise: T-33
#[test]
fn a_kms_key_takes_part_in_the_run_key() {
    require_host!();
    let site = Site::new();
    let id = fresh_id();
    let flags = ["--run-id", &id, "--run-key-kms", INPUT_KEY, "--report", "report.json", "--audit", "audit.jsonl"];
    let said = site.run(&flags, "echo work >file; sync").expect(0, &[]);
    let drawn: Vec<_> = site.double.calls_of("GenerateDataKey").into_iter().filter(|call| !call.dry_run).collect();
    assert_eq!(drawn.len(), 1);
    assert_eq!((drawn[0].kms_key.as_str(), &drawn[0].context["runseal:run-id"]), (INPUT_KEY, &id));
    let report = site.report("report.json");
    assert_eq!(report["run_key"]["key"], INPUT_KEY);
    assert_eq!(report["run_key"]["request_id"], drawn[0].request_id.as_str());
    let audit = fs::read_to_string(site.path("audit.jsonl")).expect("written");
    assert!(audit.contains("CreateRunKey") && audit.contains(&drawn[0].request_id));
    // The key itself is nowhere to be seen.
    let keys = site.double.data_keys();
    assert!(!keys.is_empty());
    for key in keys {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        for told in [&report.to_string(), &audit, &said.err, &said.out] {
            assert!(!told.contains(&hex));
        }
    }
}

// promise: T-32
#[test]
fn the_data_key_is_gone_before_the_command_starts() {
    require_host!();
    let site = Site::new();
    let live = site.live(&["--run-key-kms", INPUT_KEY], "ready; sleep 3600");
    let keys = site.double.data_keys();
    assert!(!keys.is_empty());
    let found = in_memory(live.sealed(), &keys);
    assert_eq!(found, 0, "a data key is in the memory of the sealed process");
    send(live.supervisor(), Signal::SIGTERM);
    live.end().expect(143, &[]);
}

/// How often any of `secrets` occurs in the readable memory of `process`.
fn in_memory(process: i32, secrets: &[Vec<u8>]) -> usize {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(format!("/proc/{process}/mem")).expect("root may read it");
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("it lives");
    let mut seen = 0;
    let mut found = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with('r'))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hexadecimal"));
        let mut content = vec![0; usize::try_from(end - start).expect("fits")];
        // Memory of devices and secret memory cannot be read.
        if memory.read_exact_at(&mut content, start).is_ok() {
            seen += content.len();
            let hits = |secret: &Vec<u8>| content.windows(secret.len()).filter(|window| window == secret).count();
            found += secrets.iter().map(hits).sum::<usize>();
        }
    }
    assert!(seen > 1 << 20, "nothing could be read");
    found
}

#[test]
fn a_kms_key_that_gives_no_data_key_stops_the_run() {
    require_host!();
    let site = Site::new();
    let with = |key: &str| site.run(&["--run-key-kms", key], "true");
    site.double.change(|world| {
        world.persona("runner").deny(Denial::of("kms:GenerateDataKey").on(INPUT_KEY));
        world.key(OUTPUT_KEY).state = KeyState::Disabled;
    });
    with(INPUT_KEY).expect(77, &["kms:GenerateDataKey", INPUT_KEY]);
    let said = with(OUTPUT_KEY);
    assert!([69, 77].contains(&said.code) && said.err.contains("isabled"), "{said:?}");
    let missing = "arn:aws:kms:eu-central-1:111122223333:key/0a1b2c3d-0000-4000-8000-0000000000ff";
    let said = with(missing);
    assert!(said.code != 0 && said.err.contains(missing), "{said:?}");
}

#[test]
fn the_trail_tells_what_was_done_and_holds_no_secret() {
    require_host!();
    let site = Site::new();
    let flags = ["--input", "s3://inputs/reads/", "--output", "s3://outputs/out/", "--audit", "audit.jsonl"];
    let flags = [&flags[..], &["--report", "report.json"]].concat();
    site.run(&flags, "cp \"$RUNSEAL_INPUT/reads/a.fq\" \"$RUNSEAL_OUTPUT\"").expect(0, &[]);
    let trail = fs::read_to_string(site.path("audit.jsonl")).expect("written");
    let events: Vec<Value> = trail.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<_> = events.iter().filter_map(|event| event["eventName"].as_str()).collect();
    for name in ["GetCallerIdentity", "CreateRunKey", "StageObject", "PublishObject", "WipeRunKey"] {
        assert!(names.contains(&name), "{name} is missing: {names:?}");
    }
    assert_eq!(names.last(), Some(&"WipeRunKey"));
    assert!(events.last().expect("events").to_string().contains("runner"), "the caller is known");
    let (_, credential) = site.double.credentials("runner");
    assert!(!trail.contains(&credential.secret) && !trail.contains("Signature"));
    let report = site.report("report.json");
    let head = report["audit"]["head"].as_str().expect("a hash");
    assert_eq!(report["audit"]["lines"].as_u64().expect("a number") as usize, events.len());
    say(&["audit", "verify", "--head", head, text(&site.path("audit.jsonl"))]).expect(0, &[]);

    let refused = site.run(&["--audit", "no/such/dir/audit", "--input", "s3://inputs/reads/"], "true");
    refused.expect(73, &["--audit", "no/such/dir/audit"]);
}

#[test]
fn an_audit_trail_that_cannot_be_continued_stops_the_run_before_the_command() {
    require_host!();
    if !Path::new("/dev/full").exists() {
        println!("SKIP: {}: no /dev/full", module_path!());
        return;
    }
    let site = Site::new();
    let said = site.run(&["--audit", "/dev/full", "--input", "s3://inputs/reads/"], "echo started");
    assert!([73, 74].contains(&said.code) && said.out.is_empty(), "{said:?}");
}

// promise: S-67
#[test]
fn fetching_takes_little_memory_whatever_the_size() {
    require_host!();
    let site = Site::new();
    site.double.put("inputs", "many/large", vec![7; 512 << 20]);
    for index in 0..256 {
        site.double.put("inputs", &format!("many/{index}"), vec![7; 1 << 20]);
    }
    // The parent of the command is the process that has fetched.
    let script = "grep VmHWM /proc/$PPID/status; du -sm \"$RUNSEAL_INPUT\"";
    let said = site.run(&["--input", "s3://inputs/many/", "--quiet"], script).expect(0, &[]);
    let numbers: Vec<u64> = said.out.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [kibibytes, mebibytes] = numbers[..] else { panic!("{said:?}") };
    assert!(mebibytes >= 768, "{said:?}");
    assert!(kibibytes < 384 << 10, "{kibibytes} KiB");
    println!("{kibibytes} KiB at most while 768 MiB were fetched");
}

// promise: T-35, S-62
#[test]
fn a_signal_while_objects_are_fetched_ends_the_run_at_once() {
    require_host!();
    let site = Site::new();
    site.double.put("inputs", "large", vec![7; 8 << 20]);
    let stuck = Effect::Trickle { piece: 1024, pause: Duration::from_millis(200) };
    site.double.fault(Fault::on("GetObject", stuck).at("inputs/large").after(1));
    let id = fresh_id();
    let mut command = site.runseal();
    command.args(["run", "--run-id", &id, "--input", "s3://inputs/large", "--output", "s3://outputs/out/", "--"]);
    let child = command.arg("true").stderr(std::process::Stdio::piped()).spawn().expect("the binary starts");
    wait_until("fetching", || crate::program::phase(&id).as_deref() == Some("fetch"));
    send(child.id() as i32, Signal::SIGINT);
    let said = Said::of(child.wait_with_output().expect("wait"));
    said.expect(130, &["SIGINT", "staging the inputs", "nothing was published"]);
    site.assert_nothing_left();
}

// promise: T-35
#[test]
fn giving_up_while_results_are_published_aborts_the_uploads() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&[]);
    site.double.fault(Fault::on("UploadPart", Effect::Delay(Duration::from_secs(30))).at("outputs/out/*"));
    site.go();
    wait_until("an upload is under way", || !site.double.uploads().is_empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        send(live.supervisor(), signal);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(crate::program::phase(&live.id).as_deref(), Some("publish"), "no signal loses results");
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["SIGINT does not end that", "was ended while publishing the results"]);
    site.assert_nothing_published();
    assert_eq!(site.double.read("outputs", "out/small"), None, "nothing is visible before large results are there");
}

// promise: S-126
#[test]
fn what_an_unfinished_publication_leaves_is_said_and_can_be_removed() {
    require_host!();
    for remove in [false, true] {
        let site = Site::new();
        site.double.change(|world| {
            world.persona("runner").deny(Denial::of("s3:PutObject").on(&format!("arn:aws:s3:::outputs/{MANIFEST}")));
        });
        let live = site.live_with_results(&["--report", "report.json"]);
        site.go();
        assert!(held(&live).contains("runseal-manifest.json"));
        assert_eq!(status(&live.id).expect("alive")["report"]["left"]["entries"], 2);
        // Somebody has put something else there since: that is not this run's.
        site.double.put("outputs", "out/small", b"theirs");
        let flag = if remove { vec!["--remove-published"] } else { Vec::new() };
        let said = say(&[&["end", "--discard"], &flag[..], &[&live.id]].concat()).expect(0, &[]);
        let said =
            (said.out, live.end().expect(74, &["2 of its results are in s3://outputs/out/", "--remove-published"]));
        assert_eq!(said.0.contains("2 of its results are in s3://outputs/out/"), !remove, "{said:?}");
        assert_eq!(site.double.read("outputs", "out/small").expect("not ours to remove"), "theirs");
        assert_eq!(site.double.read("outputs", "out/large").is_some(), !remove);
        let report = site.report("report.json");
        assert_eq!((&report["outcome"], &report["published"]), (&"discarded".into(), &Value::Null));
        assert_eq!(report["left"]["entries"].as_u64(), if remove { None } else { Some(2) }, "{report}");
    }
}

// promise: S-126
#[test]
fn results_given_up_while_the_manifest_is_tried_again_are_said_to_be_there() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&["--report", "report.json"]);
    let down =
        Effect::Error { status: 503, code: "SlowDown".into(), message: "Please reduce your request rate.".into() };
    site.double.fault(Fault::on("PutObject", down).at(&format!("outputs/{MANIFEST}")));
    site.go();
    wait_until("all but the manifest is there", || site.double.keys("outputs").len() == 2);
    send(live.supervisor(), Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(1200));
    send(live.supervisor(), Signal::SIGTERM);
    let said = say(&["end", "--discard", &live.id]).expect(0, &[]);
    assert!(said.out.contains("2 of its results are in s3://outputs/out/, without a manifest"), "{said:?}");
    let said = live.end().expect(74, &["2 of its results are in s3://outputs/out/"]);
    assert!(!said.err.contains("nothing was published"), "{said:?}");
    assert_eq!(site.report("report.json")["left"]["output"], "s3://outputs/out/");
}

// promise: S-127
#[test]
fn logs_of_a_failed_command_go_to_s3_too() {
    require_host!();
    let site = Site::new();
    let flags = ["--output", "s3://outputs/out/", "--save", "work/*.log", "--save", "work/large"];
    let script = "echo why >a.log; head -c 20971520 /dev/zero >large; echo result >\"$RUNSEAL_OUTPUT/x\"; exit 3";
    site.run(&flags, script).expect(3, &["saved 2 of its files: s3://outputs/out/runseal-failed-"]);
    let keys = site.double.keys("outputs");
    let names: Vec<_> = keys.iter().map(|key| key.splitn(3, '/').nth(2).expect("below it")).collect();
    assert_eq!(names, ["SHA256SUMS", "work/a.log", "work/large"]);
    assert_eq!(site.double.read("outputs", &keys[1]).expect("saved"), "why\n");
    site.run(&flags, "echo result >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert_eq!(site.double.read("outputs", "out/x").expect("published"), "result\n");
    site.run(&flags, "true").expect(73, &["OUTPUT_NOT_EMPTY"]);
}

// promise: S-124, S-126
#[test]
fn a_held_run_moves_between_buckets_and_directories() {
    require_host!();
    let site = Site::new();
    site.double.change(|world| {
        world.persona("runner").deny(Denial::of("s3:PutObject").on(&format!("arn:aws:s3:::outputs/{MANIFEST}")));
    });
    let live = site.live_with_results(&[]);
    site.go();
    held(&live);
    assert_eq!(site.double.keys("outputs").len(), 2);
    say(&["resume", "--output", "s3://no-such-bucket/x/", &live.id]).expect(69, &["still held", "no-such-bucket"]);
    say(&["resume", "--output", "s3://outputs/else/", "--sse-kms-key-id", INPUT_KEY, &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(site.double.keys("outputs"), ["else/large", "else/runseal-manifest.json", "else/small"]);
    assert_eq!(site.double.object("outputs", "else/small").expect("there").encryption.key.as_deref(), Some(INPUT_KEY));

    // From a directory, which needed no AWS at all, to a bucket.
    let output = site.path("out");
    fs::create_dir(&output).expect("created");
    let script = format!("echo result >\"$RUNSEAL_OUTPUT/x\"; echo foreign >'{}/x'; ready", output.display());
    let live = site.live(&["--output", text(&output)], &script);
    held(&live);
    say(&["resume", "--output", "s3://outputs/third/", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(site.double.read("outputs", "third/x").expect("published"), "result\n");
}

#[test]
fn a_run_that_is_killed_while_it_publishes_leaves_no_manifest() {
    require_host!();
    let site = Site::new();
    let live = site.live_with_results(&[]);
    site.double.fault(Fault::on("UploadPart", Effect::Delay(Duration::from_secs(30))).at("outputs/out/*"));
    site.go();
    wait_until("an upload is under way", || !site.double.uploads().is_empty());
    let sealed = live.sealed();
    send(sealed, Signal::SIGKILL);
    live.end().expect(71, &["incomplete"]);
    assert!(!lives(sealed));
    assert_eq!(site.double.read("outputs", MANIFEST), None);
}

// promise: S-60
#[test]
fn results_are_encrypted_as_asked() {
    require_host!();
    let site = Site::new();
    let flags = ["--output", "s3://outputs/out/", "--sse-kms-key-id", INPUT_KEY];
    site.run(&flags, "echo x >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    for key in ["out/x", MANIFEST] {
        let object = site.double.object("outputs", key).expect("published");
        assert_eq!(object.encryption.key.as_deref(), Some(INPUT_KEY), "{key}");
    }
    site.run(&flags, "true").expect(73, &["OUTPUT_NOT_EMPTY", "--overwrite"]);
    site.run(&[&flags[..], &["--overwrite"]].concat(), "echo y >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert_eq!(site.double.read("outputs", "out/x").expect("published"), "y\n");
}

#[test]
fn what_preflight_warns_of_is_said_and_the_run_goes_on() {
    require_host!();
    let site = Site::new();
    site.double.change(|world| {
        let denial = Denial::of("s3:AbortMultipartUpload").worded(Wording::Explicit(Layer::Endpoint));
        world.persona("runner").deny(denial);
    });
    let said = site.run(&["--quiet", "--output", "s3://outputs/out/"], "echo x >\"$RUNSEAL_OUTPUT/x\"");
    let [(_, key, upload)] = &site.double.uploads()[..] else { panic!("the probe is left: {said:?}") };
    let warning = ["preflight warns: s3:AbortMultipartUpload: s3://outputs/", key, upload];
    said.expect(0, &[&warning[..], &["AbortIncompleteMultipartUpload"]].concat());
    assert_eq!(site.double.read("outputs", "out/x").expect("published"), "x\n");
}

#[test]
fn a_role_is_taken_for_the_whole_run() {
    require_host!();
    let site = Site::new();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/job");
    let job = Role { persona: "job".to_owned(), trusts: Vec::new() };
    site.double.change(|world| world.roles.insert(role.clone(), job));
    let id = fresh_id();
    let flags = ["--run-id", &id, "--role-arn", &role, "--input", "s3://inputs/reads/", "--report", "report.json"];
    site.run(&flags, "true").expect(0, &[]);
    let identity = site.report("report.json")["aws"]["identity"].as_str().expect("who").to_owned();
    assert!(identity.contains("assumed-role") && identity.contains(&id), "{identity}");
}

// promise: S-113
#[test]
fn replacing_results_removes_objects_of_before_or_tells_why_not() {
    require_host!();
    let site = Site::new();
    let flags = ["--output", "s3://outputs/out/"];
    let replace = [&flags[..], &["--overwrite"]].concat();
    site.run(&flags, "cd \"$RUNSEAL_OUTPUT\"; echo 1 >a; echo 1 >b; mkdir hollow").expect(0, &[]);
    site.double.put("outputs", "out/foreign", "mine");
    site.run(&replace, "echo 2 >\"$RUNSEAL_OUTPUT/a\"").expect(0, &["were removed: 1"]);
    assert_eq!(site.double.keys("outputs"), ["out/a", "out/foreign", MANIFEST]);
    let conditions: Vec<_> =
        site.double.calls_of("DeleteObject").iter().map(|call| call.header("if-match").is_some()).collect();
    assert_eq!(conditions, [true, true], "of exactly the object that was listed");

    site.double.change(|world| {
        let denial = Denial::of("s3:DeleteObject").worded(Wording::Explicit(Layer::Identity));
        world.persona("runner").deny(denial);
    });
    let said = site.run(&replace, "echo 3 >\"$RUNSEAL_OUTPUT/c\"");
    said.expect(0, &["may not remove them: 1 (a)"]);
    assert_eq!(site.double.read("outputs", "out/a").expect("kept"), "2\n");
}

// promise: S-112
#[test]
fn links_between_results_are_uploaded_as_what_they_lead_to_if_asked() {
    require_host!();
    let site = Site::new();
    let script = "cd \"$RUNSEAL_OUTPUT\"; echo x >real; ln -s \"$PWD/real\" link; ln -s \"$RUNSEAL_SCRATCH/work/f\" far; \
                  echo far >\"$RUNSEAL_SCRATCH/work/f\"";
    site.run(&["--dereference", "--output", "s3://outputs/out/"], script).expect(0, &[]);
    assert_eq!(site.double.read("outputs", "out/link").expect("uploaded"), "x\n");
    assert_eq!(site.double.read("outputs", "out/far").expect("uploaded"), "far\n");
}
