//! The audit trail: its shape, its chain, and what becomes of both when things go wrong.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use runseal::audit::{AuditError, Caller, Event, Summary, Trail, TrailDemands, TrailFault, Witness, verify};
use runseal::spec::{AuditDestination, AuditSpec};
use serde_json::Value;

const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OBJECT: &str = "s3://in/reads/a.fq";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

fn open(path: &Path, run: &str) -> Trail {
    Trail::open(&AuditDestination::File(path.to_owned()), run).expect("a trail")
}

fn caller() -> Caller {
    Caller {
        arn: "arn:aws:sts::111122223333:assumed-role/Pipeline/run-1".into(),
        account: "111122223333".into(),
        principal_id: "AROAEXAMPLE:run-1".into(),
        region: "eu-west-1".into(),
    }
}

fn read() -> Event {
    Event::call("s3:GetObject").on(OBJECT).with("range", "bytes=0-0").ended(Ok("REQ-1"))
}

fn denied() -> Event {
    let error = ("AccessDenied", "User: x is not authorized to perform: kms:Decrypt", "REQ-2");
    Event::call("kms:Decrypt").on(KEY).with("dryRun", true).ended(Err(error))
}

/// A trail of four lines by two runs.
fn sample(path: &Path) {
    let first = open(path, "run-1");
    first.record(&Event::create_run_key(Some(KEY)));
    first.identify(caller());
    first.record(&read());
    first.record(&denied());
    drop(first);
    let second = open(path, "run-2");
    second.record(&Event::wipe_run_key());
    assert_eq!(second.problem(), None);
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn check(bytes: &[u8]) -> Result<Summary, TrailFault> {
    demand(bytes, &TrailDemands::default())
}

fn demand(bytes: &[u8], demands: &TrailDemands<'_>) -> Result<Summary, TrailFault> {
    verify(bytes, demands).expect("memory can be read")
}

fn runseal(args: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_runseal")).args(args).output().expect("the binary runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

mod shape {
    use super::*;

    #[test]
    fn a_line_has_the_fields_of_cloudtrail_in_their_order() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let written = fs::read_to_string(&path).expect("readable");
        let line = written.lines().nth(2).expect("the denial");
        let order = [
            "eventVersion",
            "userIdentity",
            "eventTime",
            "eventSource",
            "eventName",
            "awsRegion",
            "sourceIPAddress",
            "userAgent",
            "errorCode",
            "errorMessage",
            "requestParameters",
            "responseElements",
            "additionalEventData",
            "requestID",
            "eventID",
            "readOnly",
            "resources",
            "eventType",
            "managementEvent",
            "recipientAccountId",
            "eventCategory",
        ];
        let places: Vec<usize> =
            order.iter().map(|name| line.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{name}"))).collect();
        assert!(places.is_sorted(), "{line}");

        let event: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(event.as_object().expect("an object").len(), order.len());
        assert_eq!(event["eventVersion"], "1.08");
        assert_eq!(event["eventSource"], "kms.amazonaws.com");
        assert_eq!(event["eventName"], "Decrypt");
        assert_eq!(event["awsRegion"], "eu-central-1", "of the key, not of the caller");
        assert_eq!(event["userAgent"], concat!("runseal/", env!("CARGO_PKG_VERSION")));
        assert_eq!(event["errorCode"], "AccessDenied");
        assert_eq!(event["requestParameters"], serde_json::json!({"dryRun": true}));
        assert_eq!(event["responseElements"], Value::Null);
        assert_eq!(event["requestID"], "REQ-2");
        assert_eq!(event["readOnly"], true);
        let key = serde_json::json!([{"accountId": "111122223333", "type": "AWS::KMS::Key", "ARN": KEY}]);
        assert_eq!(event["resources"], key);
        assert_eq!(event["recipientAccountId"], "111122223333");
        assert_eq!((&event["managementEvent"], &event["eventCategory"]), (&true.into(), &"Management".into()));
        let identity = &event["userIdentity"];
        assert_eq!(identity["type"], "AssumedRole");
        assert_eq!(identity["arn"], caller().arn);
        assert_eq!(identity["sessionContext"]["sessionIssuer"]["userName"], "Pipeline");
        assert_eq!(identity["sessionContext"]["sessionIssuer"]["principalId"], "AROAEXAMPLE");
    }

    #[test]
    fn times_and_ids_have_their_standard_forms() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let mut ids = std::collections::BTreeSet::new();
        for event in lines(&path) {
            let time = event["eventTime"].as_str().expect("a time");
            assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
            let id = event["eventID"].as_str().expect("an id").to_owned();
            let groups: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
            assert!(id[14..].starts_with('4'), "version 4: {id}");
            assert!(ids.insert(id));
        }
    }

    #[test]
    fn who_is_told_once_it_is_known() {
        let dir = dir();
        let path = dir.path().join("trail");
        for (arn, kind, name) in [
            ("arn:aws:iam::111122223333:user/team/alice", "IAMUser", "alice"),
            ("arn:aws-cn:iam::111122223333:root", "Root", ""),
            ("arn:aws:sts::111122223333:federated-user/bob", "FederatedUser", ""),
            ("something else", "Unknown", ""),
        ] {
            let trail = open(&path, "run");
            trail.identify(Caller { arn: arn.into(), ..caller() });
            trail.record(&read());
            let event = lines(&path).pop().expect("a line");
            assert_eq!(event["userIdentity"]["type"], kind, "{arn}");
            assert_eq!(event["userIdentity"]["userName"].as_str().unwrap_or_default(), name, "{arn}");
            assert_eq!(event["awsRegion"], "eu-west-1");
        }
        sample(&path);
        assert_eq!(lines(&path)[4]["userIdentity"], serde_json::json!({"type": "Unknown"}));
        assert_eq!(lines(&path)[4]["eventType"], "RunsealEvent");
        assert_eq!(
            lines(&path)[5]["resources"],
            serde_json::json!([{"type": "AWS::S3::Object", "ARN": "arn:aws:s3:::in/reads/a.fq"}])
        );
        assert_eq!(lines(&path)[5]["eventCategory"], "Data");
    }

    #[test]
    fn names_of_s3_are_in_the_partition_of_the_caller() {
        let dir = dir();
        let path = dir.path().join("trail");
        let trail = open(&path, "run");
        trail.identify(Caller { arn: "arn:aws-cn:iam::111122223333:user/a".into(), ..caller() });
        trail.record(&read());
        assert_eq!(lines(&path)[0]["resources"][0]["ARN"], "arn:aws-cn:s3:::in/reads/a.fq");
    }

    #[test]
    fn an_event_has_no_place_for_secrets_but_the_texts_it_is_given() {
        let dir = dir();
        let path = dir.path().join("trail");
        let long = "x".repeat(100_000);
        let trail = open(&path, "run");
        trail.record(&Event::call("s3:GetObject").on(OBJECT).ended(Err(("Bad", &long, ""))));
        let event = lines(&path).pop().expect("a line");
        assert_eq!(event["errorMessage"].as_str().map(str::len), Some(16 << 10), "messages are bounded");
        assert_eq!(event["requestID"], Value::Null);
        // Whoever adds a field decides here whether it may hold a secret.
        let Event { name: _, source: _, resource: _, parameters: _, request_id: _, error: _, read_only: _ } = read();
    }
}

mod chain {
    use super::*;

    #[test]
    fn runs_continue_the_chain_of_the_file() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let summary = check(&fs::read(&path).expect("readable")).expect("intact");
        assert_eq!((summary.events, summary.torn, summary.missed), (4, 0, 0));
        assert_eq!(summary.runs, ["run-1", "run-2"]);
        assert_eq!(open(&path, "run-3").head(), Some(summary.head));
        assert_eq!(check(b"").expect("intact"), Summary::default());
    }

    // promise: T-41
    #[test]
    fn a_change_of_any_byte_is_found() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let intact = fs::read(&path).expect("readable");
        let mut tampered = intact.clone();
        for at in 0..intact.len() {
            for flip in [0x01, 0x20, 0x80] {
                tampered[at] ^= flip;
                let fault = check(&tampered).expect_err("found");
                let line = intact[..at].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
                assert_eq!(fault.line, line, "byte {at} ^ {flip:#x}: {fault}");
                tampered[at] = intact[at];
            }
            let mut shorter = intact.clone();
            shorter.remove(at);
            assert!(check(&shorter).is_err(), "byte {at} left out");
        }
    }

    #[test]
    fn lines_left_out_moved_repeated_or_put_in_are_found() {
        let dir = dir();
        let (path, other) = (dir.path().join("trail"), dir.path().join("other"));
        sample(&path);
        sample(&other);
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let foreign = fs::read_to_string(&other).expect("readable");
        let foreign: Vec<&str> = foreign.split_inclusive('\n').collect();
        for (order, line) in [
            (vec![lines[1], lines[2], lines[3]], 1),
            (vec![lines[0], lines[2], lines[3]], 2),
            (vec![lines[0], lines[2], lines[1], lines[3]], 2),
            (vec![lines[0], lines[0], lines[1]], 2),
            (vec![lines[0], foreign[1], lines[2], lines[3]], 2),
            (vec![lines[0], lines[1], "\n", lines[2]], 3),
            (vec![lines[0], "not JSON\n", lines[1]], 2),
        ] {
            let fault = check(order.concat().as_bytes()).expect_err("found");
            assert_eq!(fault.line, line, "{fault}");
        }
    }

    #[test]
    fn an_end_cut_off_shows_to_who_kept_the_head() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let whole = fs::read_to_string(&path).expect("readable");
        let head = check(whole.as_bytes()).expect("intact").head.hash;
        let cut: String = whole.split_inclusive('\n').take(3).collect();
        assert!(check(cut.as_bytes()).is_ok(), "nothing in the file itself can tell");
        let demands = TrailDemands { head: Some(&head), ..TrailDemands::default() };
        let fault = demand(cut.as_bytes(), &demands).expect_err("found");
        assert!(fault.problem.contains("cut off"), "{fault}");
        assert_eq!(demand(whole.as_bytes(), &demands).expect("intact").after_head, Some(0));
    }

    // promise: T-45
    #[test]
    fn lines_behind_the_head_are_counted_and_refused_on_demand() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let head = check(&fs::read(&path).expect("readable")).expect("intact").head.hash;
        // Whoever may write the file goes on with the chain; no key is needed for that.
        let forger = open(&path, "run-1");
        forger.record(&Event::wipe_run_key());
        forger.record(&denied());
        let longer = fs::read(&path).expect("readable");
        let demands = TrailDemands { head: Some(&head), ..TrailDemands::default() };
        assert_eq!(demand(&longer, &demands).expect("the head is in it").after_head, Some(2));
        let fault = demand(&longer, &TrailDemands { exact: true, ..demands }).expect_err("found");
        assert_eq!((fault.line, fault.problem.contains("1 more")), (5, true), "{fault}");
    }

    // promise: T-45
    #[test]
    fn a_run_without_its_end_is_told() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let unfinished = || check(&fs::read(&path).expect("readable")).expect("intact").unfinished;
        assert_eq!(unfinished(), ["run-1"], "its key was made and not overwritten");
        open(&path, "run-1").record(&Event::wipe_run_key());
        assert!(unfinished().is_empty());
        open(&path, "run-1").record(&Event::create_run_key(None));
        assert_eq!(unfinished(), ["run-1"], "the name came again");
    }

    #[test]
    fn many_threads_and_processes_may_append() {
        let dir = dir();
        let path = dir.path().join("trail");
        std::thread::scope(|scope| {
            for run in ["a", "b", "c", "d"] {
                let trail = std::sync::Arc::new(open(&path, run));
                for _ in 0..2 {
                    let trail = std::sync::Arc::clone(&trail);
                    scope.spawn(move || {
                        for _ in 0..50 {
                            trail.record(&read());
                        }
                        assert_eq!(trail.problem(), None);
                    });
                }
            }
        });
        let summary = check(&fs::read(&path).expect("readable")).expect("intact");
        assert_eq!((summary.events, summary.runs.len(), summary.missed), (400, 4, 0));
    }
}

