//! Faults on order, and that they end.

use std::time::Duration;

use super::*;

fn bench_with(effect: Effect) -> Bench {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"0123456789");
    bench.double.put("inputs", "b", b"0123456789");
    bench.double.fault(Fault::on("GetObject", effect).at("inputs/a").times(1));
    bench
}

impl Bench {
    fn get(&self, key: &str) -> aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder {
        self.s3.get_object().bucket("inputs").key(key)
    }

    fn contents(&self, key: &str) -> Result<Vec<u8>, String> {
        let answer = self.wait(self.get(key).send()).map_err(|error| format!("{error:?}"))?;
        let body = self.wait(answer.body.collect()).map_err(|error| format!("{error:?}"))?;
        Ok(body.to_vec())
    }
}

#[test]
fn an_error_comes_as_often_as_ordered_and_where_it_was_ordered() {
    let bench = bench_with(Effect::slow_down());
    assert!(bench.contents("b").is_ok());
    let (status, code, _) = refusal!(bench, bench.get("a"));
    assert_eq!((status, code.as_str()), (503, "SlowDown"));
    assert!(bench.contents("a").is_ok());
    let codes: Vec<u16> = bench.double.calls_of("GetObject").iter().map(|call| call.status).collect();
    assert_eq!(codes, [200, 503, 200]);
}

#[test]
fn a_fault_can_let_calls_pass_first_and_can_be_ended() {
    let bench = bench_with(Effect::slow_down());
    bench.double.clear_faults();
    bench.double.fault(Fault::on("GetObject", Effect::internal_error()).after(1));
    let outcomes = [(); 3].map(|()| bench.contents("a").is_ok());
    assert_eq!(outcomes, [true, false, false]);
    bench.double.clear_faults();
    assert!(bench.contents("a").is_ok());
}

#[test]
fn a_reset_is_no_answer() {
    let bench = bench_with(Effect::Reset);
    let error = bench.wait(bench.get("a").send()).unwrap_err();
    assert!(error.raw_response().is_none(), "{error:?}");
    assert_eq!(bench.double.calls_of("GetObject")[0].status, 0);
    let bench = Bench::new();
    bench.double.fault(Fault::on("PutObject", Effect::ResetAfterwards).times(1));
    let put = bench.s3.put_object().bucket("outputs").key("a").body(b"x".to_vec().into());
    assert!(bench.wait(put.send()).is_err());
    assert_eq!(bench.double.keys("outputs"), ["a"]);
}

#[test]
fn a_body_ends_too_early() {
    let bench = bench_with(Effect::Truncate(4));
    let answer = bench.wait(bench.get("a").send()).unwrap();
    assert_eq!(answer.content_length(), Some(10));
    assert!(bench.wait(answer.body.collect()).is_err());
    assert_eq!(bench.contents("a").unwrap(), b"0123456789");
}

#[test]
fn wrong_bytes_and_wrong_checksums_are_noticed_by_the_sdk() {
    for effect in [Effect::WrongByte, Effect::WrongChecksum] {
        let bench = bench_with(effect);
        let error = bench.contents("a").unwrap_err();
        assert!(error.to_lowercase().contains("checksum"), "{error}");
        assert!(bench.contents("a").is_ok());
    }
}

#[test]
fn a_replaced_object_has_another_etag() {
    let bench = bench_with(Effect::Replaced);
    let etag = bench.wait(bench.s3.head_object().bucket("inputs").key("a").send()).unwrap().e_tag.unwrap();
    assert_eq!(refusal!(bench, bench.get("a").if_match(&etag)).0, 412);
    assert_ne!(bench.wait(bench.get("a").send()).unwrap().e_tag, Some(etag));
}

#[test]
fn the_world_changes_at_the_call_that_was_chosen() {
    let bench = bench_with(Effect::change(|world| world.key(INPUT_KEY).state = KeyState::Disabled));
    assert!(bench.contents("b").is_ok());
    assert_eq!(refusal!(bench, bench.get("a")).1, "KMS.DisabledException");
    assert_eq!(refusal!(bench, bench.get("b")).1, "KMS.DisabledException");
}

#[test]
fn slow_answers_and_slow_bodies_arrive_in_full() {
    let bench = bench_with(Effect::Delay(Duration::from_millis(50)));
    let start = std::time::Instant::now();
    assert!(bench.contents("a").is_ok());
    assert!(start.elapsed() >= Duration::from_millis(50));
    bench.double.fault(Fault::on("GetObject", Effect::Trickle { piece: 3, pause: Duration::from_millis(10) }));
    let start = std::time::Instant::now();
    assert_eq!(bench.contents("a").unwrap(), b"0123456789");
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[test]
fn kms_and_sts_have_faults_too() {
    let bench = Bench::new();
    bench.double.fault(Fault::on("DescribeKey", Effect::error(400, "ThrottlingException", "Rate exceeded")).times(1));
    assert_eq!(refusal!(bench, bench.kms.describe_key().key_id(INPUT_KEY)).1, "ThrottlingException");
    bench.wait(bench.kms.describe_key().key_id(INPUT_KEY).send()).unwrap();
    bench.double.fault(Fault::on("GetCallerIdentity", Effect::Reset));
    assert!(bench.wait(bench.sts.get_caller_identity().send()).unwrap_err().raw_response().is_none());
}

#[test]
fn faults_can_be_ordered_in_json() {
    let fault: Fault =
        serde_json::from_str(r#"{"operation": "Get*", "target": "inputs/*", "effect": {"Truncate": 4}}"#).unwrap();
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"0123456789");
    bench.double.fault(fault);
    assert!(bench.contents("a").is_err());
}
