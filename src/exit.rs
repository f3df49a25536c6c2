//! Errors to exit statuses: one exhaustive match.

use crate::run::CommandError;
use crate::run::StateError;
use crate::run::error::{
    AuditError, Cause, Code, CryptError, FamilyError, FsError, FuseError, IdentityError, PreflightReport, RunError,
    StageError, VerifyError,
};
use crate::serve::{ConfigError, ServeError};
use crate::units::exit::Exit;

/// The exit code for `error`.
pub fn code(error: &RunError) -> u8 {
    let exit = match error {
        RunError::Preflight(report) => preflight(report),
        RunError::Aws { source } | RunError::RunKey { source, .. } => aws(source.cause).unwrap_or(Exit::Unavailable),
        RunError::Verify(VerifyError::Unreadable { .. }) => Exit::NoInput,
        RunError::Verify(VerifyError::Unfit { .. }) => Exit::Data,
        RunError::Verify(VerifyError::Remote { source, .. }) => aws(source.cause).unwrap_or(fetch(source.cause)),
        RunError::Audit(AuditError::Key { .. }) => Exit::Configuration,
        RunError::Audit(_) => Exit::CannotCreate,
        RunError::Unaudited(_) => Exit::Io,
        RunError::Crypt(CryptError::NotLocked(_) | CryptError::NoEngine(_)) => Exit::Configuration,
        RunError::Crypt(_) => Exit::System,
        RunError::Backing(_) | RunError::Full(_) | RunError::NothingToPublish { .. } => Exit::CannotCreate,
        RunError::Space(_) => Exit::Io,
        RunError::Fs(error) => fs(error),
        RunError::Fuse(error) => fuse(error),
        RunError::Fetch(StageError::Outside { .. }) => Exit::NoInput,
        RunError::Fetch(StageError::Remote { source, .. }) => aws(source.cause).unwrap_or(fetch(source.cause)),
        RunError::Fetch(StageError::NoCloud { .. }) => Exit::Unavailable,
        RunError::Fetch(_) | RunError::Discarded(_) => Exit::Io,
        RunError::Unpublished { .. } => Exit::Unpublished,
        RunError::MemoryLock { .. } => Exit::Configuration,
        RunError::Incomplete(_) => Exit::Io,
        RunError::Family(error) => return family(error),
    };
    exit.number()
}

fn family(error: &FamilyError) -> u8 {
    let exit = match error {
        FamilyError::Command(CommandError::NotFound { .. }) => Exit::NotFound,
        FamilyError::Command(CommandError::NotExecutable { .. }) => Exit::NotExecutable,
        FamilyError::Command(CommandError::View { .. }) => Exit::NoPermission,
        FamilyError::Command(CommandError::System { .. }) => Exit::System,
        FamilyError::Namespace(_) | FamilyError::Identity(IdentityError::Unprivileged) => Exit::NoPermission,
        FamilyError::Identity(IdentityError::NoRange | IdentityError::Exhausted(_)) => Exit::Configuration,
        FamilyError::Identity(IdentityError::System(_)) => Exit::System,
        FamilyError::State(StateError::InUse(_)) => Exit::Usage,
        FamilyError::State(StateError::OutputInUse { .. }) => Exit::CannotCreate,
        FamilyError::State(StateError::Unknown(_) | StateError::Locked { .. }) => Exit::Unavailable,
        FamilyError::State(StateError::Untrusted { .. }) => Exit::NoPermission,
        FamilyError::State(StateError::System { .. } | StateError::InTheWay { .. }) => Exit::CannotCreate,
        FamilyError::State(StateError::NoPlace { .. }) => Exit::Configuration,
        FamilyError::Report { .. } | FamilyError::Copy { .. } => Exit::CannotCreate,
        FamilyError::Interrupted { signal, .. } => return Exit::by_signal(*signal as i32),
        FamilyError::Ended { .. } | FamilyError::Beside(_) => Exit::Io,
        FamilyError::MountLost { .. } | FamilyError::CutOff | FamilyError::Lost(_) | FamilyError::System { .. } => {
            Exit::System
        }
        FamilyError::Undying { .. } => Exit::System,
        FamilyError::Refused(_) | FamilyError::Unreachable { .. } => Exit::Unavailable,
    };
    exit.number()
}

/// The exit code of `runseal serve`.
pub fn serve(error: &ServeError) -> Exit {
    match error {
        ServeError::Config(ConfigError::Read { .. }) => Exit::NoInput,
        ServeError::Config(_) | ServeError::Root(_) => Exit::Configuration,
        ServeError::NotRoot => Exit::NoPermission,
        ServeError::Socket { .. } => Exit::CannotCreate,
        ServeError::Unseen(_) => Exit::Unavailable,
        ServeError::Adopt(_) | ServeError::System { .. } => Exit::System,
    }
}

