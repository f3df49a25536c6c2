//! Every message between processes of a run, and to them: signals that are passed on, events, requests and replies. Each
//! is a line of JSON.
//!
//! ```text
//! supervisor  -- SignalMessage -->  sealed process     over a pair of sockets
//! supervisor  <--  Event  ----  sealed process     over the same
//! client      -- Request  --->  sealed process     over the control socket, one for each connection
//! client      <--  Reply  ----  sealed process     over the same
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::family::{AuditFacts, AwsFacts, FamilyError, LossFacts, Outcome, Phase, Report, RunKeyFacts, SealFacts};
use crate::spec::{Argv, Credentials, CredentialsText, Location, Remains, ResumeSpec};

/// Longest request in bytes. Session tokens have no limit that AWS names; real ones take a few thousand bytes.
pub const REQUEST_MAX: usize = 64 << 10;

/// What the supervisor passes on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SignalMessage {
    /// Number of the signal.
    pub signal: i32,
    /// Whether the terminal sent it, to the command as well.
    pub from_terminal: bool,
}

/// One thing that happened in the sealed process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A phase began; the one before is over.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// AWS has been asked who this is and what it would take.
    Cleared(AwsFacts),
    /// A data key of KMS takes part in the run key.
    RunKey(RunKeyFacts),
    /// Key and store are there.
    Sealed(SealFacts),
    /// The file system is mounted.
    Mounted {
        /// What the kernel granted.
        facts: Value,
    },
    /// Inputs are in.
    Staged {
        /// Totals.
        totals: Value,
    },
    /// The command ended.
    CommandEnded {
        /// Exit status, 128 + signal if a signal killed it.
        status: u8,
    },
    /// Data was lost, or is there again.
    Lost(LossFacts),
    /// An attempt to publish failed.
    HeldBecause {
        /// The error.
        problem: String,
    },
    /// Files of a failed command are out.
    Saved {
        /// Totals, and where they are.
        facts: Value,
    },
    /// Part of the results is in the output without a manifest, or not any more.
    Left {
        /// What.
        remains: Option<Remains>,
    },
    /// Results go elsewhere from now on.
    Redirected {
        /// Where.
        output: Location,
    },
    /// Results are out.
    Published {
        /// Totals.
        totals: Value,
    },
    /// The keys are gone.
    Wiped {
        /// When, RFC 3339.
        at: String,
        /// Bytes that had been encrypted with them.
        bytes_encrypted: u64,
        /// Requests of the kernel, by opcode as fuse.h names it.
        requests: BTreeMap<String, u64>,
    },
    /// The audit trail is closed.
    Audited(AuditFacts),
    /// The sealed process is about to exit in good order.
    Done {
        /// How the run ended.
        outcome: Outcome,
        /// The error, if there was one.
        error: Option<String>,
    },
}

/// What a client may ask.
#[derive(Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What is going on?
    Status,
    /// Try to publish again.
    Resume(ResumeOrder),
    /// Run a program beside the command.
    Exec {
        /// Which.
        exec: ExecOrder,
    },
    /// Copy something out of the scratch.
    Copy {
        /// What.
        copy: CopyOrder,
    },
    /// End the run.
    End {
        /// Even if results are lost.
        #[serde(default)]
        discard: bool,
        /// Whether results that are in the output already are removed.
        #[serde(default)]
        remove_published: bool,
    },
}

/// What becomes of results that are not published when their run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpublished {
    /// They are kept: a run that has some does not end.
    Keep,
    /// They are lost.
    Discard,
    /// They are lost, and those that are in the output already, without a manifest, are removed.
    Remove,
}

impl From<Unpublished> for Request {
    fn from(results: Unpublished) -> Self {
        let remove_published = results == Unpublished::Remove;
        Self::End { discard: remove_published || results == Unpublished::Discard, remove_published }
    }
}

/// How to try to publish again.
#[derive(Default, Serialize, Deserialize)]
pub struct ResumeOrder {
    /// Credentials to do so with, instead of those that runseal would find.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "borrowed")]
    pub credentials: Option<Credentials>,
    /// What is to be different.
    #[serde(rename = "resume", default)]
    pub spec: ResumeSpec,
}

/// Credentials are borrowed from the line, which is wiped, and never copied on the way.
mod borrowed {
    use super::{Credentials, CredentialsText, Deserialize, Serialize};

