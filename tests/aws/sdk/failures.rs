//! What the wire may say, and what becomes of it: classified, tried again, or accepted.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use runseal::aws::{
    CallError, Cause, Cloud, CloudConfig, EncryptionContext, Gate, ObjectStore, PageStart, PolicyKind, UploadSettings,
};

use super::wire::{Wire, kms_error, reply, s3_error, sts_error};
use super::{all, config, crc, target};

const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// All three services at `wire`, one attempt for each call (two for contents).
fn at(wire: &Wire) -> CloudConfig {
    let mut config = config(&wire.url());
    config.endpoints.kms = Some(wire.url());
    config.endpoints.sts = Some(wire.url());
    config.attempts = 1;
    config
}

fn connect(wire: &Wire) -> Cloud {
    Cloud::connect(&at(wire), &Gate::default()).unwrap()
}

#[test]
fn codes_of_s3_have_causes() {
    for (status, code, cause) in [
        (403, "AccessDenied", Cause::Denied),
        (404, "NoSuchKey", Cause::NotFound),
        (404, "NoSuchBucket", Cause::NotFound),
        (412, "PreconditionFailed", Cause::Precondition),
        (409, "ConditionalRequestConflict", Cause::Precondition),
        (400, "KMS.DisabledException", Cause::KeyState),
        (400, "KMS.KMSInvalidStateException", Cause::KeyState),
        (400, "KMS.NotFoundException", Cause::NotFound),
        (400, "KMS.InvalidKeyUsageException", Cause::KeyKind),
        (403, "InvalidObjectState", Cause::Archived),
        (400, "ExpiredToken", Cause::Credentials),
        (403, "InvalidAccessKeyId", Cause::Credentials),
        (403, "SignatureDoesNotMatch", Cause::Credentials),
        (403, "RequestTimeTooSkewed", Cause::Credentials),
        (400, "BadDigest", Cause::Corrupt),
        (400, "AuthorizationHeaderMalformed", Cause::Configuration),
        (503, "SlowDown", Cause::Unreachable),
        (500, "InternalError", Cause::Unreachable),
        (400, "SomethingOfTomorrow", Cause::Rejected),
    ] {
        let wire = Wire::saying(vec![s3_error(status, code, "as it came: &lt;raw&gt;")]);
        let cloud = connect(&wire);
        let error = cloud.block_on(cloud.objects().list("data", "", None, 1)).unwrap_err();
        assert_eq!((error.cause, error.code.as_str(), error.status), (cause, code, status), "{error}");
        assert_eq!((error.message.as_str(), error.request_id.as_str()), ("as it came: <raw>", "REQ1"));
        assert_eq!(error.operation, "s3:ListObjectsV2");
        assert_eq!(error.denial, None);
        assert!(error.to_string().ends_with("(request REQ1)"), "{error}");
    }
}

#[test]
fn answers_to_head_have_no_body_but_a_status() {
    for (status, cause) in [
        (403, Cause::Denied),
        (404, Cause::NotFound),
        (412, Cause::Precondition),
        (400, Cause::Rejected),
        (503, Cause::Unreachable),
    ] {
        let wire = Wire::saying(vec![reply(status, &[("x-amz-request-id", "REQ4")], b"")]);
        let cloud = connect(&wire);
        let error = cloud.block_on(cloud.objects().head("data", "key")).unwrap_err();
        assert_eq!((error.cause, error.status, error.request_id.as_str()), (cause, status, "REQ4"), "{error}");
        assert!(!error.message.is_empty());
    }
}

