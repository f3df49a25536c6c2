//! Every way in which a call can fail, to a `CallError`.

use std::error::Error;
use std::fmt::Display;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::byte_stream::error::Error as StreamError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::aws::{CallError, Cause, Denial};

/// What was looked for when there are no credentials.
const SOURCES: &str = "no AWS credentials were found. Tried, in this order: AWS_ACCESS_KEY_ID and \
                       AWS_SECRET_ACCESS_KEY, the profile files (AWS_PROFILE), a web identity token \
                       (AWS_WEB_IDENTITY_TOKEN_FILE), the container's credentials \
                       (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI), instance metadata";

/// A failed call.
pub(super) fn call<E>(operation: &'static str, error: &SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(failed) => {
            let meta = failed.err().meta();
            answered(operation, meta.code().unwrap_or_default(), meta.message().unwrap_or_default(), failed.raw())
        }
        SdkError::ResponseError(failed) => {
            let text = chain(error);
            answered(operation, "", &text, failed.raw())
        }
        SdkError::TimeoutError(_) => CallError::unanswered(operation, Cause::Unreachable, chain(error)),
        SdkError::DispatchFailure(failed) if failed.is_user() => {
            CallError::unanswered(operation, Cause::Configuration, innermost(error))
        }
        _ => credentials(operation, error).unwrap_or_else(|| {
            let cause = match error {
                SdkError::ConstructionFailure(_) => Cause::Configuration,
                _ => Cause::Unreachable,
            };
            CallError::unanswered(operation, cause, chain(error))
        }),
    }
}

/// A body that ended in an error.
pub(super) fn body(operation: &'static str, error: &StreamError) -> CallError {
    let text = chain(error);
    let cause = if text.contains("checksum mismatch") { Cause::Corrupt } else { Cause::Unreachable };
    CallError::unanswered(operation, cause, text)
}

/// A configuration that makes no sense.
pub(super) fn configuration(reason: &dyn Display) -> CallError {
    CallError::unanswered("configuration", Cause::Configuration, reason.to_string())
}

/// The Region that an answer names, when it is not the one that was asked.
pub(super) fn other_region<E>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.raw_response()?.headers().get("x-amz-bucket-region")
}

fn answered(operation: &'static str, code: &str, message: &str, raw: &HttpResponse) -> CallError {
    let status = raw.status().as_u16();
    let cause = cause(code, status);
    let message = if message.is_empty() { bare(status) } else { message.to_owned() };
    let header = |name| raw.headers().get(name);
    let request_id = header("x-amz-request-id").or_else(|| header("x-amzn-requestid")).unwrap_or_default().to_owned();
    let denial = (cause == Cause::Denied).then(|| Denial::parse(&message)).flatten();
    CallError { operation, cause, code: code.to_owned(), message, status, request_id, denial, repeated: false }
}

/// For answers without a body, as all of `HEAD` are.
fn bare(status: u16) -> String {
    match http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()) {
        Some(reason) => format!("HTTP {status} {reason}, without a reason"),
        None => format!("HTTP {status}, without a reason"),
    }
}

/// No credentials, or the call that should have given them failed.
fn credentials(operation: &'static str, error: &(dyn Error + 'static)) -> Option<CallError> {
    if let Some(failed) = find::<SdkError<AssumeRoleError, HttpResponse>>(error) {
        return Some(call("sts:AssumeRole", failed));
    }
    if let Some(failed) = find::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>(error) {
        return Some(call("sts:AssumeRoleWithWebIdentity", failed));
    }
    let failed = find::<CredentialsError>(error)?;
    let message = match failed {
        CredentialsError::CredentialsNotLoaded(_) => format!("{SOURCES} ({})", chain(failed)),
        _ => chain(failed),
    };
    Some(CallError::unanswered(operation, Cause::Credentials, message))
}

/// Codes of S3, KMS and STS, and what they mean here.
const CODES: [(Cause, &[&str]); 10] = [
    (Cause::Denied, &["AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AccountProblem"]),
    (
        Cause::NotFound,
        &[
            "NoSuchBucket",
            "NoSuchKey",
            "NoSuchUpload",
            "NoSuchVersion",
            "NotFound",
            "NotFoundException",
            "ServerSideEncryptionConfigurationNotFoundError",
        ],
    ),
    (Cause::Precondition, &["PreconditionFailed", "ConditionalRequestConflict", "OperationAborted"]),
    (Cause::KeyState, &["DisabledException", "KMSInvalidStateException", "KeyUnavailableException"]),
    (Cause::KeyKind, &["InvalidKeyUsageException", "UnsupportedOperationException"]),
    (Cause::Archived, &["InvalidObjectState"]),
    (
        Cause::Credentials,
        &[
            "ExpiredToken",
            "ExpiredTokenException",
            "TokenRefreshRequired",
            "RequestExpired",
            "InvalidToken",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "InvalidSecurity",
            "SignatureDoesNotMatch",
            "InvalidSignatureException",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "MissingSecurityHeader",
            "RequestTimeTooSkewed",
            "NotSignedUp",
            "AuthFailure",
        ],
    ),
    (
        Cause::Corrupt,
        &["BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"],
    ),
    (
        Cause::Configuration,
        &[
            "PermanentRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "InvalidRegionName",
        ],
    ),
    (
        Cause::Unreachable,
        &[
            "SlowDown",
            "ServiceUnavailable",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "RequestLimitExceeded",
            "TooManyRequestsException",
            "LimitExceededException",
            "BandwidthLimitExceeded",
            "InternalError",
            "InternalFailure",
            "KMSInternalException",
            "DependencyTimeoutException",
            "RequestTimeout",
            "RequestTimeoutException",
            "Busy",
        ],
    ),
];