    pub fn serialize<S: serde::Serializer>(own: &Option<Credentials>, to: S) -> Result<S::Ok, S::Error> {
        own.as_ref().map(CredentialsText::from).serialize(to)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Credentials>, D::Error> {
        Ok(Option::<CredentialsText<'de>>::deserialize(from)?.map(Credentials::from))
    }
}

/// A program to run beside the command.
#[derive(Serialize, Deserialize)]
pub struct ExecOrder {
    /// Program and arguments.
    pub argv: Argv,
    /// Kind of the terminal that its standard streams are (`TERM`), if they are one.
    pub terminal: Option<OsString>,
    /// Its standard streams. They go beside the line, as descriptors.
    #[serde(skip)]
    pub streams: Vec<OwnedFd>,
}

/// Something to copy out of the scratch.
#[derive(Serialize, Deserialize)]
pub struct CopyOrder {
    /// Relative to the root of the scratch; any bytes.
    pub path: OsString,
    /// Whether the contents of a file are wanted as they are, without an archive around them.
    pub bare: bool,
    /// Receives the archive. It goes beside the line, as a descriptor.
    #[serde(skip)]
    pub archive: Vec<OwnedFd>,
}

impl Request {
    /// The request as it is sent, with the end of its line.
    pub fn to_line(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        // Room for all of it: a vector that grows leaves copies behind.
        let mut line = Zeroizing::new(Vec::with_capacity(REQUEST_MAX));
        serde_json::to_writer(&mut *line, self)?;
        line.push(b'\n');
        if line.len() > REQUEST_MAX { Err(io::Error::other("the request is too long")) } else { Ok(line) }
    }

    /// Reads what [`Request::to_line`] made, without the end of the line. What serde says quotes the line, and credentials may
    /// be in it.
    pub fn from_line(line: &[u8]) -> io::Result<Self> {
        serde_json::from_slice(line).map_err(|_| malformed())
    }

    /// What goes beside the line.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let descriptors = match self {
            Self::Exec { exec } => &exec.streams[..],
            Self::Copy { copy } => &copy.archive[..],
            Self::Status | Self::Resume(_) | Self::End { .. } => &[],
        };
        descriptors.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Takes what came beside the line.
    pub(super) fn with(mut self, came: Vec<OwnedFd>) -> Self {
        match &mut self {
            Self::Exec { exec } => exec.streams = came,
            Self::Copy { copy } => copy.archive = came,
            Self::Status | Self::Resume(_) | Self::End { .. } => {}
        }
        self
    }
}

/// For a line that is none.
pub(super) fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a request that this version knows")
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// For people.
    pub message: String,
    /// The report so far, to [`Request::Status`].
    pub report: Option<Report>,
    /// How the program ended, to [`Request::Exec`]: as a shell says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// Whether what was published is incomplete.
    #[serde(default)]
    pub incomplete: bool,
}

impl Reply {
    /// Done.
    pub fn done(message: impl Into<String>) -> Self {
        Self { ok: true, message: message.into(), report: None, status: None, incomplete: false }
    }

    /// Not done, and why.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { ok: false, message: message.into(), report: None, status: None, incomplete: false }
    }

    /// What it says, unless it refuses.
    pub fn accepted(self) -> Result<String, FamilyError> {
        if self.ok { Ok(self.message) } else { Err(FamilyError::Refused(self.message)) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::spec::{Location, Sse};

    #[test]
    fn requests_survive_the_wire() {
        let there_and_back = |request: Request| {
            let line = request.to_line().expect("short enough");
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            Request::from_line(&line).expect("understood")
        };
        assert!(matches!(there_and_back(Request::Status), Request::Status));
        let end = there_and_back(Request::End { discard: true, remove_published: true });
        assert!(matches!(end, Request::End { discard: true, remove_published: true }));
        let spec = ResumeSpec {
            incomplete: true,
            allow_empty: true,
            overwrite: true,
            output: Some(Location::S3("s3://bucket/key/".parse().expect("a URI"))),
            sse: Some(Sse::Kms),
            sse_kms_key: Some("alias/results".parse().expect("a key")),
            dereference: true,
            keep_old: true,
            shared_output: true,
            keep_set_id: true,
        };
        for spec in [ResumeSpec::default(), spec] {
            let order = ResumeOrder { credentials: None, spec: spec.clone() };
            let Request::Resume(back) = there_and_back(Request::Resume(order)) else { panic!("not what was asked") };
            assert_eq!((back.spec, back.credentials.is_none()), (spec, true));
        }
        let argv = Argv { program: "sh".into(), arguments: vec![OsString::from_vec(b"\xff\n".to_vec())] };
        let order = ExecOrder { argv: argv.clone(), terminal: Some("vt100".into()), streams: Vec::new() };
        let Request::Exec { exec: back } = there_and_back(Request::Exec { exec: order }) else {
            panic!("not what was asked")
        };
        assert_eq!((back.argv, back.terminal), (argv, Some("vt100".into())));
        let order = CopyOrder { path: "work/log".into(), bare: true, archive: Vec::new() };
        let Request::Copy { copy: back } = there_and_back(Request::Copy { copy: order }) else {
            panic!("not what was asked")
        };
        assert_eq!((back.path, back.bare), (OsString::from("work/log"), true));
        for session_token in [None, Some("t/+=".repeat(4000))] {
            let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
            let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", secret, session_token.as_deref());
            let order = ResumeOrder { credentials: Some(credentials), ..ResumeOrder::default() };
            let Request::Resume(ResumeOrder { credentials: Some(back), .. }) = there_and_back(Request::Resume(order))
            else {
                panic!("credentials got lost")
            };
            assert_eq!(back.access_key_id.as_str(), "AKIAIOSFODNN7EXAMPLE");
            assert_eq!(back.secret_access_key.as_str(), "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
            assert_eq!(back.session_token.as_deref(), session_token.as_ref());
        }
    }

    #[test]
    fn nonsense_is_refused_without_being_quoted() {
        for line in [
            "",
            "{}",
            "{\"request\":\"hush\"}",
            "{\"request\":\"exec\"}",
            "hush",
            "{\"request\":\"resume\",\"credentials\":\"hush\"}",
        ] {
            let Err(error) = Request::from_line(line.as_bytes()) else { panic!("{line} is no request") };
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        let endless = Zeroizing::new("x".repeat(REQUEST_MAX));
        let credentials =
            Credentials { access_key_id: endless, secret_access_key: Zeroizing::default(), session_token: None };
        let order = ResumeOrder { credentials: Some(credentials), ..ResumeOrder::default() };
        assert!(Request::Resume(order).to_line().is_err());
    }
}