#[test]
fn codes_of_kms_have_causes_whatever_the_sdk_models() {
    for (code, cause) in [
        ("AccessDeniedException", Cause::Denied),
        ("NotFoundException", Cause::NotFound),
        ("DisabledException", Cause::KeyState),
        ("KMSInvalidStateException", Cause::KeyState),
        ("KeyUnavailableException", Cause::KeyState),
        ("InvalidKeyUsageException", Cause::KeyKind),
        ("UnrecognizedClientException", Cause::Credentials),
        ("ExpiredTokenException", Cause::Credentials),
        ("ThrottlingException", Cause::Unreachable),
        ("ValidationException", Cause::Rejected),
    ] {
        let wire = Wire::saying(vec![kms_error(code, "text of KMS")]);
        let cloud = connect(&wire);
        for error in [
            cloud.block_on(cloud.keys().describe(KEY)).map(drop).unwrap_err(),
            cloud.block_on(cloud.keys().try_generate(KEY, &EncryptionContext::new())).map(drop).unwrap_err(),
            cloud.block_on(cloud.keys().try_decrypt(KEY, &EncryptionContext::new())).map(drop).unwrap_err(),
        ] {
            assert_eq!((error.cause, error.code.as_str()), (cause, code), "{error}");
            assert_eq!((error.message.as_str(), error.request_id.as_str()), ("text of KMS", "REQ2"));
        }
    }
}

#[test]
fn denials_are_taken_apart() {
    let text = format!(
        "User: arn:aws:sts::111122223333:assumed-role/Run/s is not authorized to perform: kms:Decrypt on resource: {KEY} \
         because no identity-based policy allows the kms:Decrypt action"
    );
    let s3 = Wire::saying(vec![s3_error(403, "AccessDenied", &text)]);
    let kms = Wire::saying(vec![kms_error("AccessDeniedException", &text)]);
    let (by_s3, by_kms) = (connect(&s3), connect(&kms));
    for error in [
        by_s3.block_on(by_s3.objects().get("data", "key", None, None)).map(drop).unwrap_err(),
        by_kms.block_on(by_kms.keys().describe(KEY)).map(drop).unwrap_err(),
    ] {
        let denial = error.denial.clone().expect("a denial");
        assert_eq!(error.message, text, "verbatim");
        assert_eq!(denial.action.as_deref(), Some("kms:Decrypt"));
        assert_eq!(denial.resource.as_deref(), Some(KEY));
        assert_eq!(denial.policy, Some(PolicyKind::IdentityBased));
        assert!(!denial.explicit);
    }
}

#[test]
fn dry_runs_that_would_have_succeeded_are_answers() {
    let wire = Wire::saying(vec![kms_error("DryRunOperationException", "would have succeeded")]);
    let cloud = connect(&wire);
    let context = EncryptionContext::from([("aws:s3:arn".to_owned(), "arn:aws:s3:::data".to_owned())]);
    assert_eq!(cloud.block_on(cloud.keys().try_generate(KEY, &context)).unwrap().request_id, "REQ2");
    cloud.block_on(cloud.keys().try_decrypt(KEY, &context)).unwrap();
    cloud.block_on(cloud.keys().try_grant(KEY, "arn:aws:iam::111122223333:role/r", &["Decrypt"])).unwrap();
    let sent = wire.requests();
    assert_eq!(sent.len(), 3, "none is tried again");
    for request in &sent {
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert!(body.contains("\"DryRun\":true"), "{body}");
        assert_eq!(request.region(), "eu-west-1", "the Region of the key");
    }
    let decrypt = String::from_utf8(sent[1].body.clone()).unwrap();
    assert!(decrypt.contains("IGNORE_CIPHERTEXT") && !decrypt.contains("CiphertextBlob"), "{decrypt}");
    assert!(decrypt.contains("\"aws:s3:arn\":\"arn:aws:s3:::data\""), "{decrypt}");
}

#[test]
fn a_data_key_has_32_bytes_or_is_refused() {
    for (base64, good) in [("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", true), ("AAEC", false)] {
        let body = format!("{{\"KeyId\":\"{KEY}\",\"Plaintext\":\"{base64}\",\"CiphertextBlob\":\"AAEC\"}}");
        let wire = Wire::saying(vec![reply(200, &[("x-amzn-requestid", "REQ5")], body.as_bytes())]);
        let cloud = connect(&wire);
        match cloud.block_on(cloud.keys().generate(KEY, &EncryptionContext::new())) {
            Ok(answer) => assert_eq!((good, answer.value.0.to_vec()), (true, (0..32).collect())),
            Err(error) => assert!(!good && error.cause == Cause::Rejected, "{error}"),
        }
    }
}

