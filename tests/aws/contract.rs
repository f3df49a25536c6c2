//! What every object store behind the traits must do, whoever made it: the bucket in memory that the tests of staging use,
//! and the adapter of the SDK in front of the double.

use std::sync::Arc;

use bytes::Bytes;
use runseal::aws::{
    CallError, Cause, Checksum, ChecksumAlgorithm, Cloud, Object, ObjectStore, PageStart, Part, Stored, UploadSettings,
};
use runseal::spec::S3Uri;

use super::sdk::{all, crc};
use crate::aws_double::{Double, World};
use crate::bucket::{BUCKET, Bucket};
use crate::fixture;

const FREE: UploadSettings = UploadSettings { sse: None, kms_key: None, overwrite: false };
const OVER: UploadSettings = UploadSettings { sse: None, kms_key: None, overwrite: true };
/// The least that a part may have which is not the last.
const PART: usize = 5 << 20;

/// A store and an empty bucket in it.
struct Subject<'a> {
    cloud: &'a Cloud,
    bucket: &'a str,
}

#[test]
fn the_bucket_in_memory_keeps_the_contract() {
    let bucket = Bucket::new();
    let cloud = bucket.cloud();
    Subject { cloud: &cloud, bucket: BUCKET }.keeps_the_contract();
}

#[test]
fn the_adapter_in_front_of_the_double_keeps_the_contract() {
    let double = Double::start(World::default());
    let cloud = fixture::cloud(&double, "runner");
    Subject { cloud: &cloud, bucket: "outputs" }.keeps_the_contract();
    assert_eq!(double.uploads(), [], "no upload is left");
}

