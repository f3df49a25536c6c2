//! People: identities, roles, credentials, who may list, uploads of their own.

use aws_sdk_s3::primitives::ByteStream;

use super::*;

#[test]
fn sts_knows_who_calls() {
    let bench = Bench::new();
    let who = bench.wait(bench.sts.get_caller_identity().send()).unwrap();
    assert_eq!(who.arn(), Some(Persona::named("runner").arn.as_str()));
    assert_eq!(who.account(), Some(ACCOUNT));
}

#[test]
fn whoever_may_not_list_is_not_told_what_is_missing() {
    let bench = Bench::new();
    let head = || bench.s3.head_object().bucket("inputs").key("none");
    assert_eq!(refusal!(bench, head()).0, 404);
    bench.deny(Denial::of("s3:ListBucket"));
    assert_eq!(refusal!(bench, head()).0, 403);
    let (status, code, text) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("none"));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    assert!(text.contains("s3:ListBucket on resource: arn:aws:s3:::inputs because"), "{text}");
    bench.double.put("inputs", "there", b"x");
    bench.wait(bench.s3.get_object().bucket("inputs").key("there").send()).unwrap();
}

#[test]
fn who_began_an_upload_may_abort_it_unless_told_otherwise() {
    let bench = Bench::new();
    let begin = || {
        let begun = bench.wait(bench.s3.create_multipart_upload().bucket("outputs").key("a").send()).unwrap();
        begun.upload_id.unwrap()
    };
    let (first, second) = (begin(), begin());
    let abort = |id: &str| bench.s3.abort_multipart_upload().bucket("outputs").key("a").upload_id(id);
    bench.deny(Denial::of("s3:AbortMultipartUpload"));
    bench.wait(abort(&first).send()).unwrap();
    bench.double.change(|world| world.persona("runner").denials[0].wording = Wording::Explicit(Layer::Endpoint));
    let (status, _, text) = refusal!(bench, abort(&second));
    assert_eq!(status, 403);
    assert!(text.ends_with("with an explicit deny in a VPC endpoint policy"), "{text}");
    assert_eq!(bench.double.uploads().len(), 1);
}

#[test]
fn every_wording_is_that_of_aws() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"x");
    let who = Persona::named("runner").arn;
    let start = format!("User: {who} is not authorized to perform: kms:Decrypt on");
    let absent = "because the resource does not exist in this Region, no resource-based policies allow access, or a \
                  resource-based policy explicitly denies access";
    let wordings = [
        (
            Wording::NotAllowed(Layer::Session),
            format!("{start} resource: {INPUT_KEY} because no session policy allows the kms:Decrypt action"),
        ),
        (
            Wording::NotAllowed(Layer::Boundary),
            format!("{start} resource: {INPUT_KEY} because no permissions boundary allows the kms:Decrypt action"),
        ),
        (
            Wording::Explicit(Layer::Identity),
            format!("{start} resource: {INPUT_KEY} with an explicit deny in an identity-based policy"),
        ),
        (
            Wording::Explicit(Layer::ServiceControl),
            format!("{start} resource: {INPUT_KEY} with an explicit deny in a service control policy"),
        ),
        (Wording::Foreign, format!("{start} this resource {absent}")),
        (Wording::ForeignCiphertext, format!("{start} the resource associated with this ciphertext {absent}")),
        (
            Wording::OldCiphertext,
            "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you \
             are not allowed to access."
                .to_owned(),
        ),
        (Wording::Plain, "Access Denied".to_owned()),
    ];
    for (wording, text) in wordings {
        bench.double.change(|world| world.persona("runner").denials = vec![Denial::of("kms:Decrypt").worded(wording)]);
        let said = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
        assert_eq!(said, (403, "AccessDenied".to_owned(), text));
    }
}

#[test]
fn a_role_gives_credentials_of_another_persona() {
    let bench = Bench::new();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/reader");
    let assume = || bench.sts.assume_role().role_arn(&role).role_session_name("run-1");
    let (status, code, text) = refusal!(bench, assume());
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    assert!(text.ends_with(&format!("is not authorized to perform: sts:AssumeRole on resource: {role}")), "{text}");
    bench.double.change(|world| {
        world.persona("reader").deny(Denial::of("s3:PutObject"));
        world.roles.insert(role.clone(), Role { persona: "reader".to_owned(), trusts: vec!["runner".to_owned()] });
    });
    let session = bench.wait(assume().send()).unwrap();
    assert_eq!(session.assumed_role_user().unwrap().arn(), format!("arn:aws:sts::{ACCOUNT}:assumed-role/reader/run-1"));
    let given = session.credentials().unwrap();
    let credentials = Credentials::new(
        given.access_key_id(),
        given.secret_access_key(),
        Some(given.session_token().to_owned()),
        None,
        "session",
    );
    let (s3, ..) = clients_with(&bench.double, credentials);
    let (status, _, text) =
        refusal!(bench, s3.put_object().bucket("outputs").key("a").body(ByteStream::from_static(b"x")));
    assert_eq!(status, 403);
    assert!(text.starts_with(&format!("User: arn:aws:sts::{ACCOUNT}:assumed-role/reader/run-1 is not")), "{text}");
    bench.double.change(|world| {
        drop(world.roles.insert(role.clone(), Role { persona: "reader".to_owned(), trusts: vec!["other".to_owned()] }))
    });
    assert_eq!(refusal!(bench, assume()).0, 403);
}

