//! Keys: what S3 asks of KMS, states, kinds, dry runs, grants.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ServerSideEncryption};

use super::*;

#[test]
fn without_decrypt_an_upload_begins_but_takes_no_part() {
    let bench = Bench::new();
    bench.deny(Denial::of("kms:Decrypt"));
    let begun = bench.wait(bench.s3.create_multipart_upload().bucket("outputs").key("x").send()).unwrap();
    assert_eq!(begun.ssekms_key_id(), Some(OUTPUT_KEY));
    let id = begun.upload_id().unwrap();
    let part = bench.s3.upload_part().bucket("outputs").key("x").upload_id(id).part_number(1);
    let (status, code, message) = refusal!(bench, part.body(ByteStream::from_static(b"x")));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    let who = Persona::named("runner").arn;
    assert_eq!(
        message,
        format!(
            "User: {who} is not authorized to perform: kms:Decrypt on resource: {OUTPUT_KEY} because no identity-based \
             policy allows the kms:Decrypt action"
        )
    );
    assert_eq!(bench.double.uploads().len(), 1);
    bench.wait(bench.s3.abort_multipart_upload().bucket("outputs").key("x").upload_id(id).send()).unwrap();
    assert_eq!(bench.double.uploads(), []);
}

#[test]
fn without_decrypt_nothing_is_read_but_heads_are() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"ACGT");
    bench.deny(Denial::of("kms:Decrypt"));
    let (status, code, _) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a").range("bytes=0-0"));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    bench.wait(bench.s3.head_object().bucket("inputs").key("a").send()).unwrap();
    let (status, ..) =
        refusal!(bench, bench.s3.head_object().bucket("inputs").key("a").checksum_mode(ChecksumMode::Enabled));
    assert_eq!(status, 403);
}

#[test]
fn a_disabled_key_speaks_through_s3_and_directly() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"ACGT");
    bench.double.change(|world| world.key(INPUT_KEY).state = KeyState::Disabled);
    let text = format!("{INPUT_KEY} is disabled.");
    let through = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
    assert_eq!(through, (400, "KMS.DisabledException".to_owned(), text.clone()));
    let direct = refusal!(bench, bench.kms.generate_data_key().key_id(INPUT_KEY).number_of_bytes(32).dry_run(true));
    assert_eq!(direct, (400, "DisabledException".to_owned(), text));
    let facts = bench.wait(bench.kms.describe_key().key_id(INPUT_KEY).send()).unwrap().key_metadata.unwrap();
    assert_eq!(facts.key_state.unwrap().as_str(), "Disabled");
}

#[test]
fn dry_runs_always_fail_one_way_or_the_other() {
    let bench = Bench::new();
    let generate = || bench.kms.generate_data_key().key_id(OUTPUT_KEY).number_of_bytes(32).dry_run(true);
    let decrypt = || {
        let modifier = aws_sdk_kms::types::DryRunModifierType::IgnoreCiphertext;
        bench.kms.decrypt().key_id(OUTPUT_KEY).dry_run(true).dry_run_modifiers(modifier)
    };
    assert_eq!(refusal!(bench, generate()).1, "DryRunOperationException");
    assert_eq!(refusal!(bench, decrypt()).1, "DryRunOperationException");
    bench.deny(Denial::of("kms:*"));
    let (status, code, _) = refusal!(bench, decrypt());
    assert_eq!((status, code.as_str()), (400, "AccessDeniedException"));
    assert!(bench.double.calls_of("Decrypt").iter().all(|call| call.dry_run));
    assert!(bench.double.data_keys().is_empty());
}

#[test]
fn a_bucket_key_puts_the_bucket_into_the_encryption_context() {
    let bench = Bench::new();
    bench.upload("outputs", "a/b", b"x");
    bench.wait(bench.s3.get_object().bucket("outputs").key("a/b").send()).unwrap();
    let bucket = "arn:aws:s3:::outputs".to_owned();
    assert_eq!(bench.contexts(), [("GenerateDataKey".to_owned(), bucket.clone()), ("Decrypt".to_owned(), bucket)]);
    bench.double.clear_calls();
    bench.double.change(|world| world.bucket("outputs").encryption.bucket_key = false);
    bench.upload("outputs", "a/c", b"x");
    assert_eq!(bench.contexts(), [("GenerateDataKey".to_owned(), "arn:aws:s3:::outputs/a/c".to_owned())]);
}