// promise: S-84
#[test]
fn requests_say_who_sends_them_for_which_run() {
    let wire = Wire::saying(vec![s3_error(403, "AccessDenied", "no")]);
    let cloud = connect(&wire);
    drop(cloud.block_on(cloud.objects().head("data", "key")));
    drop(cloud.block_on(cloud.keys().describe(KEY)));
    drop(cloud.block_on(cloud.identity().whoami()));
    let sent = wire.requests();
    assert_eq!(sent.len(), 3);
    for request in sent {
        let agent = request.header("x-amz-user-agent");
        assert!(agent.contains(concat!("lib/runseal/", env!("CARGO_PKG_VERSION"))), "{agent}");
        assert!(agent.contains("app/sdk-test"), "{agent}");
    }
}

#[test]
fn a_bucket_in_another_region_is_followed_and_remembered() {
    let wire = Wire::new(|number, request| match number {
        0 => reply(301, &[("x-amz-bucket-region", "ap-south-1")], b""),
        _ if request.line.starts_with("HEAD") => reply(200, &[("content-length", "5"), ("etag", "\"e\"")], b""),
        _ => s3_error(404, "NoSuchKey", "none"),
    });
    let cloud = connect(&wire);
    let object = cloud.block_on(cloud.objects().head("data", "key")).unwrap().value;
    assert_eq!(object.size, 5);
    drop(cloud.block_on(cloud.objects().get("data", "other", None, None)));
    drop(cloud.block_on(cloud.objects().head("elsewhere", "key")));
    let regions: Vec<String> = wire.requests().iter().map(|request| request.region().to_owned()).collect();
    assert_eq!(regions, ["eu-central-1", "ap-south-1", "ap-south-1", "eu-central-1"]);
}

#[test]
fn uploads_carry_one_checksum_which_is_ours() {
    let wire = Wire::saying(vec![reply(200, &[("etag", "\"e\"")], b"")]);
    let cloud = connect(&wire);
    let body = Bytes::from_static(b"contents");
    let sum = crc(&body);
    let settings = UploadSettings::default();
    cloud.block_on(cloud.objects().put(&target("key"), &settings, body.clone(), sum)).unwrap();
    cloud.block_on(cloud.objects().upload_part(&target("key"), "id", 3, body.clone(), sum)).unwrap();
    let sent = wire.requests();
    for request in &sent {
        assert_eq!(request.body, body, "neither encoded nor with a trailer");
        assert_eq!(request.header("x-amz-content-sha256"), "UNSIGNED-PAYLOAD");
        assert_eq!(request.header("x-amz-checksum-crc64nvme").len(), 12);
        for other in ["x-amz-checksum-crc32", "content-md5", "x-amz-trailer", "content-encoding"] {
            assert_eq!(request.header(other), "", "{other}");
        }
    }
    assert_eq!((sent[0].header("if-none-match"), sent[1].header("if-none-match")), ("*", ""));
    assert!(sent[1].line.contains("partNumber=3") && sent[1].line.contains("uploadId=id"), "{}", sent[1].line);
}

// promise: S-85
#[test]
fn throttling_and_errors_of_the_server_are_tried_again_and_denials_are_not() {
    for busy in [s3_error(503, "SlowDown", "slow down"), s3_error(500, "InternalError", "sorry"), Vec::new()] {
        let wire = Wire::saying(vec![busy.clone(), busy, reply(200, &[("content-length", "5")], b"")]);
        let mut config = at(&wire);
        config.attempts = 3;
        let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
        assert_eq!(cloud.block_on(cloud.objects().head("data", "key")).unwrap().value.size, 5);
        assert_eq!(wire.requests().len(), 3);
    }
    let wire = Wire::saying(vec![s3_error(403, "AccessDenied", "no")]);
    let mut config = at(&wire);
    config.attempts = 3;
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    cloud.block_on(cloud.objects().head("data", "key")).unwrap_err();
    assert_eq!(wire.requests().len(), 1);
}

