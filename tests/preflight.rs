//! Preflight: every state of inputs and output to its finding, and nothing left behind.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use runseal::aws::UploadSettings;
use runseal::preflight::{Cleared, Code, Finding, Report, Request};
use runseal::spec::{InputSpec, Location, StagingRules};

const PLENTY: u64 = 1 << 40;
const NOBODY: u32 = 65_534;

/// A directory with `in/` (a file in it) and an empty `out/`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(dir.path().join("in/sub")).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("in/file"), "data").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn check(&self, inputs: &[(&str, &str)], output: &str) -> Result<Cleared, Report> {
        check(&self.inputs(inputs), Some(&self.path(output)), false, PLENTY)
    }

    fn inputs(&self, inputs: &[(&str, &str)]) -> Vec<InputSpec> {
        inputs.iter().map(|(from, to)| InputSpec { source: self.path(from).into(), target: to.into() }).collect()
    }

    /// The only finding, which must name `subject` and offer a remedy.
    fn finding(&self, inputs: &[(&str, &str)], output: &str, subject: &str) -> Finding {
        only(self.check(inputs, output).unwrap_err(), &self.path(subject))
    }
}

fn only(report: Report, subject: &Path) -> Finding {
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    let real = fs::canonicalize(subject).unwrap_or(subject.to_owned());
    assert!([subject, &real].iter().any(|s| finding.subject == s.to_str().unwrap()), "{finding:?}");
    assert!(!finding.remedy.is_empty());
    finding.clone()
}

/// Local inputs and output only.
fn check(inputs: &[InputSpec], output: Option<&Path>, overwrite: bool, space: u64) -> Result<Cleared, Report> {
    let output = output.map(|path| Location::Path(path.to_owned()));
    let run = "r".parse().unwrap();
    let request = Request {
        run: &run,
        inputs,
        output: output.as_ref(),
        uploads: &UploadSettings { overwrite, ..UploadSettings::default() },
        rules: StagingRules::default(),
        on_behalf: None,
        run_key: None,
        explain: false,
        space,
    };
    runseal::preflight::check(&request, None)
}

/// Runs `work` with the file-system rights of nobody. Threads that it starts have them too, others do not.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    if !geteuid().is_root() {
        eprintln!("SKIP: only root can take the rights of another user");
        return None;
    }
    let dropped = || {
        setfsgid(Gid::from_raw(NOBODY));
        setfsuid(Uid::from_raw(NOBODY));
        work()
    };
    Some(std::thread::scope(|scope| scope.spawn(dropped).join().unwrap()))
}

#[test]
fn what_is_well_is_cleared_and_nothing_is_left_behind() {
    let place = Place::new();
    fs::write(place.path("in/sub/more"), vec![1; 10_000]).unwrap();
    symlink("nowhere", place.path("in/dangling")).unwrap();
    let cleared = place.check(&[("in", "set"), ("in/file", "one/file")], "out").unwrap();
    assert_eq!(cleared.input_bytes(), 4 + 10_000 + 4);
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 0);
    place.check(&[("in", "in")], "new").unwrap();
    assert!(!place.path("new").exists());
    check(&[], None, false, 0).unwrap();
}

#[test]
fn a_link_named_as_input_stands_for_its_data() {
    let place = Place::new();
    symlink("in/file", place.path("link")).unwrap();
    symlink("in", place.path("tree")).unwrap();
    let cleared = place.check(&[("link", "link"), ("tree", "tree")], "out").unwrap();
    assert_eq!(cleared.input_bytes(), 8);
}

#[test]
fn missing_inputs_are_named() {
    let place = Place::new();
    assert_eq!(place.finding(&[("no", "no")], "out", "no").code, Code::InputUriNotFound);
    symlink("nowhere", place.path("link")).unwrap();
    let finding = place.finding(&[("link", "x")], "out", "link");
    assert_eq!(finding.code, Code::InputUriNotFound);
    assert!(finding.problem.contains("`nowhere`"), "{finding:?}");
    let empty = InputSpec { source: PathBuf::new().into(), target: "x".into() };
    let report = check(&[empty], Some(&place.path("out")), false, PLENTY).unwrap_err();
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].code, Code::InputUriNotFound);
}