#[test]
fn a_condition_on_the_context_can_exclude_bucket_keys() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"x");
    bench.deny(Denial::of("kms:Decrypt").unless_context("arn:aws:s3:::inputs/*"));
    assert_eq!(refusal!(bench, bench.s3.get_object().bucket("inputs").key("a")).0, 403);
    bench.double.change(|world| world.object("inputs", "a").encryption.bucket_key = false);
    bench.wait(bench.s3.get_object().bucket("inputs").key("a").send()).unwrap();
}

#[test]
fn what_only_s3_may_do_is_denied_directly_and_the_other_way_round() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"x");
    let get = || bench.s3.get_object().bucket("inputs").key("a");
    let direct = || bench.kms.generate_data_key().key_id(INPUT_KEY).number_of_bytes(32).dry_run(true);
    bench.deny(Denial::of("kms:*").via(Via::Direct).worded(Wording::NotAllowed(Layer::Resource)));
    bench.wait(get().send()).unwrap();
    assert_eq!(refusal!(bench, direct()).1, "AccessDeniedException");
    bench.double.change(|world| world.persona("runner").denials[0].via = Via::S3);
    assert_eq!(refusal!(bench, get()).1, "AccessDenied");
    assert_eq!(refusal!(bench, direct()).1, "DryRunOperationException");
}

#[test]
fn every_state_of_a_key_has_its_text() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"x");
    let states = [
        (KeyState::Disabled, "DisabledException", "disabled"),
        (KeyState::PendingDeletion, "KMSInvalidStateException", "pending deletion"),
        (KeyState::PendingReplicaDeletion, "KMSInvalidStateException", "pending replica deletion"),
        (KeyState::PendingImport, "KMSInvalidStateException", "pending import"),
        (KeyState::Unavailable, "KMSInvalidStateException", "unavailable"),
        (KeyState::Creating, "KMSInvalidStateException", "creating"),
    ];
    for (state, code, text) in states {
        bench.double.change(|world| world.key(INPUT_KEY).state = state);
        let text = format!("{INPUT_KEY} is {text}.");
        let direct = bench.kms.generate_data_key().key_id(INPUT_KEY).number_of_bytes(32).dry_run(true);
        assert_eq!(refusal!(bench, direct), (400, code.to_owned(), text.clone()));
        for call in [None, Some("bytes=0-0".to_owned())] {
            let get = bench.s3.get_object().bucket("inputs").key("a").set_range(call);
            assert_eq!(refusal!(bench, get), (400, format!("KMS.{code}"), text.clone()));
        }
        bench.wait(bench.kms.describe_key().key_id(INPUT_KEY).send()).unwrap();
    }
    bench.double.change(|world| world.key(INPUT_KEY).state = KeyState::Updating);
    bench.wait(bench.s3.get_object().bucket("inputs").key("a").send()).unwrap();
}

#[test]
fn keys_of_another_kind_encrypt_nothing() {
    let bench = Bench::new();
    for (spec, usage) in [("HMAC_256", "GENERATE_VERIFY_MAC"), ("RSA_2048", "ENCRYPT_DECRYPT")] {
        bench.double.change(|world| {
            let key = world.key(OUTPUT_KEY);
            (key.spec, key.usage) = (spec.to_owned(), usage.to_owned());
        });
        let put = bench.s3.put_object().bucket("outputs").key("a").body(ByteStream::from_static(b"x"));
        let (status, code, _) = refusal!(bench, put);
        assert_eq!((status, code.as_str()), (400, "KMS.InvalidKeyUsageException"));
    }
}