mod trouble {
    use super::*;

    #[test]
    fn a_torn_line_is_marked_and_the_chain_goes_on() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let whole = fs::read(&path).expect("readable");
        let start = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').expect("lines") + 1;
        // Torn at several places, and at the newline alone.
        for (end, torn, events) in [(start + 1, 1, 5), (start + 200, 1, 5), (whole.len() - 1, 0, 5)] {
            fs::write(&path, &whole[..end]).expect("written");
            let fault = check(&fs::read(&path).expect("readable")).expect_err("torn");
            assert_eq!(fault.line, 4);
            open(&path, "run-3").record(&read());
            let bytes = fs::read(&path).expect("readable");
            let summary = check(&bytes).unwrap_or_else(|fault| panic!("torn at {end}: {fault}"));
            assert_eq!((summary.events, summary.torn), (events, torn));
            // What was torn is part of the chain: it cannot be changed either.
            if torn == 1 {
                let mut tampered = bytes;
                tampered[start] ^= 1;
                assert!(check(&tampered).is_err());
            }
        }
        fs::write(&path, "{\"eventV").expect("written");
        open(&path, "run-4").record(&read());
        assert_eq!(check(&fs::read(&path).expect("readable")).expect("intact").torn, 1);
    }

    #[test]
    fn a_full_disk_is_told_and_the_gap_is_in_the_trail() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: needs root for a tmpfs");
            return;
        }
        use nix::mount::{MntFlags, MsFlags};
        let dir = dir();
        let options = Some("size=16k,mode=0700");
        nix::mount::mount(Some("trail"), dir.path(), Some("tmpfs"), MsFlags::empty(), options).expect("a tmpfs");
        let path = dir.path().join("trail");
        let trail = open(&path, "run");
        for _ in 0..30 {
            trail.record(&read());
        }
        let problem = trail.problem().map(str::to_owned);
        fs::write(dir.path().join("more"), "").expect("an inode is free");
        nix::mount::mount(None::<&str>, dir.path(), None::<&str>, MsFlags::MS_REMOUNT, Some("size=1m"))
            .expect("larger");
        trail.record(&read());
        drop(trail);
        let written = fs::read(&path).expect("readable");
        nix::mount::umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmounted");

        assert!(problem.is_some_and(|text| text.contains("part of a line") || text.contains("No space")));
        let summary = check(&written).expect("intact, with a gap that is told");
        assert!(summary.missed > 0 && summary.events + summary.missed >= 31, "{summary:?}");
    }

    #[test]
    fn a_file_cut_short_under_the_run_is_told_and_found() {
        let dir = dir();
        let path = dir.path().join("trail");
        let trail = open(&path, "run");
        trail.record(&read());
        trail.record(&read());
        OpenOptions::new().write(true).open(&path).expect("opened").set_len(0).expect("cut");
        trail.record(&read());
        assert!(trail.problem().is_some_and(|problem| problem.contains("cut short")));
        trail.record(&read());
        let fault = check(&fs::read(&path).expect("readable")).expect_err("found");
        assert_eq!(fault.line, 1);
    }

    #[test]
    fn files_that_cannot_hold_a_trail_are_refused_at_start() {
        let dir = dir();
        let path = dir.path().join("trail");
        let refused = |path: &Path, word: &str| {
            let error = Trail::open(&AuditDestination::File(path.to_owned()), "run").expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.to_string().contains(text(path)), "{error}");
        };
        refused(&dir.path().join("missing/trail"), "name a file in a directory");
        refused(dir.path(), "cannot be opened");
        refused(Path::new("/dev/null"), "not a regular file");
        fs::write(&path, "other contents\n").expect("written");
        refused(&path, "another file");
        fs::write(&path, "other contents").expect("written");
        refused(&path, "no line of runseal");
        fs::write(&path, "").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        refused(&path, "chmod o-w");
        let link = dir.path().join("link");
        symlink(&path, &link).expect("a link");
        refused(&link, "cannot be opened");

        let path = dir.path().join("changed");
        sample(&path);
        let mut bytes = fs::read(&path).expect("readable");
        let at = bytes.len() - 10;
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("written");
        refused(&path, "audit verify");
    }

    #[test]
    fn only_the_user_may_read_a_new_trail() {
        let dir = dir();
        let path = dir.path().join("trail");
        open(&path, "run").record(&read());
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_trail_that_is_off_keeps_nothing_and_has_no_problem() {
        let trail = Trail::off();
        trail.identify(caller());
        trail.record(&read());
        trail.sync();
        assert_eq!((trail.problem(), trail.head()), (None, None));
    }
}