#[test]
fn special_files_are_refused_by_name() {
    let place = Place::new();
    nix::unistd::mkfifo(&place.path("in/sub/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let finding = place.finding(&[("in", "in")], "out", "in/sub/fifo");
    assert_eq!((finding.code, finding.problem.contains("FIFO")), (Code::ImportFailed, true));
    fs::remove_file(place.path("in/sub/fifo")).unwrap();
    let _socket = UnixListener::bind(place.path("in/socket")).unwrap();
    let finding = place.finding(&[("in/socket", "x")], "out", "in/socket");
    assert_eq!((finding.code, finding.problem.contains("socket")), (Code::ImportFailed, true));
    let null = InputSpec { source: PathBuf::from("/dev/null").into(), target: "x".into() };
    let finding = only(check(&[null], None, false, PLENTY).unwrap_err(), Path::new("/dev/null"));
    assert_eq!((finding.code, finding.problem.contains("character device")), (Code::ImportFailed, true));
}

#[test]
fn a_file_that_hides_its_size_is_refused_rather_than_staged_empty() {
    let cpuinfo = InputSpec { source: PathBuf::from("/proc/cpuinfo").into(), target: "x".into() };
    let finding = only(check(&[cpuinfo], None, false, PLENTY).unwrap_err(), Path::new("/proc/cpuinfo"));
    assert_eq!((finding.code, finding.problem.contains("/proc")), (Code::ImportFailed, true));
}

#[test]
fn what_cannot_be_read_is_named() {
    let place = Place::new();
    for (name, mode) in [("in/file", 0o000), ("in/sub", 0o000), ("in/listed", 0o444)] {
        let path = place.path(name);
        if name == "in/listed" {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("child"), "").unwrap();
        }
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let Some(report) = as_nobody(|| check(&place.inputs(&[("in", "in")]), None, false, PLENTY)) else { return };
        let subject = if name == "in/listed" { path.join("child") } else { path.clone() };
        let finding = only(report.unwrap_err(), &subject);
        assert_eq!(finding.code, Code::ImportFailed);
        assert!(finding.problem.contains("Permission denied"), "{finding:?}");
        fs::set_permissions(&path, before).unwrap();
    }
}

#[test]
fn targets_must_stay_below_the_input_directory() {
    let place = Place::new();
    for target in ["", ".", "..", "a/../../b", "/etc"] {
        let finding = place.finding(&[("in/file", target)], "out", "in/file");
        assert_eq!(finding.code, Code::ImportFailed, "{target}");
    }
}

#[test]
fn two_inputs_on_one_path_conflict() {
    let place = Place::new();
    fs::write(place.path("other"), "").unwrap();
    for (first, second, at) in [
        (("in/file", "x"), ("other", "x"), "x"),
        (("in/file", "x"), ("in/file", "x"), "x"),
        (("in", "x"), ("other", "x/file"), "x/file"),
        (("other", "x/file/below"), ("in", "x"), "x/file"),
        (("in/file", "x"), ("other", "x/y"), "x"),
        (("in", "x"), ("in", "x"), "x"),
    ] {
        let report = place.check(&[first, second], "out").unwrap_err();
        let [Finding { code, subject, remedy, .. }] = report.findings.as_slice() else { panic!("{report}") };
        assert_eq!((*code, subject.as_str()), (Code::InputConflict, at), "{first:?} {second:?}");
        assert!(remedy.contains("--input"));
    }
    place.check(&[("in", "x"), ("other", "x/sub/other"), ("in/file", "x/deep/er/file")], "out").unwrap();
    place.check(&[("other", "x/sub/other"), ("in", "x")], "out").unwrap();
}

#[test]
fn inputs_must_fit_counted_in_sectors_without_holes() {
    let place = Place::new();
    let sparse = File::create(place.path("in/sub/sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let inputs = place.inputs(&[("in", "in")]);
    check(&inputs, None, false, 4096).unwrap();
    let report = check(&inputs, None, false, 4095).unwrap_err();
    assert_eq!(report.findings[0].code, Code::FileSystemOutOfSpace);
    assert!(report.findings[0].problem.contains("4.0 KiB"), "{report}");
}

#[test]
fn outputs_that_cannot_take_results_are_refused() {
    let place = Place::new();
    let inputs = [("in/file", "x")];
    fs::write(place.path("plain"), "").unwrap();
    symlink("nowhere", place.path("dangling")).unwrap();
    for (output, subject) in [
        ("plain", "plain"),
        ("plain/below", "plain/below"),
        ("no/such/parent", "no/such/parent"),
        ("dangling", "dangling"),
    ] {
        let finding = place.finding(&inputs, output, subject);
        assert_eq!(finding.code, Code::ExportFailed, "{output}");
    }
    assert!(place.finding(&inputs, "no/such/parent", "no/such/parent").remedy.contains("mkdir -p"));
}

#[test]
fn outputs_without_the_right_to_write_are_refused() {
    let place = Place::new();
    let try_output = |output: &str| {
        let output = place.path(output);
        as_nobody(|| check(&[], Some(&output), false, PLENTY)).map(|result| result.unwrap_err())
    };
    let Some(report) = try_output("out") else { return };
    let finding = only(report, &place.path("out"));
    assert_eq!((finding.code, finding.problem.contains("Permission denied")), (Code::ExportFailed, true));
    let finding = only(try_output("new").unwrap(), place.dir.path());
    assert_eq!(finding.code, Code::ExportFailed);
    assert!(!place.path("new").exists());
}

#[test]
fn a_read_only_output_is_refused() {
    use nix::mount::{MsFlags, mount, umount};
    let place = Place::new();
    let out = place.path("out");
    if let Err(e) = mount(Some("tmpfs"), &out, Some("tmpfs"), MsFlags::MS_RDONLY, Some("mode=755")) {
        eprintln!("SKIP: cannot mount a tmpfs: {e}");
        return;
    }
    let report = check(&[], Some(&out), false, PLENTY);
    umount(&out).unwrap();
    let finding = only(report.unwrap_err(), &out);
    assert_eq!((finding.code, finding.remedy.contains("mount it writable")), (Code::ExportFailed, true));
}

#[test]
fn a_full_output_is_refused_and_the_probe_removed() {
    use nix::mount::{MsFlags, mount, umount};
    let place = Place::new();
    let out = place.path("out");
    if let Err(e) = mount(Some("tmpfs"), &out, Some("tmpfs"), MsFlags::empty(), Some("size=8k,mode=755")) {
        eprintln!("SKIP: cannot mount a tmpfs: {e}");
        return;
    }
    let filled = fs::write(out.join("filler"), [0; 8192]);
    let report = check(&[], Some(&out), true, PLENTY);
    let names = fs::read_dir(&out).map(|names| names.count());
    umount(&out).unwrap();
    filled.unwrap();
    assert_eq!(names.unwrap(), 1);
    let finding = only(report.unwrap_err(), &out);
    assert_eq!((finding.code, finding.remedy.contains("free space")), (Code::ExportFailed, true));
}

#[test]
fn output_and_inputs_must_not_contain_one_another() {
    let place = Place::new();
    for output in ["in", "in/sub", "in/new", "."] {
        let report = check(&place.inputs(&[("in", "x")]), Some(&place.path(output)), true, PLENTY).unwrap_err();
        assert_eq!(report.findings.len(), 1, "{report}");
        assert_eq!(report.findings[0].code, Code::ExportFailed, "{output}");
    }
    symlink("in", place.path("alias")).unwrap();
    assert_eq!(place.finding(&[("in", "x")], "alias", "alias").code, Code::ExportFailed);
    assert!(!place.path("in/new").exists());
    place.check(&[("in", "x")], "in-not-really").unwrap();
}

#[test]
fn many_checks_of_one_output_do_not_disturb_each_other() {
    let place = Place::new();
    let check = |i| place.check(&[("in", "in")], if i % 2 == 0 { "out" } else { "new" });
    let again = || (0..20).for_each(|i| drop(check(i).unwrap()));
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(again))));
}