impl Subject<'_> {
    fn keeps_the_contract(&self) {
        self.cloud.block_on(async {
            self.puts_and_reads().await;
            self.puts_onto_free_keys_only().await;
            self.refuses_what_is_damaged().await;
            self.lists_in_pages().await;
            self.joins_parts().await;
            self.gives_up_uploads().await;
            self.removes_what_it_stored().await;
        });
    }

    fn store(&self) -> &Arc<dyn ObjectStore> {
        self.cloud.objects()
    }

    fn at(&self, key: &str) -> S3Uri {
        S3Uri { bucket: self.bucket.to_owned(), key: key.to_owned() }
    }

    async fn put(&self, key: &str, body: &'static [u8], settings: &UploadSettings) -> Result<Stored, CallError> {
        let answer = self.store().put(&self.at(key), settings, Bytes::from_static(body), crc(body)).await;
        answer.map(|answer| answer.value)
    }

    async fn head(&self, key: &str) -> Result<Object, CallError> {
        self.store().head(self.bucket, key).await.map(|answer| answer.value)
    }

    async fn read(&self, key: &str) -> Vec<u8> {
        all(self.store().get(self.bucket, key, None, None).await.unwrap().value.1).await.unwrap()
    }

    /// Puts, looks, reads: whole, in ranges, as it was seen; and what is not there.
    async fn puts_and_reads(&self) {
        let stored = self.put("read/a b+c.txt", b"hello, world", &FREE).await.unwrap();
        let seen = self.head("read/a b+c.txt").await.unwrap();
        assert_eq!((seen.size, &seen.etag, seen.archived), (12, &stored.etag, false));
        assert_eq!(seen.encryption, stored.encryption, "the answer to a put says how it is encrypted");
        assert_eq!(self.read("read/a b+c.txt").await, b"hello, world");
        let etag = seen.etag.as_deref();
        let ranged = self.store().get(self.bucket, "read/a b+c.txt", etag, Some(7..12)).await.unwrap().value;
        assert_eq!((ranged.0.size, &ranged.0.checksums), (12, &vec![]), "the size is that of the whole");
        assert_eq!(all(ranged.1).await.unwrap(), b"world");
        let other =
            self.store().get(self.bucket, "read/a b+c.txt", Some("\"other\""), None).await.map(drop).unwrap_err();
        assert_eq!(other.cause, Cause::Precondition, "{other}");
        let missing = self.store().get(self.bucket, "read/none", None, None).await.map(drop).unwrap_err();
        assert_eq!((missing.cause, missing.operation), (Cause::NotFound, "s3:GetObject"), "{missing}");
        let missing = self.head("read/none").await.unwrap_err();
        assert_eq!(missing.cause, Cause::NotFound, "{missing}");
    }

    async fn puts_onto_free_keys_only(&self) {
        self.put("free", b"first", &FREE).await.unwrap();
        let taken = self.put("free", b"second", &FREE).await.unwrap_err();
        assert_eq!((taken.cause, taken.repeated), (Cause::Precondition, false), "{taken}");
        assert_eq!(self.read("free").await, b"first");
        self.put("free", b"third", &OVER).await.unwrap();
        assert_eq!(self.read("free").await, b"third");
    }

    async fn refuses_what_is_damaged(&self) {
        let body = Bytes::from_static(b"damaged");
        let refused = self.store().put(&self.at("damaged"), &FREE, body, 1).await.map(drop).unwrap_err();
        assert_eq!(refused.cause, Cause::Corrupt, "{refused}");
        assert_eq!(self.head("damaged").await.unwrap_err().cause, Cause::NotFound);
        self.put("sound", b"sound", &FREE).await.unwrap();
        let seen = self.store().checksums(self.bucket, "sound", None).await.unwrap().value;
        let value = crc(b"sound").to_be_bytes().to_vec();
        assert_eq!(seen.checksums, [Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value }]);
        assert!(self.store().same(&self.at("sound"), 5, crc(b"sound")).await.is_some());
        for (size, sum) in [(5, crc(b"other")), (4, crc(b"sound"))] {
            assert!(self.store().same(&self.at("sound"), size, sum).await.is_none());
        }
        assert!(self.store().same(&self.at("nowhere"), 5, crc(b"sound")).await.is_none());
    }

    /// In order, page after page, and from behind any key, whether it is there or not.
    async fn lists_in_pages(&self) {
        for key in ["list/e", "list/a", "list/c", "list/b", "list/d", "listing"] {
            self.put(key, b"x", &FREE).await.unwrap();
        }
        let most = 2;
        let (mut keys, mut start, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = self.store().list(self.bucket, "list/", start.as_ref(), most).await.unwrap().value;
            assert!(page.objects.iter().all(|listed| listed.size == 1));
            keys.extend(page.objects.into_iter().map(|listed| listed.key));
            pages += 1;
            start = page.next;
            if start.is_none() {
                break;
            }
        }
        assert_eq!(keys, ["list/a", "list/b", "list/c", "list/d", "list/e"]);
        assert_eq!(pages, 3);
        for after in ["list/c", "list/cc"] {
            let start = PageStart::After(after.to_owned());
            let page = self.store().list(self.bucket, "list/", Some(&start), 1000).await.unwrap().value;
            let keys: Vec<_> = page.objects.into_iter().map(|listed| listed.key).collect();
            assert_eq!((keys, page.next), (vec!["list/d".to_owned(), "list/e".to_owned()], None), "after {after}");
        }
        let page = self.store().list(self.bucket, "none/", None, 1000).await.unwrap().value;
        assert_eq!((page.objects, page.next), (vec![], None));
    }

    async fn begin(&self, key: &str) -> String {
        self.store().begin_upload(&self.at(key), &FREE).await.unwrap().value.0
    }

    async fn part(&self, key: &str, upload: &str, number: u16, body: Bytes) -> Result<Part, CallError> {
        let crc = crc(&body);
        self.store().upload_part(&self.at(key), upload, number, body, crc).await.map(|answer| answer.value)
    }

    async fn joins_parts(&self) {
        let data = Bytes::from((0..PART + 7).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let upload = self.begin("parts").await;
        let bodies = [data.slice(..PART), data.slice(PART..)];
        // In any order.
        let second = self.part("parts", &upload, 2, bodies[1].clone()).await.unwrap();
        let first = self.part("parts", &upload, 1, bodies[0].clone()).await.unwrap();
        assert_eq!(self.head("parts").await.unwrap_err().cause, Cause::NotFound, "nothing is visible before");
        let (parts, size, sum) = ([first, second], data.len() as u64, crc(&data));
        let joined = self.store().complete_upload(&self.at("parts"), &FREE, &upload, &parts, size, sum).await.unwrap();
        assert!(self.read("parts").await == data);
        assert_eq!(self.head("parts").await.unwrap().etag, joined.value.etag);
        assert!(self.store().same(&self.at("parts"), size, sum).await.is_some());
        let upload = self.begin("parts").await;
        let part = self.part("parts", &upload, 1, bodies[1].clone()).await.unwrap();
        let (size, sum) = (7, crc(&bodies[1]));
        let taken = self.store().complete_upload(&self.at("parts"), &FREE, &upload, &[part], size, sum).await;
        assert_eq!(taken.map(drop).unwrap_err().cause, Cause::Precondition);
        self.store().abort_upload(&self.at("parts"), &upload).await.unwrap();
    }

    async fn gives_up_uploads(&self) {
        let upload = self.begin("given-up").await;
        self.part("given-up", &upload, 1, Bytes::from_static(b"x")).await.unwrap();
        self.store().abort_upload(&self.at("given-up"), &upload).await.unwrap();
        assert_eq!(self.head("given-up").await.unwrap_err().cause, Cause::NotFound);
        let gone = self.part("given-up", &upload, 2, Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!((gone.cause, gone.code.as_str()), (Cause::NotFound, "NoSuchUpload"), "{gone}");
        self.store().abort_upload(&self.at("given-up"), &upload).await.expect("gone already is no error");
    }

    async fn removes_what_it_stored(&self) {
        let stored = self.put("removed", b"mine", &FREE).await.unwrap();
        let stored = Stored { version: None, ..stored };
        self.put("removed", b"theirs", &OVER).await.unwrap();
        let refused = self.store().remove(&self.at("removed"), &stored).await.unwrap_err();
        assert_eq!(refused.cause, Cause::Precondition, "{refused}");
        assert_eq!(self.read("removed").await, b"theirs");
        let stored = self.put("removed", b"mine again", &OVER).await.unwrap();
        self.store().remove(&self.at("removed"), &Stored { version: None, ..stored }).await.unwrap();
        assert_eq!(self.head("removed").await.unwrap_err().cause, Cause::NotFound);
    }
}