mod journal {
    use super::*;

    fn socket(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        socket
    }

    fn entry(socket: &UnixDatagram) -> String {
        let mut bytes = vec![0; 256 << 10];
        let length = socket.recv(&mut bytes).expect("an entry");
        bytes.truncate(length);
        String::from_utf8(bytes).expect("UTF-8")
    }

    fn field<'a>(entry: &'a str, name: &str) -> &'a str {
        entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_else(|| panic!("{name}"))
    }

    #[test]
    fn entries_are_native_fields_and_their_messages_a_chain() {
        let dir = dir();
        let path = dir.path().join("socket");
        let journal = socket(&path);
        let trail = Trail::open_journal(&path, "run-1").expect("a trail");
        let mut exported = String::new();
        for event in [Event::create_run_key(None), read(), denied()] {
            trail.record(&event);
            let entry = entry(&journal);
            assert!(entry.ends_with('\n'));
            assert_eq!(entry.lines().count(), 4, "no field has a newline: {entry}");
            assert_eq!(field(&entry, "SYSLOG_IDENTIFIER"), "runseal");
            assert_eq!(field(&entry, "RUNSEAL_RUN_ID"), "run-1");
            assert_eq!(field(&entry, "PRIORITY"), "6");
            exported.push_str(field(&entry, "MESSAGE"));
            exported.push('\n');
        }
        let summary = check(exported.as_bytes()).expect("intact");
        assert_eq!(summary.events, 3);
        assert_eq!(trail.head(), Some(summary.head));
    }

    #[test]
    fn a_journal_that_was_started_anew_is_found_again() {
        let dir = dir();
        let path = dir.path().join("socket");
        let first = socket(&path);
        let trail = Trail::open_journal(&path, "run").expect("a trail");
        drop(first);
        fs::remove_file(&path).expect("removed");
        trail.record(&read());
        assert!(trail.problem().is_some(), "there was none for a while");
        let second = socket(&path);
        trail.record(&read());
        let line: Value = serde_json::from_str(field(&entry(&second), "MESSAGE")).expect("JSON");
        assert_eq!(line["additionalEventData"]["missedEvents"], 1);
        assert_eq!(line["additionalEventData"]["sequence"], 1);
    }

    #[test]
    fn no_journal_is_an_error_at_start() {
        let path = PathBuf::from("/nonexistent/socket");
        let error = Trail::open_journal(&path, "run").expect_err("refused");
        assert!(matches!(error, AuditError::Journal { .. }));
        assert!(error.to_string().contains("name a file"), "{error}");
    }
}