#[test]
fn an_output_with_contents_needs_leave_to_replace() {
    let place = Place::new();
    fs::write(place.path("out/old"), "").unwrap();
    let finding = place.finding(&[], "out", "out");
    assert_eq!((finding.code, finding.remedy.contains("--overwrite")), (Code::OutputNotEmpty, true));
    check(&[], Some(&place.path("out")), true, PLENTY).unwrap();
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 1);
}

#[test]
fn leftovers_of_a_crashed_run_are_named_and_a_live_one_is_left_alone() {
    let place = Place::new();
    let partial = place.path("out/.runseal-old.partial");
    fs::create_dir(&partial).unwrap();
    let finding = place.finding(&[], "out", "out/.runseal-old.partial");
    assert_eq!((finding.code, finding.remedy.contains("rm -r")), (Code::ExportFailed, true));
    let lock = File::open(&partial).unwrap();
    lock.try_lock().unwrap();
    let finding = place.finding(&[], "out", "out/.runseal-old.partial");
    assert_eq!((finding.code, finding.remedy.contains("wait")), (Code::ExportFailed, true));
    assert!(partial.exists());
}

#[test]
fn odd_names_are_inputs_like_any_other() {
    let place = Place::new();
    let long = "n".repeat(255);
    for name in [b"\xff\xfe bytes".as_slice(), b"new\nline", b"-rf", long.as_bytes()] {
        let name = std::ffi::OsStr::from_bytes(name);
        fs::write(place.path("in").join(name), "odd").unwrap();
        let spec = InputSpec { source: place.path("in").join(name).into(), target: name.into() };
        check(&[spec], Some(&place.path("out")), false, PLENTY).unwrap();
    }
    assert_eq!(place.check(&[("in", "in")], "out").unwrap().input_bytes(), 4 + 4 * 3);
}

#[test]
fn everything_is_reported_in_the_order_given() {
    let place = Place::new();
    fs::write(place.path("out/old"), "").unwrap();
    let inputs: Vec<InputSpec> = (0..3000)
        .map(|i| {
            let source = place.path(&format!("in/{i}"));
            if i % 3 > 0 {
                fs::write(&source, "x").unwrap();
            }
            InputSpec { source: source.into(), target: format!("{i}").into() }
        })
        .collect();
    let start = Instant::now();
    let report = check(&inputs, Some(&place.path("out")), false, 5).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let missing: Vec<&str> =
        report.findings.iter().filter(|f| f.code == Code::InputUriNotFound).map(|f| f.subject.as_str()).collect();
    let expected: Vec<PathBuf> = (0..3000).step_by(3).map(|i| place.path(&format!("in/{i}"))).collect();
    assert!(missing.iter().map(Path::new).eq(expected.iter().map(PathBuf::as_path)));
    let codes: Vec<Code> = report.findings[1000..].iter().map(|f| f.code).collect();
    assert_eq!(codes, [Code::FileSystemOutOfSpace, Code::OutputNotEmpty]);
    assert!(report.to_string().contains("preflight found 1002 problems"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["code"], "INPUT_URI_NOT_FOUND");
}