// promise: S-85
#[test]
fn attempts_end() {
    let wire = Wire::saying(vec![s3_error(503, "SlowDown", "slow down")]);
    let cloud = connect(&wire);
    let error = cloud.block_on(cloud.objects().get("data", "key", None, None)).map(drop).unwrap_err();
    assert_eq!((error.cause, error.code.as_str()), (Cause::Unreachable, "SlowDown"));
    assert_eq!(wire.requests().len(), 2, "twice `attempts` for contents");
}

/// An error may come in an answer that began with 200 (S3 API Reference, `CompleteMultipartUpload`).
#[test]
fn an_error_inside_of_a_success_is_an_error() {
    let wire = Wire::saying(vec![
        reply(200, &[], b"<Error><Code>InternalError</Code><Message>sorry</Message></Error>"),
        reply(200, &[], b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"),
    ]);
    let cloud = connect(&wire);
    let settings = UploadSettings::default();
    cloud.block_on(cloud.objects().complete_upload(&target("key"), &settings, "id", &[], 0, 0)).unwrap();
    assert_eq!(wire.requests().len(), 2);
}

/// `(what the first attempt met, what is found then)` to what becomes of a put onto a free key.
fn put_after(first: Vec<u8>, found: Option<&[u8]>) -> (Result<(), CallError>, usize) {
    let found = found.map(|found| {
        let sum = crc64_text(found);
        let length = found.len().to_string();
        reply(200, &[("content-length", &length), ("x-amz-checksum-crc64nvme", &sum)], b"")
    });
    let wire = Wire::new(move |number, request| match number {
        0 => first.clone(),
        _ if request.line.starts_with("HEAD") => found.clone().unwrap_or_else(|| reply(404, &[], b"")),
        _ => s3_error(412, "PreconditionFailed", "exists"),
    });
    let cloud = connect(&wire);
    let body = Bytes::from_static(b"ours");
    let sum = crc(&body);
    let put = cloud.block_on(cloud.objects().put(&target("key"), &UploadSettings::default(), body, sum));
    (put.map(drop), wire.requests().len())
}

fn crc64_text(data: &[u8]) -> String {
    let mut text = String::new();
    let bytes = crc(data).to_be_bytes();
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = bytes.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte)) << 2;
    for at in (0..11).rev() {
        text.push(char::from(digits[(bits >> (6 * at) & 63) as usize]));
    }
    text + "="
}

// promise: S-85
#[test]
fn an_answer_that_got_lost_does_not_make_a_success_a_conflict() {
    let (put, requests) = put_after(Vec::new(), Some(b"ours"));
    assert!(put.is_ok(), "{put:?}");
    assert_eq!(requests, 3, "put, put again, look");
    for found in [Some(&b"theirs"[..]), Some(b"thei"), None] {
        let (put, _) = put_after(Vec::new(), found);
        assert_eq!(put.unwrap_err().cause, Cause::Precondition);
    }
    let (put, requests) = put_after(s3_error(412, "PreconditionFailed", "exists"), Some(b"ours"));
    assert_eq!((put.unwrap_err().cause, requests), (Cause::Precondition, 1), "it was there before");
}

// promise: S-85
#[test]
fn an_upload_that_was_completed_before_its_answer_got_lost_is_complete() {
    let sum = crc64_text(b"ours");
    let wire = Wire::new(move |number, _| match number {
        0 => Vec::new(),
        1 => s3_error(404, "NoSuchUpload", "gone"),
        _ => reply(200, &[("content-length", "4"), ("x-amz-checksum-crc64nvme", &sum)], b""),
    });
    let cloud = connect(&wire);
    let settings = UploadSettings::default();
    let sum = crc(b"ours");
    cloud.block_on(cloud.objects().complete_upload(&target("key"), &settings, "id", &[], 4, sum)).unwrap();
    assert_eq!(wire.requests().len(), 3);
}

#[test]
fn aborting_what_is_gone_is_no_error() {
    let wire = Wire::saying(vec![s3_error(404, "NoSuchUpload", "gone")]);
    let cloud = connect(&wire);
    cloud.block_on(cloud.objects().abort_upload(&target("key"), "id")).unwrap();
}