/// KMS answers through S3 with the prefix `KMS.`.
fn cause(code: &str, status: u16) -> Cause {
    let code = code.strip_prefix("KMS.").unwrap_or(code);
    let known = CODES.iter().find(|(_, codes)| codes.contains(&code));
    known.map_or_else(|| cause_of_status(status), |(cause, _)| *cause)
}

fn cause_of_status(status: u16) -> Cause {
    match status {
        401 => Cause::Credentials,
        403 => Cause::Denied,
        404 => Cause::NotFound,
        304 | 412 => Cause::Precondition,
        301 | 307 | 308 => Cause::Configuration,
        408 | 429 | 500..=599 => Cause::Unreachable,
        _ => Cause::Rejected,
    }
}

/// `error` and what caused it.
fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The first error of type `T` among `error` and its sources.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    sources(error).find_map(|error| error.downcast_ref())
}

/// `error` and its sources, without repetitions.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in sources(error) {
        let more = error.to_string();
        if !text.contains(&more) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.push_str(separator);
            text.push_str(&more);
        }
    }
    text
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    sources(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aws_sdk_kms::operation::generate_data_key::GenerateDataKeyError;
    use aws_sdk_kms::types::error as kms;
    use aws_sdk_s3::operation::get_object::GetObjectError;
    use aws_sdk_s3::types::error as s3;
    use aws_sdk_sts::types::error as sts;
    use aws_smithy_mocks::{MockResponseInterceptor, create_mock_http_client, mock};
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    /// How a call of `$operation` comes out as `$name`, when a client of `$service` is answered by `$rule`.
    macro_rules! called {
        ($service:ident, $name:literal, $rule:expr, $operation:ident $(, $field:ident)*) => {{
            let config = $service::Config::builder()
                .behavior_version($service::config::BehaviorVersion::latest())
                .region($service::config::Region::new("eu-central-1"))
                .credentials_provider($service::config::Credentials::new("id", "secret", None, None, "tests"))
                .retry_config($service::config::retry::RetryConfig::disabled())
                .http_client(create_mock_http_client())
                .interceptor(MockResponseInterceptor::new().with_rule(&$rule));
            let client = $service::Client::from_conf(config.build());
            let runtime = crate::aws::runtime().expect("threads");
            let answer = runtime.block_on(client.$operation()$(.$field("x"))*.send());
            call($name, &answer.map(drop).expect_err("the rule refuses"))
        }};
    }

    fn meta(code: &str) -> ErrorMetadata {
        ErrorMetadata::builder().code(code).message("text").build()
    }

    fn of_s3(error: impl Fn() -> GetObjectError + Send + Sync + 'static) -> CallError {
        let rule = mock!(aws_sdk_s3::Client::get_object).then_error(error);
        called!(aws_sdk_s3, "s3:GetObject", rule, get_object, bucket, key)
    }

    fn of_kms(error: impl Fn() -> GenerateDataKeyError + Send + Sync + 'static) -> CallError {
        let rule = mock!(aws_sdk_kms::Client::generate_data_key).then_error(error);
        called!(aws_sdk_kms, "kms:GenerateDataKey", rule, generate_data_key, key_id)
    }

    fn of_sts(error: impl Fn() -> AssumeRoleError + Send + Sync + 'static) -> CallError {
        let rule = mock!(aws_sdk_sts::Client::assume_role).then_error(error);
        called!(aws_sdk_sts, "sts:AssumeRole", rule, assume_role, role_arn, role_session_name)
    }

    fn expect(error: &CallError, code: &str, cause: Cause) {
        assert_eq!((error.code.as_str(), error.cause, error.message.as_str()), (code, cause, "text"), "{error:?}");
    }

    #[test]
    fn a_code_has_one_cause() {
        let all: Vec<_> = CODES.iter().flat_map(|(_, codes)| *codes).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn errors_that_the_sdk_models_have_their_cause() {
        macro_rules! modelled {
            ($of:ident, $enum:ident::$variant:ident, $type:path, $code:literal, $cause:expr) => {
                let error = $of(|| {
                    let error = <$type>::builder().meta(meta($code)).build();
                    $enum::$variant(error)
                });
                expect(&error, $code, $cause);
            };
        }
        use GenerateDataKeyError as Drawing;
        modelled!(of_s3, GetObjectError::NoSuchKey, s3::NoSuchKey, "NoSuchKey", Cause::NotFound);
        modelled!(
            of_s3,
            GetObjectError::InvalidObjectState,
            s3::InvalidObjectState,
            "InvalidObjectState",
            Cause::Archived
        );
        modelled!(of_kms, Drawing::NotFoundException, kms::NotFoundException, "NotFoundException", Cause::NotFound);
        modelled!(of_kms, Drawing::DisabledException, kms::DisabledException, "DisabledException", Cause::KeyState);
        modelled!(
            of_kms,
            Drawing::KmsInvalidStateException,
            kms::KmsInvalidStateException,
            "KMSInvalidStateException",
            Cause::KeyState
        );
        modelled!(
            of_kms,
            Drawing::KeyUnavailableException,
            kms::KeyUnavailableException,
            "KeyUnavailableException",
            Cause::KeyState
        );
        modelled!(
            of_kms,
            Drawing::InvalidKeyUsageException,
            kms::InvalidKeyUsageException,
            "InvalidKeyUsageException",
            Cause::KeyKind
        );
        modelled!(
            of_kms,
            Drawing::DependencyTimeoutException,
            kms::DependencyTimeoutException,
            "DependencyTimeoutException",
            Cause::Unreachable
        );
        modelled!(
            of_kms,
            Drawing::KmsInternalException,
            kms::KmsInternalException,
            "KMSInternalException",
            Cause::Unreachable
        );
        modelled!(
            of_sts,
            AssumeRoleError::ExpiredTokenException,
            sts::ExpiredTokenException,
            "ExpiredTokenException",
            Cause::Credentials
        );
    }

    #[test]
    fn codes_that_the_sdk_does_not_model_have_their_cause() {
        for (code, cause) in [
            ("AccessDenied", Cause::Denied),
            ("AllAccessDisabled", Cause::Denied),
            ("NoSuchBucket", Cause::NotFound),
            ("KMS.NotFoundException", Cause::NotFound),
            ("PreconditionFailed", Cause::Precondition),
            ("ConditionalRequestConflict", Cause::Precondition),
            ("KMS.DisabledException", Cause::KeyState),
            ("KMS.KMSInvalidStateException", Cause::KeyState),
            ("KMS.InvalidKeyUsageException", Cause::KeyKind),
            ("ExpiredToken", Cause::Credentials),
            ("InvalidAccessKeyId", Cause::Credentials),
            ("SignatureDoesNotMatch", Cause::Credentials),
            ("RequestTimeTooSkewed", Cause::Credentials),
            ("BadDigest", Cause::Corrupt),
            ("XAmzContentChecksumMismatch", Cause::Corrupt),
            ("PermanentRedirect", Cause::Configuration),
            ("AuthorizationHeaderMalformed", Cause::Configuration),
            ("SlowDown", Cause::Unreachable),
            ("InternalError", Cause::Unreachable),
            ("KMS.ThrottlingException", Cause::Unreachable),
        ] {
            expect(&of_s3(move || GetObjectError::generic(meta(code))), code, cause);
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        for (status, cause) in [
            (401, Cause::Credentials),
            (403, Cause::Denied),
            (404, Cause::NotFound),
            (412, Cause::Precondition),
            (307, Cause::Configuration),
            (429, Cause::Unreachable),
            (503, Cause::Unreachable),
            (400, Cause::Rejected),
        ] {
            let rule = mock!(aws_sdk_s3::Client::get_object).then_http_response(move || {
                let mut response = HttpResponse::new(StatusCode::try_from(status).expect("a status"), SdkBody::empty());
                response.headers_mut().insert("x-amz-request-id", "REQ");
                response
            });
            let error = called!(aws_sdk_s3, "s3:GetObject", rule, get_object, bucket, key);
            assert_eq!((error.status, error.cause, error.request_id.as_str()), (status, cause, "REQ"), "{error:?}");
            assert!(error.message.contains(&status.to_string()), "{error:?}");
        }
    }

    #[test]
    fn a_request_that_cannot_be_made_is_a_matter_of_configuration() {
        let rule = mock!(aws_sdk_s3::Client::get_object).then_error(|| GetObjectError::generic(meta("Unasked")));
        let error = called!(aws_sdk_s3, "s3:GetObject", rule, get_object, bucket);
        assert_eq!((error.cause, error.status, error.code.as_str()), (Cause::Configuration, 0, ""), "{error:?}");
        assert!(error.message.contains("key"), "{error:?}");
    }
}
