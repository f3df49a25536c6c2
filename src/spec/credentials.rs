//! Credentials of AWS that somebody hands over.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Credentials handed over explicitly. Wiped on drop; neither `Clone` nor `Debug`.
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Zeroizing<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Zeroizing<String>,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// A copy that is wiped on drop; the texts stay with whoever has them.
    pub fn new(access_key_id: &str, secret_access_key: &str, session_token: Option<&str>) -> Self {
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        Self {
            access_key_id: secret(access_key_id),
            secret_access_key: secret(secret_access_key),
            session_token: session_token.map(secret),
        }
    }
}

/// The same as they are sent, without a copy: borrowed from text that is wiped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsText<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    #[serde(borrow, default)]
    session_token: Option<&'a str>,
}

impl<'a> From<&'a Credentials> for CredentialsText<'a> {
    fn from(own: &'a Credentials) -> Self {
        Self {
            access_key_id: &own.access_key_id,
            secret_access_key: &own.secret_access_key,
            session_token: own.session_token.as_ref().map(|token| token.as_str()),
        }
    }
}

impl From<CredentialsText<'_>> for Credentials {
    fn from(text: CredentialsText<'_>) -> Self {
        Self::new(text.access_key_id, text.secret_access_key, text.session_token)
    }
}