/// The first finding decides: inputs come first. Why AWS refused weighs more than what it refused.
fn preflight(report: &PreflightReport) -> Exit {
    let Some(first) = report.findings.first() else { return Exit::System };
    first.cause().and_then(aws).unwrap_or(finding(first.code))
}

fn finding(code: Code) -> Exit {
    match code {
        Code::InputUriNotFound | Code::ImportFailed | Code::InputLinkOutside | Code::ModifiedInputResource => {
            Exit::NoInput
        }
        Code::InputConflict => Exit::Usage,
        Code::ExportFailed | Code::OutputNotEmpty | Code::FileSystemOutOfSpace => Exit::CannotCreate,
        Code::AssumeRoleFailed | Code::RunKeyFailed | Code::KeyUnfit => Exit::Unavailable,
    }
}

/// Causes that say more than what was asked for: no right, or nobody to ask.
fn aws(cause: Cause) -> Option<Exit> {
    match cause {
        Cause::Denied => Some(Exit::NoPermission),
        Cause::Credentials | Cause::Unreachable | Cause::Configuration => Some(Exit::Unavailable),
        Cause::NotFound | Cause::Archived | Cause::KeyState | Cause::KeyKind => None,
        Cause::Precondition | Cause::Corrupt | Cause::Rejected => None,
    }
}

/// What an input in S3 could not be read for.
fn fetch(cause: Cause) -> Exit {
    match cause {
        Cause::NotFound | Cause::Archived | Cause::KeyState | Cause::KeyKind => Exit::NoInput,
        _ => Exit::Io,
    }
}

fn fs(error: &FsError) -> Exit {
    match error {
        FsError::NoInodes | FsError::Store(_) => Exit::CannotCreate,
        _ => Exit::System,
    }
}

fn fuse(error: &FuseError) -> Exit {
    match error {
        FuseError::Device { source, .. } | FuseError::Mount { source, .. } => {
            if source.kind() == std::io::ErrorKind::PermissionDenied { Exit::NoPermission } else { Exit::Unavailable }
        }
        FuseError::Mountpoint { .. } => Exit::CannotCreate,
        FuseError::Option(_) => Exit::Usage,
        FuseError::Session(_) => Exit::System,
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
            (FamilyError::Command(CommandError::NotFound { name: "x".into() }).into(), 127),
            (FamilyError::Command(CommandError::NotExecutable { path: "x".into(), source: denied() }).into(), 126),
            (FamilyError::Command(CommandError::View { source: denied() }).into(), 77),
            (FamilyError::Command(CommandError::System { name: "x".into(), source: denied() }).into(), 71),
            (FamilyError::State(StateError::OutputInUse { run: Some("x".into()), output: "/o".into() }).into(), 73),
            (FamilyError::State(StateError::Unknown("x".into())).into(), 69),
            (FamilyError::State(StateError::Locked { path: "/x".into(), holder: None }).into(), 69),
            (FamilyError::State(StateError::Untrusted { path: "/x".into() }).into(), 77),
            (FamilyError::State(StateError::System { action: "a", path: "/x".into(), source: denied() }).into(), 73),
            (FamilyError::State(StateError::InTheWay { path: "/x".into() }).into(), 73),
            (FamilyError::State(StateError::NoPlace { base: "/x".into() }).into(), 78),
            (FamilyError::Beside("/x".into()).into(), 74),
            (RunError::MemoryLock { source: denied() }, 78),
            (FamilyError::Report { path: "/x".into(), source: denied() }.into(), 73),
            (FamilyError::Copy { path: "/x".into(), source: denied() }.into(), 73),
            (FamilyError::Interrupted { signal, doing: "d" }.into(), 143),
            (FamilyError::Ended { doing: "d" }.into(), 74),
            (RunError::Incomplete("i".into()), 74),
            (FamilyError::MountLost { doing: "d" }.into(), 71),
            (FamilyError::CutOff.into(), 71),
            (FamilyError::Undying { run: "r".into(), processes: "p".into() }.into(), 71),
            (FamilyError::Lost("l".into()).into(), 71),
            (FamilyError::Refused("r".into()).into(), 69),
            (FamilyError::Unreachable { run: "r".into(), source: missing() }.into(), 69),
            (FamilyError::System { action: "a", source: denied() }.into(), 71),
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