#[test]
fn the_aws_managed_key_serves_through_s3_only_and_its_own_account_only() {
    let bench = Bench::new();
    bench.double.change(|world| world.bucket("inputs").encryption.key = None);
    let put = bench.upload("inputs", "a", b"x");
    assert_eq!(put.ssekms_key_id(), Some(MANAGED_KEY));
    bench.wait(bench.s3.get_object().bucket("inputs").key("a").send()).unwrap();
    let direct = bench.kms.generate_data_key().key_id("alias/aws/s3").number_of_bytes(32).dry_run(true);
    let (_, code, text) = refusal!(bench, direct);
    assert_eq!(code, "AccessDeniedException");
    assert!(text.ends_with("because no resource-based policy allows the kms:GenerateDataKey action"), "{text}");
    let arn = format!("arn:aws:iam::{FOREIGN_ACCOUNT}:user/guest");
    bench.double.change(|world| world.persona("runner").arn = arn);
    let (status, code, text) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    assert!(text.contains("on the resource associated with this ciphertext because"), "{text}");
}

#[test]
fn keys_have_names_and_wrong_names_are_told_apart() {
    let bench = Bench::new();
    bench.double.change(|world| world.key(OUTPUT_KEY).aliases.push("alias/runs".to_owned()));
    let put = |key: &str| {
        let put = bench.s3.put_object().bucket("inputs").key("a").body(ByteStream::from_static(b"x"));
        put.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key)
    };
    let done = bench.wait(put("alias/runs").send()).unwrap();
    assert_eq!((done.ssekms_key_id(), done.bucket_key_enabled()), (Some(OUTPUT_KEY), None));
    let gone = key_arn(ACCOUNT, "gone");
    let elsewhere = OUTPUT_KEY.replace(REGION, "us-east-1");
    let alias = format!("arn:aws:kms:{REGION}:{ACCOUNT}:alias/none");
    let wrong = [
        ("aws/s3", "Invalid keyId aws/s3".to_owned()),
        (elsewhere.as_str(), "Invalid arn us-east-1".to_owned()),
        ("alias/none", format!("Alias {alias} is not found.")),
        (gone.as_str(), format!("Key '{gone}' does not exist")),
    ];
    for (key, text) in wrong {
        assert_eq!(refusal!(bench, put(key)), (400, "KMS.NotFoundException".to_owned(), text));
    }
    let foreign = key_arn(FOREIGN_ACCOUNT, "theirs");
    let (status, code, text) = refusal!(bench, put(&foreign));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    assert!(text.contains("on this resource because the resource does not exist in this Region"), "{text}");
}

#[test]
fn grants_are_listed_in_pages_and_dry_runs_make_none() {
    let bench = Bench::new();
    let create = |grantee: &str| {
        let operation = aws_sdk_kms::types::GrantOperation::Decrypt;
        bench.kms.create_grant().key_id(OUTPUT_KEY).grantee_principal(grantee).operations(operation)
    };
    assert_eq!(refusal!(bench, create("someone").dry_run(true)).1, "DryRunOperationException");
    for number in 0..3 {
        bench.wait(create(&format!("grantee-{number}")).send()).unwrap();
    }
    let pages = bench.kms.list_grants().key_id(OUTPUT_KEY).limit(2).into_paginator().items().send();
    let grants = bench.wait(pages.collect::<Result<Vec<_>, _>>()).unwrap();
    let grantees: Vec<&str> = grants.iter().filter_map(|grant| grant.grantee_principal()).collect();
    assert_eq!(grantees, ["grantee-0", "grantee-1", "grantee-2"]);
    assert_eq!(bench.double.count("ListGrants"), 2);
}

#[test]
fn a_data_key_is_random_and_known_to_the_test() {
    let bench = Bench::new();
    let spec = aws_sdk_kms::types::DataKeySpec::Aes256;
    let call = bench.kms.generate_data_key().key_id(OUTPUT_KEY).key_spec(spec).encryption_context("run", "r1");
    let plaintext = bench.wait(call.send()).unwrap().plaintext.unwrap().into_inner();
    assert_eq!(bench.double.data_keys(), [plaintext]);
    let call = &bench.double.calls_of("GenerateDataKey")[0];
    assert_eq!((call.context["run"].as_str(), call.dry_run), ("r1", false));
}