/// Body of a get: of `range`, answered by `headers` and `body`.
fn got(range: Option<std::ops::Range<u64>>, headers: &[(&str, &str)], body: &[u8]) -> Result<Vec<u8>, CallError> {
    let status = if range.is_some() { 206 } else { 200 };
    let wire = Wire::saying(vec![reply(status, headers, body)]);
    let cloud = connect(&wire);
    let objects: &dyn ObjectStore = &**cloud.objects();
    cloud.block_on(async { all(objects.get("data", "key", None, range).await?.value.1).await })
}

#[test]
fn bodies_are_as_long_as_was_asked_and_as_their_checksum_says() {
    assert_eq!(got(Some(2..5), &[("content-range", "bytes 2-4/9")], b"abc").unwrap(), b"abc");
    for (headers, body, cause) in [
        (&[("content-length", "9"), ("content-range", "bytes 2-4/9")][..], &b"a"[..], Cause::Unreachable),
        (&[("content-range", "bytes 2-4/9")], b"ab", Cause::Corrupt),
        (&[("content-range", "bytes 2-4/9")], b"abcd", Cause::Corrupt),
        (&[("content-range", "bytes 2-3/4")], b"ab", Cause::Corrupt),
        (&[("content-range", "bytes 0-2/9")], b"abc", Cause::Corrupt),
        (&[], b"abc", Cause::Corrupt),
    ] {
        let error = got(Some(2..5), headers, body).unwrap_err();
        assert_eq!((error.operation, error.cause), ("s3:GetObject", cause), "{headers:?}: {error}");
    }
    let sum = crc64_text(b"abc");
    assert_eq!(got(None, &[("x-amz-checksum-crc64nvme", &sum)], b"abc").unwrap(), b"abc");
    let error = got(None, &[("x-amz-checksum-crc64nvme", &sum)], b"abd").unwrap_err();
    assert_eq!(error.cause, Cause::Corrupt, "{error}");
}

// promise: S-85
#[test]
fn a_body_that_stands_still_is_given_up() {
    let wire = Wire::new(|_, _| {
        // The connection stays open as long as this thread sleeps; the head has gone out before.
        reply(200, &[("content-length", "9")], b"abc")
    });
    let slow = slow_proxy(&wire);
    let mut config = at(&wire);
    config.endpoints.s3 = Some(slow);
    config.timeouts.stall = Duration::from_secs(1);
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    let error = cloud.block_on(async {
        let pieces = cloud.objects().get("data", "key", None, None).await?.value.1;
        pieces.try_collect::<Vec<Bytes>>().await
    });
    let error = error.unwrap_err();
    assert_eq!(error.cause, Cause::Unreachable, "{error}");
    assert!(error.message.contains("throughput"), "{error}");
}

/// Passes bytes on, and keeps the connection open when there are no more.
fn slow_proxy(wire: &Wire) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let behind = wire.address;
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for client in listener.incoming().map_while(Result::ok) {
            let server = std::net::TcpStream::connect(behind).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (server, client.try_clone().unwrap());
            open.push(client);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    url
}

#[test]
fn keys_that_xml_cannot_hold_are_listed_encoded() {
    let page = |key: &str, more: &str| {
        let body = format!(
            "<ListBucketResult>{more}<Contents><Key>{key}</Key><Size>3</Size><ETag>e</ETag></Contents></ListBucketResult>"
        );
        reply(200, &[], body.as_bytes())
    };
    let wire = Wire::new(move |_, request| {
        if request.line.contains("encoding-type=url") {
            page("a%01%2B+%C3%A4", "<EncodingType>url</EncodingType>")
        } else {
            page("a&#1;+ \u{e4}", "")
        }
    });
    let cloud = connect(&wire);
    let page = cloud.block_on(cloud.objects().list("data", "", None, 10)).unwrap().value;
    assert_eq!(page.objects[0].key, "a\u{1}+ \u{e4}");
}

