//! Objects: encryption, checksums, conditions, listings, uploads.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, ServerSideEncryption,
};

use super::*;

#[test]
fn an_object_comes_back_with_its_encryption_and_checksum() {
    let bench = Bench::new();
    let put = bench.s3.put_object().bucket("inputs").key("a/b c+ü").checksum_algorithm(ChecksumAlgorithm::Crc64Nvme);
    let put = bench.wait(put.body(ByteStream::from_static(b"ACGT")).send()).unwrap();
    assert_eq!(put.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));
    assert_eq!(put.ssekms_key_id(), Some(INPUT_KEY));
    assert_eq!(put.bucket_key_enabled(), Some(true));
    let head = bench.wait(bench.s3.head_object().bucket("inputs").key("a/b c+ü").send()).unwrap();
    assert_eq!((head.content_length(), head.ssekms_key_id()), (Some(4), Some(INPUT_KEY)));
    assert_eq!(head.checksum_crc64_nvme(), None);
    let get = bench.s3.get_object().bucket("inputs").key("a/b c+ü").checksum_mode(ChecksumMode::Enabled);
    let get = bench.wait(get.send()).unwrap();
    assert_eq!(get.checksum_crc64_nvme(), Some(checksum::of("crc64nvme", b"ACGT").as_str()));
    assert_eq!(bench.wait(get.body.collect()).unwrap().to_vec(), b"ACGT");
    assert_eq!(bench.double.read("inputs", "a/b c+ü").unwrap(), &b"ACGT"[..]);
}

#[test]
fn a_large_object_is_put_together_and_checked() {
    let bench = Bench::new();
    let data = vec![7; (5 << 20) + 3];
    let begin = bench.s3.create_multipart_upload().bucket("outputs").key("x");
    let begin = begin.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
    let id = bench.wait(begin.send()).unwrap().upload_id.unwrap();
    let mut parts = CompletedMultipartUpload::builder();
    for (number, piece) in (1..).zip(data.chunks(5 << 20)) {
        let part = bench.s3.upload_part().bucket("outputs").key("x").upload_id(&id).part_number(number);
        let part = part.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(ByteStream::from(piece.to_vec()));
        let etag = bench.wait(part.send()).unwrap().e_tag.unwrap();
        parts = parts.parts(CompletedPart::builder().part_number(number).e_tag(etag).build());
    }
    let complete = |sum: &str| {
        let call = bench.s3.complete_multipart_upload().bucket("outputs").key("x").upload_id(&id);
        let call = call.checksum_type(ChecksumType::FullObject).checksum_crc64_nvme(sum).if_none_match("*");
        call.multipart_upload(parts.clone().build())
    };
    let (status, code, _) = refusal!(bench, complete("AAAAAAAAAAA="));
    assert_eq!((status, code.as_str()), (400, "BadDigest"));
    let done = bench.wait(complete(&checksum::of("crc64nvme", &data)).send()).unwrap();
    assert_eq!(done.ssekms_key_id(), Some(OUTPUT_KEY));
    assert_eq!(bench.double.read("outputs", "x").unwrap(), data);
    assert_eq!(bench.double.uploads(), []);
}

#[test]
fn headers_choose_the_encryption_and_the_bucket_policy_demands_it() {
    let bench = Bench::new();
    let put = |sse: Option<ServerSideEncryption>| {
        let put = bench.s3.put_object().bucket("outputs").key("a").body(ByteStream::from_static(b"x"));
        put.set_server_side_encryption(sse)
    };
    let plain = bench.wait(put(Some(ServerSideEncryption::Aes256)).send()).unwrap();
    assert_eq!((plain.server_side_encryption(), plain.ssekms_key_id()), (Some(&ServerSideEncryption::Aes256), None));
    assert_eq!(bench.contexts(), []);
    bench.double.change(|world| world.bucket("outputs").demands_sse = Some("aws:kms".to_owned()));
    let (status, code, text) = refusal!(bench, put(None));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    assert!(text.ends_with("outputs/a with an explicit deny in a resource-based policy"), "{text}");
    assert_eq!(refusal!(bench, bench.s3.create_multipart_upload().bucket("outputs").key("a")).0, 403);
    let kms = bench.wait(put(Some(ServerSideEncryption::AwsKms)).ssekms_key_id(OUTPUT_KEY).send()).unwrap();
    assert_eq!(kms.ssekms_key_id(), Some(OUTPUT_KEY));
}

