//! Errors to exit codes: `sysexits.h` numbers, one exhaustive match.

use crate::run::CommandError;
use crate::run::StateError;
use crate::run::error::{
    AuditError, Cause, Code, CryptError, FsError, FuseError, IdentityError, PreflightReport, RunError, StageError,
    VerifyError,
};
use crate::serve::{ConfigError, ServeError};

/// Wrong command line.
pub const USAGE: u8 = 64;
/// A document is not as it should be: a policy with defects, a trail that was changed.
pub const DATA: u8 = 65;
/// An input is missing or cannot be read.
pub const NO_INPUT: u8 = 66;
/// Something the machine should offer is not there.
pub const UNAVAILABLE: u8 = 69;
/// The system failed: the sealed process died, or a system call that should work did not.
pub const SYSTEM: u8 = 71;
/// An output cannot be created.
pub const CANNOT_CREATE: u8 = 73;
/// Reading or writing failed on the way.
pub const IO: u8 = 74;
/// Results were held, and nobody published them in time (`EX_TEMPFAIL`: another try may succeed).
pub const UNPUBLISHED: u8 = 75;
/// No permission.
pub const NO_PERMISSION: u8 = 77;
/// The machine or the command line asks for something that cannot be had together.
pub const CONFIGURATION: u8 = 78;
/// The command exists but cannot be executed, as a shell says it.
pub const NOT_EXECUTABLE: u8 = 126;
/// There is no such command, as a shell says it.
pub const NOT_FOUND: u8 = 127;

/// The exit code for `error`.
pub fn code(error: &RunError) -> u8 {
    match error {
        RunError::Preflight(report) => preflight(report),
        RunError::Aws { source } | RunError::RunKey { source, .. } => aws(source.cause).unwrap_or(UNAVAILABLE),
        RunError::Verify(VerifyError::Unreadable { .. }) => NO_INPUT,
        RunError::Verify(VerifyError::Unfit { .. }) => DATA,
        RunError::Verify(VerifyError::Remote { source, .. }) => aws(source.cause).unwrap_or(fetch(source.cause)),
        RunError::Audit(AuditError::Key { .. }) => CONFIGURATION,
        RunError::Audit(_) => CANNOT_CREATE,
        RunError::Unaudited(_) => IO,
        RunError::Crypt(CryptError::NotLocked(_) | CryptError::NoEngine(_)) => CONFIGURATION,
        RunError::Crypt(_) => SYSTEM,
        RunError::Backing(_) | RunError::Full(_) | RunError::NothingToPublish { .. } => CANNOT_CREATE,
        RunError::Space(_) => IO,
        RunError::Fs(error) => fs(error),
        RunError::Fuse(error) => fuse(error),
        RunError::Fetch(StageError::Outside { .. }) => NO_INPUT,
        RunError::Fetch(StageError::Remote { source, .. }) => aws(source.cause).unwrap_or(fetch(source.cause)),
        RunError::Fetch(StageError::NoCloud { .. }) => UNAVAILABLE,
        RunError::Fetch(_) | RunError::Discarded(_) => IO,
        RunError::Unpublished { .. } => UNPUBLISHED,
        RunError::Command(CommandError::NotFound { .. }) => NOT_FOUND,
        RunError::Command(CommandError::NotExecutable { .. }) => NOT_EXECUTABLE,
        RunError::Command(CommandError::View { .. }) => NO_PERMISSION,
        RunError::Command(CommandError::System { .. }) => SYSTEM,
        RunError::Namespace(_) | RunError::Identity(IdentityError::Unprivileged) => NO_PERMISSION,
        RunError::Identity(IdentityError::NoRange | IdentityError::Exhausted(_)) => CONFIGURATION,
        RunError::Identity(IdentityError::System(_)) => SYSTEM,
        RunError::State(StateError::InUse(_)) => USAGE,
        RunError::State(StateError::OutputInUse { .. }) => CANNOT_CREATE,
        RunError::State(StateError::Unknown(_) | StateError::Locked { .. }) => UNAVAILABLE,
        RunError::State(StateError::Untrusted { .. }) => NO_PERMISSION,
        RunError::State(StateError::System { .. } | StateError::InTheWay { .. }) => CANNOT_CREATE,
        RunError::State(StateError::NoPlace { .. }) => CONFIGURATION,
        RunError::MemoryLock { .. } => CONFIGURATION,
        RunError::Report { .. } | RunError::Copy { .. } => CANNOT_CREATE,
        RunError::Interrupted { signal, .. } => 128 + *signal as u8,
        RunError::Ended { .. } | RunError::Incomplete(_) | RunError::Beside(_) => IO,
        RunError::MountLost { .. } | RunError::CutOff | RunError::Lost(_) | RunError::System { .. } => SYSTEM,
        RunError::Undying { .. } => SYSTEM,
        RunError::Refused(_) | RunError::Unreachable { .. } => UNAVAILABLE,
    }
}