#[test]
fn credentials_expire_and_are_issued_anew() {
    let bench = Bench::new();
    bench.double.change(|world| world.expire("runner"));
    let (status, code, _) = refusal!(bench, bench.s3.list_objects_v2().bucket("inputs"));
    assert_eq!((status, code.as_str()), (400, "ExpiredToken"));
    assert_eq!(refusal!(bench, bench.kms.describe_key().key_id(INPUT_KEY)).1, "ExpiredTokenException");
    assert_eq!(refusal!(bench, bench.sts.get_caller_identity()).1, "ExpiredToken");
    let (s3, ..) = clients(&bench.double, "runner");
    bench.wait(s3.list_objects_v2().bucket("inputs").send()).unwrap();
}

#[test]
fn nobody_gets_in_with_made_up_credentials() {
    let bench = Bench::new();
    let (id, good) = bench.double.credentials("runner");
    let unknown = Credentials::new("AKIANOBODY", "x", None, None, "test");
    let wrong_secret = Credentials::new(&id, "x", None, None, "test");
    let wrong_token = Credentials::new(&id, good.secret, Some("x".to_owned()), None, "test");
    for (credentials, code) in
        [(unknown, "InvalidAccessKeyId"), (wrong_secret, "SignatureDoesNotMatch"), (wrong_token, "InvalidToken")]
    {
        let (s3, ..) = clients_with(&bench.double, credentials);
        assert_eq!(refusal!(bench, s3.list_objects_v2().bucket("inputs")).1, code);
    }
    assert!(bench.double.calls().iter().all(|call| call.status >= 400));
}

#[test]
fn a_bucket_tells_its_region_even_to_those_who_may_not_see_it() {
    let bench = Bench::new();
    bench.double.change(|world| world.bucket("inputs").region = "us-east-1".to_owned());
    bench.deny(Denial::of("s3:ListBucket"));
    let error = bench.wait(bench.s3.head_bucket().bucket("inputs").send()).unwrap_err();
    let answer = error.raw_response().unwrap();
    assert_eq!(answer.status().as_u16(), 403);
    assert_eq!(answer.headers().get("x-amz-bucket-region"), Some("us-east-1"));
    let (status, code, _) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
    assert_eq!((status, code.as_str()), (301, "PermanentRedirect"));
}

#[test]
fn a_bucket_of_somebody_else_is_noticed() {
    let bench = Bench::new();
    let list = |owner: &str| bench.s3.list_objects_v2().bucket("inputs").expected_bucket_owner(owner);
    bench.wait(list(ACCOUNT).send()).unwrap();
    assert_eq!(refusal!(bench, list(FOREIGN_ACCOUNT)).0, 403);
    assert_eq!(refusal!(bench, bench.s3.list_objects_v2().bucket("nowhere")).1, "NoSuchBucket");
}

#[test]
fn the_record_tells_who_asked_what() {
    let bench = Bench::new();
    bench.upload("outputs", "a", b"x");
    let call = &bench.double.calls_of("PutObject")[0];
    assert_eq!((call.bucket.as_str(), call.key.as_str(), call.persona.as_str()), ("outputs", "a", "runner"));
    assert_eq!((call.status, call.code.as_str()), (200, ""));
    assert!(call.user_agent().contains("aws-sdk-rust"), "{}", call.user_agent());
    assert!(call.request_id.starts_with("DOUBLE"));
    assert_eq!(call.header("authorization"), None);
    bench.deny(Denial::of("s3:*"));
    refusal!(bench, bench.s3.get_object().bucket("outputs").key("a"));
    let call = &bench.double.calls_of("GetObject")[0];
    assert_eq!((call.status, call.code.as_str()), (403, "AccessDenied"));
}

#[test]
fn the_world_is_changed_by_json_and_keeps_its_objects() {
    let double = Double::start(World::default());
    double.put("inputs", "a", b"x");
    let patch = serde_json::json!({
        "personas": { "runner": { "denials": [{ "action": "kms:Decrypt", "wording": { "Explicit": "Resource" } }] } },
        "keys": { INPUT_KEY: { "state": "PendingDeletion", "deletion": 1_900_000_000 } },
        "buckets": { "more": {} },
    });
    double.change(|world| world.patch(&patch)).unwrap();
    double.change(|world| {
        assert_eq!(
            world.persona("runner").denials,
            [Denial::of("kms:Decrypt").worded(Wording::Explicit(Layer::Resource))]
        );
        assert_eq!(world.key(INPUT_KEY).state, KeyState::PendingDeletion);
        assert!(world.buckets.contains_key("more"));
    });
    assert!(double.object("inputs", "a").is_some());
    assert!(double.change(|world| world.patch(&serde_json::json!({ "bucket": {} }))).is_err());
}

#[test]
fn objects_are_kept_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start(World::default());
    double.keep_objects_in(folder.path()).unwrap();
    double.put("inputs", "a/b", b"x");
    assert_eq!(std::fs::read(folder.path().join("inputs/a/b")).unwrap(), b"x");
    double.put("inputs", "../a", b"never outside");
    assert!(!folder.path().join("a").exists());
    let again = Double::start(World::default());
    again.keep_objects_in(folder.path()).unwrap();
    assert_eq!(again.read("inputs", "a/b").unwrap(), &b"x"[..]);
}