#[test]
fn the_default_encryption_of_a_bucket_can_be_asked_for() {
    let bench = Bench::new();
    let answer = bench.wait(bench.s3.get_bucket_encryption().bucket("inputs").send()).unwrap();
    let rule = &answer.server_side_encryption_configuration.unwrap().rules[0];
    let default = rule.apply_server_side_encryption_by_default().unwrap();
    assert_eq!((default.kms_master_key_id(), rule.bucket_key_enabled()), (Some(INPUT_KEY), Some(true)));
}

#[test]
fn an_archived_object_is_seen_but_not_read_until_it_is_restored() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"x");
    bench.double.change(|world| world.object("inputs", "a").storage_class = Some("GLACIER".to_owned()));
    let head = bench.wait(bench.s3.head_object().bucket("inputs").key("a").send()).unwrap();
    assert_eq!(head.storage_class().map(|class| class.as_str()), Some("GLACIER"));
    let (status, code, _) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
    assert_eq!((status, code.as_str()), (403, "InvalidObjectState"));
    let restored = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2029 00:00:00 GMT\"".to_owned();
    bench.double.change(|world| world.object("inputs", "a").restore = Some(restored));
    bench.wait(bench.s3.get_object().bucket("inputs").key("a").send()).unwrap();
}

#[test]
fn listings_come_in_pages_with_prefixes_folded() {
    let bench = Bench::new();
    for key in ["a", "a/1", "a/2", "b/1", "c"] {
        bench.double.put("inputs", key, b"x");
    }
    let list = |most| bench.s3.list_objects_v2().bucket("inputs").max_keys(most);
    let pages = list(2).into_paginator().send();
    let pages = bench.wait(pages.collect::<Result<Vec<_>, _>>()).unwrap();
    let keys: Vec<Vec<&str>> =
        pages.iter().map(|page| page.contents().iter().filter_map(|object| object.key()).collect()).collect();
    assert_eq!(keys, [vec!["a", "a/1"], vec!["a/2", "b/1"], vec!["c"]]);
    let folded = bench.wait(list(10).delimiter("/").send()).unwrap();
    let prefixes: Vec<&str> = folded.common_prefixes().iter().filter_map(|prefix| prefix.prefix()).collect();
    assert_eq!(prefixes, ["a/", "b/"]);
    assert_eq!(folded.contents().len(), 2);
    assert!(folded.contents().iter().all(|object| object.size() == Some(1) && object.e_tag().is_some()));
}

#[test]
fn ranges_bring_what_they_say_and_no_checksum() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"0123456789");
    let get =
        |range: &str| bench.s3.get_object().bucket("inputs").key("a").range(range).checksum_mode(ChecksumMode::Enabled);
    let answer = bench.wait(get("bytes=2-4").send()).unwrap();
    assert_eq!((answer.content_range(), answer.checksum_crc64_nvme()), (Some("bytes 2-4/10"), None));
    assert_eq!(bench.wait(answer.body.collect()).unwrap().to_vec(), b"234");
    assert_eq!(refusal!(bench, get("bytes=10-10")).0, 416);
}

#[test]
fn conditions_are_kept() {
    let bench = Bench::new();
    bench.upload("inputs", "a", b"x");
    let etag = bench.double.object("inputs", "a").unwrap().etag;
    let get = |etag: &str| bench.s3.get_object().bucket("inputs").key("a").if_match(format!("\"{etag}\""));
    bench.wait(get(&etag).send()).unwrap();
    assert_eq!(refusal!(bench, get("other")).0, 412);
    let put = bench.s3.put_object().bucket("inputs").key("a").if_none_match("*").body(ByteStream::from_static(b"y"));
    let (status, code, _) = refusal!(bench, put);
    assert_eq!((status, code.as_str()), (412, "PreconditionFailed"));
    assert_eq!(bench.double.read("inputs", "a").unwrap(), &b"x"[..]);
}