/// The exit code of `runseal serve`.
pub fn serve(error: &ServeError) -> u8 {
    match error {
        ServeError::Config(ConfigError::Read { .. }) => NO_INPUT,
        ServeError::Config(_) | ServeError::Root(_) => CONFIGURATION,
        ServeError::NotRoot => NO_PERMISSION,
        ServeError::Socket { .. } => CANNOT_CREATE,
        ServeError::Unseen(_) => UNAVAILABLE,
        ServeError::Adopt(_) | ServeError::System { .. } => SYSTEM,
    }
}

/// The first finding decides: inputs come first. Why AWS refused weighs more than what it refused.
fn preflight(report: &PreflightReport) -> u8 {
    let Some(first) = report.findings.first() else { return SYSTEM };
    first.cause().and_then(aws).unwrap_or(finding(first.code))
}

fn finding(code: Code) -> u8 {
    match code {
        Code::InputUriNotFound | Code::ImportFailed | Code::InputLinkOutside | Code::ModifiedInputResource => NO_INPUT,
        Code::InputConflict => USAGE,
        Code::ExportFailed | Code::OutputNotEmpty | Code::FileSystemOutOfSpace => CANNOT_CREATE,
        Code::AssumeRoleFailed | Code::RunKeyFailed | Code::KeyUnfit => UNAVAILABLE,
    }
}

/// Causes that say more than what was asked for: no right, or nobody to ask.
fn aws(cause: Cause) -> Option<u8> {
    match cause {
        Cause::Denied => Some(NO_PERMISSION),
        Cause::Credentials | Cause::Unreachable | Cause::Configuration => Some(UNAVAILABLE),
        Cause::NotFound | Cause::Archived | Cause::KeyState | Cause::KeyKind => None,
        Cause::Precondition | Cause::Corrupt | Cause::Rejected => None,
    }
}

/// What an input in S3 could not be read for.
fn fetch(cause: Cause) -> u8 {
    match cause {
        Cause::NotFound | Cause::Archived | Cause::KeyState | Cause::KeyKind => NO_INPUT,
        _ => IO,
    }
}

fn fs(error: &FsError) -> u8 {
    match error {
        FsError::NoInodes | FsError::Store(_) => CANNOT_CREATE,
        _ => SYSTEM,
    }
}