// A page may be empty, and a server may leave out that there is more: its token alone says where to go on.
#[test]
fn a_listing_goes_on_where_the_server_says() {
    let wire = Wire::new(|_, request| {
        let body = match request.line.split("continuation-token=").nth(1).map(|rest| &rest[..2]) {
            None => "<IsTruncated>true</IsTruncated><NextContinuationToken>t1</NextContinuationToken>",
            Some("t1") => {
                "<NextContinuationToken>t2</NextContinuationToken><Contents><Key>a</Key><Size>1</Size></Contents>"
            }
            Some(_) => "<IsTruncated>false</IsTruncated><Contents><Key>b</Key><Size>1</Size></Contents>",
        };
        reply(200, &[], format!("<ListBucketResult>{body}</ListBucketResult>").as_bytes())
    });
    let cloud = connect(&wire);
    let (mut keys, mut start) = (Vec::new(), None);
    loop {
        let page = cloud.block_on(cloud.objects().list("data", "", start.as_ref(), 10)).unwrap().value;
        keys.extend(page.objects.into_iter().map(|object| object.key));
        start = page.next;
        if start.is_none() {
            break;
        }
    }
    assert_eq!(keys, ["a", "b"]);
    assert!(wire.requests().iter().all(|request| !request.line.contains("start-after")));
    let behind = PageStart::After("k".to_owned());
    cloud.block_on(cloud.objects().list("data", "", Some(&behind), 10)).unwrap();
    assert!(wire.requests().last().is_some_and(|request| request.line.contains("start-after=k")));
}

// promise: S-84
#[test]
fn the_role_is_assumed_in_a_session_named_after_the_run() {
    let role = "arn:aws:iam::111122223333:role/Run";
    let wire = Wire::new(|_, request| {
        if request.line.starts_with("POST") {
            let body = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
                <Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
                <SessionToken>token-of-the-role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
                </Credentials></AssumeRoleResult></AssumeRoleResponse>";
            reply(200, &[("content-type", "text/xml")], body.as_bytes())
        } else {
            reply(200, &[("content-length", "5")], b"")
        }
    });
    let mut config = at(&wire);
    config.role_arn = Some(role.into());
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    cloud.block_on(cloud.objects().head("data", "key")).unwrap();
    let sent = wire.requests();
    let form = String::from_utf8(sent[0].body.clone()).unwrap();
    assert!(form.contains("RoleSessionName=runseal-sdk-test"), "{form}");
    assert!(form.contains("role%2FRun"), "{form}");
    assert!(sent[1].header("authorization").contains("Credential=ASIAROLE/"));
    assert_eq!(sent[1].header("x-amz-security-token"), "token-of-the-role");
}

#[test]
fn a_role_that_may_not_be_assumed_is_a_denial_of_sts() {
    let text = "User: arn:aws:iam::111122223333:user/u is not authorized to perform: sts:AssumeRole on resource: \
                arn:aws:iam::111122223333:role/Run because no identity-based policy allows the sts:AssumeRole action";
    let wire = Wire::saying(vec![sts_error(403, "AccessDenied", text)]);
    let mut config = at(&wire);
    config.role_arn = Some("arn:aws:iam::111122223333:role/Run".into());
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    let error = cloud.block_on(cloud.objects().head("data", "key")).unwrap_err();
    assert_eq!((error.operation, error.cause), ("sts:AssumeRole", Cause::Denied), "{error}");
    assert_eq!((error.message.as_str(), error.request_id.as_str()), (text, "REQ3"));
    assert_eq!(error.denial.unwrap().action.as_deref(), Some("sts:AssumeRole"));
}

#[test]
fn expired_credentials_are_told_as_such_and_show_nothing_of_themselves() {
    let wire =
        Wire::saying(vec![sts_error(403, "ExpiredToken", "The security token included in the request is expired")]);
    let mut config = at(&wire);
    config.credentials.as_mut().unwrap().session_token = Some(zeroize::Zeroizing::new("SESSION-TOKEN-1234".into()));
    let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
    let error = cloud.block_on(cloud.identity().whoami()).unwrap_err();
    assert_eq!(error.cause, Cause::Credentials, "{error}");
    for secret in ["SESSION-TOKEN-1234", "AKIAIOSFODNN7EXAMPLE", "a-secret-access-key"] {
        assert!(!format!("{error} {error:?}").contains(secret));
    }
    assert_eq!(wire.requests()[0].header("x-amz-security-token"), "SESSION-TOKEN-1234");
}