#[test]
fn wrong_checksums_are_refused() {
    let bench = Bench::new();
    let put = || bench.s3.put_object().bucket("inputs").key("a").body(ByteStream::from_static(b"x"));
    let wrong = [
        put().checksum_crc64_nvme("AAAAAAAAAAA="),
        put().checksum_crc32("AAAAAA=="),
        put().checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        put().content_md5("AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    for put in wrong {
        let (status, code, _) = refusal!(bench, put);
        assert_eq!((status, code.as_str()), (400, "BadDigest"));
    }
    assert_eq!(bench.double.keys("inputs"), Vec::<String>::new());
}

#[test]
fn the_checksum_of_parts_is_composite_unless_it_is_crc64nvme() {
    let bench = Bench::new();
    let begin = bench.s3.create_multipart_upload().bucket("inputs").key("a");
    let id = bench.wait(begin.checksum_algorithm(ChecksumAlgorithm::Crc32).send()).unwrap().upload_id.unwrap();
    let part = || {
        let part = bench.s3.upload_part().bucket("inputs").key("a").upload_id(&id).part_number(1);
        part.body(ByteStream::from_static(b"x"))
    };
    let (status, ..) = refusal!(bench, part().checksum_algorithm(ChecksumAlgorithm::Sha256));
    assert_eq!(status, 400);
    let etag = bench.wait(part().checksum_algorithm(ChecksumAlgorithm::Crc32).send()).unwrap().e_tag.unwrap();
    let parts = CompletedPart::builder().part_number(1).e_tag(etag).build();
    let parts = CompletedMultipartUpload::builder().parts(parts).build();
    let complete =
        bench.s3.complete_multipart_upload().bucket("inputs").key("a").upload_id(&id).multipart_upload(parts);
    let done = bench.wait(complete.send()).unwrap();
    assert_eq!(done.checksum_crc32(), Some(checksum::composite("crc32", &[b"x"]).as_str()));
    assert!(done.checksum_crc32().unwrap().ends_with("-1"));
    assert_eq!(done.checksum_type(), Some(&ChecksumType::Composite));
}

#[test]
fn uploads_are_completed_by_the_rules() {
    let bench = Bench::new();
    let id =
        bench.wait(bench.s3.create_multipart_upload().bucket("inputs").key("a").send()).unwrap().upload_id.unwrap();
    let mut parts = Vec::new();
    for number in 1..=2 {
        let part = bench.s3.upload_part().bucket("inputs").key("a").upload_id(&id).part_number(number);
        let etag = bench.wait(part.body(ByteStream::from_static(b"x")).send()).unwrap().e_tag.unwrap();
        parts.push(CompletedPart::builder().part_number(number).e_tag(etag).build());
    }
    let complete = |parts: &[CompletedPart]| {
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        let call = bench.s3.complete_multipart_upload().bucket("inputs").key("a").upload_id(&id);
        call.multipart_upload(list)
    };
    assert_eq!(refusal!(bench, complete(&parts)).1, "EntityTooSmall");
    parts.reverse();
    assert_eq!(refusal!(bench, complete(&parts)).1, "InvalidPartOrder");
    let stranger = CompletedPart::builder().part_number(9).e_tag("\"none\"").build();
    assert_eq!(refusal!(bench, complete(&[stranger])).1, "InvalidPart");
    assert_eq!(refusal!(bench, complete(&parts[1..]).mpu_object_size(7)).1, "InvalidRequest");
    let listed = bench.wait(bench.s3.list_parts().bucket("inputs").key("a").upload_id(&id).send()).unwrap();
    assert_eq!(listed.parts().len(), 2);
    bench.wait(complete(&parts[1..]).mpu_object_size(1).send()).unwrap();
    assert_eq!(refusal!(bench, complete(&parts[1..])).1, "NoSuchUpload");
}

#[test]
fn versions_are_told_where_they_are_kept() {
    let bench = Bench::new();
    assert_eq!(bench.upload("inputs", "a", b"x").version_id(), None);
    bench.double.change(|world| world.bucket("inputs").versioned = true);
    let version = bench.upload("inputs", "a", b"y").version_id.unwrap();
    let head = bench.wait(bench.s3.head_object().bucket("inputs").key("a").send()).unwrap();
    assert_eq!(head.version_id(), Some(version.as_str()));
}