fn fuse(error: &FuseError) -> u8 {
    match error {
        FuseError::Device { source, .. } | FuseError::Mount { source, .. } => {
            if source.kind() == std::io::ErrorKind::PermissionDenied { NO_PERMISSION } else { UNAVAILABLE }
        }
        FuseError::Mountpoint { .. } => CANNOT_CREATE,
        FuseError::Option(_) => USAGE,
        FuseError::Session(_) => SYSTEM,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::run::error::{BackingError, CallError, PublishError};

    fn denied() -> io::Error {
        io::ErrorKind::PermissionDenied.into()
    }

    fn failed(cause: Cause) -> CallError {
        CallError::unanswered("kms:GenerateDataKey", cause, "m")
    }

    fn missing() -> io::Error {
        io::ErrorKind::NotFound.into()
    }

    #[test]
    fn every_kind_of_error_has_its_code() {
        let outside = |source| StageError::Outside { action: "reading", path: "/x".into(), source };
        let signal = nix::sys::signal::Signal::SIGTERM;
        let refused = BackingError::Refused { path: "/x".into(), problem: "p".into(), remedy: "r" };
        let aws = |cause| RunError::Aws { source: failed(cause) };
        let remote = |cause| {
            let uri = "s3://bucket/key".parse().expect("a URI");
            RunError::Fetch(StageError::Remote { action: "reading", uri, source: Box::new(failed(cause)) })
        };
        let gap = AuditError::System(denied());
        for (error, expected) in [
            (aws(Cause::Denied), 77),
            (aws(Cause::Credentials), 69),
            (aws(Cause::Unreachable), 69),
            (aws(Cause::Configuration), 69),
            (RunError::RunKey { key: "k".into(), source: failed(Cause::Denied) }, 77),
            (RunError::RunKey { key: "k".into(), source: failed(Cause::KeyState) }, 69),
            (remote(Cause::Denied), 77),
            (remote(Cause::Credentials), 69),
            (remote(Cause::NotFound), 66),
            (remote(Cause::KeyState), 66),
            (remote(Cause::Corrupt), 74),
            (RunError::Audit(gap), 73),
            (RunError::Verify(VerifyError::Unreadable { place: "m".into(), source: missing() }), 66),
            (RunError::Verify(VerifyError::Unfit { place: "m".into(), problem: "p".into() }), 65),
            (RunError::Verify(VerifyError::Remote { place: "u".into(), source: Box::new(failed(Cause::Denied)) }), 77),
            (RunError::Audit(AuditError::Key { path: "/x".into(), problem: "p".into(), remedy: "r" }), 78),
            (RunError::Unaudited("disk full".into()), 74),
            (RunError::Crypt(CryptError::NotLocked("limit".into())), 78),
            (RunError::Crypt(CryptError::NoEngine("AWS-LC")), 78),
            (RunError::Crypt(CryptError::SelfTest("AWS-LC")), 71),
            (RunError::Backing(refused), 73),
            (RunError::Full("/x".into()), 73),
            (RunError::NothingToPublish { output: "/x".into() }, 73),
            (RunError::Space(denied()), 74),
            (RunError::Fs(FsError::NoInodes), 73),
            (RunError::Fs(FsError::NotFound), 71),
            (RunError::Fuse(FuseError::Device { source: denied(), remedy: "r" }), 77),
            (RunError::Fuse(FuseError::Device { source: missing(), remedy: "r" }), 69),
            (RunError::Fuse(FuseError::Mount { path: "/x".into(), source: denied() }), 77),
            (RunError::Fuse(FuseError::Mountpoint { path: "/x".into(), problem: "p".into() }), 73),
            (RunError::Fuse(FuseError::Option("o".into())), 64),
            (RunError::Fuse(FuseError::Session(missing())), 71),
            (RunError::Fetch(outside(missing())), 66),
            (RunError::Fetch(StageError::Modified { path: "/x".into() }), 74),
            (RunError::Discarded(PublishError::Stage(outside(denied()))), 74),
            (RunError::Unpublished { held: None, source: PublishError::Stopped }, 75),
            (RunError::Command(CommandError::NotFound { name: "x".into() }), 127),
            (RunError::Command(CommandError::NotExecutable { path: "x".into(), source: denied() }), 126),
            (RunError::Command(CommandError::View { source: denied() }), 77),
            (RunError::Command(CommandError::System { name: "x".into(), source: denied() }), 71),
            (RunError::State(StateError::OutputInUse { run: Some("x".into()), output: "/o".into() }), 73),
            (RunError::State(StateError::Unknown("x".into())), 69),
            (RunError::State(StateError::Locked { path: "/x".into(), holder: None }), 69),
            (RunError::State(StateError::Untrusted { path: "/x".into() }), 77),
            (RunError::State(StateError::System { action: "a", path: "/x".into(), source: denied() }), 73),
            (RunError::State(StateError::InTheWay { path: "/x".into() }), 73),
            (RunError::State(StateError::NoPlace { base: "/x".into() }), 78),
            (RunError::Beside("/x".into()), 74),
            (RunError::MemoryLock { source: denied() }, 78),
            (RunError::Report { path: "/x".into(), source: denied() }, 73),
            (RunError::Copy { path: "/x".into(), source: denied() }, 73),
            (RunError::Interrupted { signal, doing: "d" }, 143),
            (RunError::Ended { doing: "d" }, 74),
            (RunError::Incomplete("i".into()), 74),
            (RunError::MountLost { doing: "d" }, 71),
            (RunError::CutOff, 71),
            (RunError::Undying { run: "r".into(), processes: "p".into() }, 71),
            (RunError::Lost("l".into()), 71),
            (RunError::Refused("r".into()), 69),
            (RunError::Unreachable { run: "r".into(), source: missing() }, 69),
            (RunError::System { action: "a", source: denied() }, 71),
        ] {
            assert_eq!(code(&error), expected, "{error}");
        }
    }

    #[test]
    fn why_aws_refused_weighs_more_than_what() {
        use crate::preflight::{AwsDetails, Evidence, Finding};
        let details = |cause| AwsDetails {
            cause,
            operation: "s3:GetObject",
            action: None,
            key: None,
            principal: None,
            policy: None,
            explicit_deny: false,
            aws_code: String::new(),
            aws_message: String::new(),
            request_ids: Vec::new(),
            also: Vec::new(),
            repair: None,
        };
        for (code, cause, expected) in [
            (Code::ExportFailed, Some(Cause::Denied), 77),
            (Code::ImportFailed, Some(Cause::Denied), 77),
            (Code::AssumeRoleFailed, Some(Cause::Credentials), 69),
            (Code::ImportFailed, Some(Cause::Unreachable), 69),
            (Code::ImportFailed, Some(Cause::Configuration), 69),
            (Code::InputUriNotFound, Some(Cause::NotFound), 66),
            (Code::ImportFailed, Some(Cause::KeyState), 66),
            (Code::ExportFailed, Some(Cause::KeyState), 73),
            (Code::RunKeyFailed, Some(Cause::KeyState), 69),
            (Code::InputLinkOutside, None, 66),
            (Code::InputConflict, None, 64),
            (Code::FileSystemOutOfSpace, None, 73),
        ] {
            let (subject, problem, remedy) = ("s".into(), "p".into(), "r".into());
            let finding = Finding { code, subject, problem, remedy, aws: cause.map(details).map(Box::new) };
            let report = PreflightReport { findings: vec![finding], evidence: Evidence::default() };
            assert_eq!(super::code(&RunError::Preflight(report)), expected, "{code:?} {cause:?}");
        }
    }
}
