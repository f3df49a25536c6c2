//! What went wrong at AWS, before anybody has explained it.

use crate::aws::{CallError, Cause, Encryption};
use crate::spec::S3Uri;

/// What was tried. The order is that of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Attempt {
    /// Finding out who calls, and with that whether there are credentials at all.
    Identity,
    /// Listing an input.
    List,
    /// Looking at an object.
    Head,
    /// Looking at an object that cannot be told from a prefix, because listing is refused too.
    HeadOrList,
    /// Reading an object that could be looked at.
    Read,
    /// Beginning an upload.
    Begin,
    /// Sending a part to an upload that could be begun.
    Part,
    /// Making the data key of the run.
    RunKey,
}

/// Something that failed.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) attempt: Attempt,
    /// Position on the command line; `None` for everything but inputs.
    pub(super) input: Option<u32>,
    /// The object, prefix or output; of a key, nothing.
    pub(super) uri: Option<S3Uri>,
    /// What is known of how the object is encrypted, or will be.
    pub(super) encryption: Encryption,
    pub(super) error: CallError,
    /// Further things that failed in the same way.
    pub(super) also: Vec<String>,
}

impl Trouble {
    pub(super) fn new(attempt: Attempt, error: CallError) -> Self {
        Self { attempt, input: None, uri: None, encryption: Encryption::default(), error, also: Vec::new() }
    }

    pub(super) fn of_input(attempt: Attempt, input: u32, uri: &S3Uri, error: CallError) -> Self {
        Self { input: Some(input), uri: Some(uri.clone()), ..Self::new(attempt, error) }
    }

    pub(super) fn under(mut self, encryption: &Encryption) -> Self {
        self.encryption = encryption.clone();
        self
    }

    /// Whether it happens to everything alike, whatever is asked: then it is said once.
    pub(super) fn is_general(&self) -> bool {
        matches!(self.error.cause, Cause::Credentials | Cause::Unreachable | Cause::Configuration)
            || self.error.operation.starts_with("sts:Assume")
    }

    /// Whether it says something about this one object only.
    fn is_particular(&self) -> bool {
        matches!(self.error.cause, Cause::NotFound | Cause::Precondition | Cause::Corrupt | Cause::Rejected)
    }

    fn is_like(&self, other: &Self) -> bool {
        let (a, b) = (&self.error, &other.error);
        if a.cause != b.cause {
            return false;
        }
        if self.is_general() && other.is_general() {
            // Every service has its own words for bad credentials.
            return a.cause == Cause::Credentials || service(a) == service(b);
        }
        a.code == b.code
            && self.attempt == other.attempt
            && self.place() == other.place()
            && self.encryption == other.encryption
            && action(a) == action(b)
    }

    /// Bucket and directory: rights end there, if they end anywhere.
    fn place(&self) -> Option<(&str, &str)> {
        let uri = self.uri.as_ref()?;
        Some((&uri.bucket, directory(&uri.key)))
    }
}

/// What is like another, becomes part of it.
pub(super) fn merged(troubles: Vec<Trouble>) -> Vec<Trouble> {
    let mut merged: Vec<Trouble> = Vec::new();
    for trouble in troubles {
        let alike =
            if trouble.is_particular() { None } else { merged.iter_mut().find(|first| first.is_like(&trouble)) };
        match alike {
            Some(first) => {
                let subjects = trouble.uri.iter().map(ToString::to_string).chain(trouble.also);
                first.also.extend(subjects);
            }
            None => merged.push(trouble),
        }
    }
    merged
}

/// A key up to its last slash.
pub(super) fn directory(key: &str) -> &str {
    &key[..key.rfind('/').map_or(0, |slash| slash + 1)]
}

fn service(error: &CallError) -> &str {
    error.operation.split(':').next().unwrap_or_default()
}

fn action(error: &CallError) -> Option<&str> {
    error.denial.as_ref().and_then(|denial| denial.action.as_deref())
}