mod signature {
    use super::*;

    /// A key made by the command line: its private file and who it is.
    fn key(dir: &Path, name: &str) -> (PathBuf, Witness) {
        let path = dir.join(name);
        let made = runseal(&["audit", "keygen", text(&path)]);
        assert_eq!(made.status.code(), Some(0), "{made:?}");
        let witness = Witness::read(&dir.join(format!("{name}.pub"))).expect("a public key");
        assert!(String::from_utf8_lossy(&made.stdout).contains(witness.name()), "{made:?}");
        (path, witness)
    }

    fn signed(path: &Path, key: &Path, run: &str) -> Trail {
        let destination = AuditDestination::File(path.to_owned());
        Trail::of(&AuditSpec { destination, sign: Some(key.to_owned()) }, run).expect("a trail")
    }

    fn by(keys: &[Witness]) -> TrailDemands<'_> {
        TrailDemands { keys, ..TrailDemands::default() }
    }

    fn sample(path: &Path, key: &Path) {
        let trail = signed(path, key, "run-1");
        trail.record(&Event::create_run_key(None));
        trail.record(&denied());
        trail.record(&Event::wipe_run_key());
        assert_eq!(trail.problem(), None);
    }

    /// What an attacker without the key can do: take every event, change one, and make the whole chain anew.
    fn recomputed(trail: &str) -> String {
        let mut previous = "0".repeat(64);
        let mut forged = String::new();
        for line in trail.lines() {
            let event: Value = serde_json::from_str(line).expect("JSON");
            let link = &event["additionalEventData"];
            let (hash, signature) = (link["hash"].as_str().expect("a hash"), link["signature"].as_str());
            let mut line = line.replace("AccessDenied", "NothingToSee").replace(hash, &"0".repeat(64));
            line = line.replace(link["previousHash"].as_str().expect("a hash"), &previous);
            if let Some(signature) = signature {
                line = line.replace(signature, &"0".repeat(128));
            }
            previous = sha256(line.as_bytes());
            line = line.replace(&format!("\"hash\":\"{}\"", "0".repeat(64)), &format!("\"hash\":\"{previous}\""));
            if let Some(signature) = signature {
                line = line.replace(&"0".repeat(128), signature);
            }
            forged += &(line + "\n");
        }
        forged
    }

    fn sha256(bytes: &[u8]) -> String {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // promise: T-46
    #[test]
    fn a_trail_made_anew_is_found_with_the_key_only() {
        let dir = dir();
        let path = dir.path().join("trail");
        let (key, witness) = key(dir.path(), "key");
        sample(&path, &key);
        let trail = fs::read_to_string(&path).expect("readable");
        let witnesses = [witness];
        assert_eq!(demand(trail.as_bytes(), &by(&witnesses)).expect("intact").signed, 3);
        let forged = recomputed(&trail);
        assert!(forged.contains("NothingToSee") && !forged.contains("AccessDenied"));
        assert_eq!(check(forged.as_bytes()).expect("an unsigned chain cannot show it").events, 3);
        let fault = demand(forged.as_bytes(), &by(&witnesses)).expect_err("found");
        assert!(fault.problem.contains("forged"), "{fault}");
    }

    // promise: T-46
    #[test]
    fn every_line_needs_a_signature_by_a_known_key() {
        let dir = dir();
        let path = dir.path().join("trail");
        let ((key, first), (other_key, second)) = (key(dir.path(), "key"), key(dir.path(), "other"));
        sample(&path, &key);
        let both = [first.clone(), second.clone()];
        assert_eq!(demand(&fs::read(&path).expect("readable"), &by(&both)).expect("intact").signed, 3);
        let fault = demand(&fs::read(&path).expect("readable"), &by(&both[1..])).expect_err("another key");
        assert!(fault.line == 1 && fault.problem.contains(first.name()), "{fault}");

        // Lines that somebody without the key appends, and what a run with the key writes after them.
        open(&path, "run-2").record(&read());
        signed(&path, &key, "run-3").record(&read());
        let fault = demand(&fs::read(&path).expect("readable"), &by(&both)).expect_err("found");
        assert_eq!((fault.line, fault.problem.as_str()), (4, "it is not signed"));

        // A signature of one line does not fit another, nor that of another key.
        sample(&dir.path().join("theirs"), &other_key);
        let [ours, theirs] = ["trail", "theirs"].map(|name| lines(&dir.path().join(name)));
        let signature = |line: &Value| line["additionalEventData"]["signature"].as_str().expect("signed").to_owned();
        let text = fs::read_to_string(&path).expect("readable");
        let text: String = text.split_inclusive('\n').take(3).collect();
        for wrong in [signature(&ours[1]), signature(&theirs[0]), "0".repeat(128), signature(&ours[0]).to_uppercase()] {
            let swapped = text.replace(&signature(&ours[0]), &wrong);
            assert_eq!(demand(swapped.as_bytes(), &by(&both)).expect_err("found").line, 1, "{wrong}");
        }
        // A line cannot be made to look unsigned, and be right.
        let bare = text.replace(&format!(",\"signature\":\"{}\"", signature(&ours[0])), "");
        assert_eq!(check(bare.as_bytes()).expect_err("found").line, 1);
    }

    #[test]
    fn a_torn_line_is_marked_with_a_signature() {
        let dir = dir();
        let path = dir.path().join("trail");
        let (key, witness) = key(dir.path(), "key");
        sample(&path, &key);
        OpenOptions::new().append(true).open(&path).expect("opened").write_all(b"{\"eventVersion\":").expect("torn");
        signed(&path, &key, "run-2").record(&read());
        let summary = demand(&fs::read(&path).expect("readable"), &by(&[witness])).expect("intact");
        assert_eq!((summary.signed, summary.torn), (5, 1));
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let dir = dir();
        let (path, _) = key(dir.path(), "key");
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
        let refused = |key: &Path| {
            let destination = AuditDestination::File(dir.path().join("trail"));
            let error = Trail::of(&AuditSpec { destination, sign: Some(key.to_owned()) }, "run").expect_err("refused");
            assert!(!dir.path().join("trail").exists(), "nothing is begun");
            error.to_string()
        };
        for mode in [0o640, 0o604, 0o620, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert!(refused(&path).contains("others may read or change it"), "{mode:o}");
        }
        let none = dir.path().join("none");
        fs::write(&none, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").expect("written");
        fs::set_permissions(&none, fs::Permissions::from_mode(0o600)).expect("set");
        assert!(refused(&none).contains("no private Ed25519 key"));
        assert!(refused(&dir.path().join("key.pub")).contains("others may"));
        assert!(refused(dir.path()).contains("regular file"));
        assert!(refused(Path::new("/nonexistent")).contains("No such file"));
        assert!(Witness::read(&none).is_err(), "a private key is no public one");
        let again = runseal(&["audit", "keygen", text(&path)]);
        assert_eq!(again.status.code(), Some(78), "nothing is replaced: {again:?}");
        let run = runseal(&["run", "--audit", "/dev/null", "--audit-sign", text(&none), "--", "true"]);
        assert_eq!(run.status.code(), Some(78), "{run:?}");
    }

    /// Another implementation makes the key, and checks the signature.
    #[test]
    fn openssl_agrees() {
        let dir = dir();
        let file = |name: &str| text(&dir.path().join(name)).to_owned();
        let openssl = |args: &[&str]| std::process::Command::new("openssl").args(args).output();
        if !openssl(&["version"]).is_ok_and(|version| version.status.success()) {
            println!("SKIP: no openssl here");
            return;
        }
        let run = |args: &[&str]| {
            let output = openssl(args).expect("openssl runs");
            assert!(output.status.success(), "{args:?}: {output:?}");
        };
        run(&["genpkey", "-algorithm", "ed25519", "-out", &file("key")]);
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).expect("set");
        run(&["pkey", "-in", &file("key"), "-pubout", "-out", &file("key.pub")]);
        let path = dir.path().join("trail");
        sample(&path, &dir.path().join("key"));
        let line = lines(&path).pop().expect("a line");
        let link = &line["additionalEventData"];
        let digits = link["signature"].as_str().expect("signed");
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
        let signature: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect();
        fs::write(file("signature"), signature).expect("written");
        fs::write(file("message"), format!("runseal-audit-line-1:{}", link["hash"].as_str().expect("a hash")))
            .expect("written");
        let (public, message, signature) = (file("key.pub"), file("message"), file("signature"));
        run(&["pkeyutl", "-verify", "-pubin", "-inkey", &public, "-rawin", "-in", &message, "-sigfile", &signature]);
        let verified = runseal(&["audit", "verify", "--key", &public, text(&path)]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        assert!(String::from_utf8_lossy(&verified.stdout).contains("every line is signed"), "{verified:?}");
        // The other way round: a key of ours is one for openssl.
        let (ours, _) = key(dir.path(), "ours");
        run(&["pkey", "-in", text(&ours), "-pubout", "-out", &file("again")]);
        assert_eq!(fs::read(file("again")).expect("written"), fs::read(file("ours.pub")).expect("made"));
    }
}

mod command {
    use super::*;

    #[test]
    fn verify_says_what_is_wrong_and_where() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let intact = runseal(&["audit", "verify", text(&path)]);
        assert_eq!(intact.status.code(), Some(0));
        let said = String::from_utf8(intact.stdout).expect("UTF-8");
        assert!(said.starts_with("intact: 4 events of 2 runs\nnobody's signature was asked for (--key): "), "{said}");
        assert!(said.contains("\nrun run-1: no end; "), "{said}");
        let head = said.lines().find_map(|line| line.strip_prefix("head: ")).expect("the head")[..64].to_owned();
        assert_eq!(runseal(&["audit", "verify", "--head", &head, text(&path)]).status.code(), Some(0));
        open(&path, "run-2").record(&read());
        let later = runseal(&["audit", "verify", "--head", &head, text(&path)]);
        assert!(String::from_utf8_lossy(&later.stdout).contains("\n1 lines come after "), "{later:?}");
        assert_eq!(runseal(&["audit", "verify", "--head", &head, "--exact", text(&path)]).status.code(), Some(65));
        assert_eq!(runseal(&["audit", "verify", "--exact", text(&path)]).status.code(), Some(64));
        let other = "0".repeat(64);
        assert_eq!(runseal(&["audit", "verify", "--head", &other, text(&path)]).status.code(), Some(65));
        assert_eq!(runseal(&["audit", "verify", "--head", "abc", text(&path)]).status.code(), Some(64));

        let json = runseal(&["audit", "verify", "--json", text(&path)]);
        let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!((&json["intact"], &json["events"], &json["signed"]), (&true.into(), &5.into(), &0.into()));
        assert_eq!(json["unfinished"], serde_json::json!(["run-1"]));

        let tampered = fs::read_to_string(&path).expect("readable").replacen("REQ-1", "REQ-9", 1);
        fs::write(&path, tampered).expect("written");
        let broken = runseal(&["audit", "verify", text(&path)]);
        assert_eq!(broken.status.code(), Some(65));
        assert!(String::from_utf8_lossy(&broken.stdout).contains("line 2: its hash does not match"));
        let json = runseal(&["audit", "verify", "--json", text(&path)]);
        let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!((&json["intact"], &json["line"]), (&false.into(), &2.into()));
        assert_eq!(runseal(&["audit", "verify", "/nonexistent"]).status.code(), Some(66));
    }

    #[test]
    fn verify_reads_standard_input() {
        let dir = dir();
        let path = dir.path().join("trail");
        sample(&path);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_runseal"))
            .args(["audit", "verify", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs");
        child.stdin.take().expect("piped").write_all(&fs::read(&path).expect("readable")).expect("sent");
        assert_eq!(child.wait().expect("ended").code(), Some(0));
    }
}
