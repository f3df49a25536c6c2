//! The store without a kernel: one content written and read, over memory and over nameless files.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use runseal::backing::{AnonBacking, Backing, MemoryBacking};
use runseal::crypt::Keyring;
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::{Content, Store};

const FILE: usize = 64 << 20;

fn store(backing: Box<dyn Backing>) -> Arc<Store> {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("a keyring");
    Store::new(backing, keyring, 1 << 40)
}

fn backings() -> [(&'static str, Box<dyn Backing>); 2] {
    let anon = AnonBacking::open(&["/var/tmp".into()]).expect("arena files in /var/tmp");
    [("memory", Box::new(MemoryBacking::new(4))), ("anon", Box::new(anon))]
}

fn content(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    group.sample_size(10);
    let data = vec![0x5a; 1 << 20];
    for (name, backing) in backings() {
        let store = store(backing);
        let content = Content::new(store.clone());
        for offset in (0..FILE).step_by(data.len()) {
            content.write_at(offset as u64, &data).expect("room");
        }
        for size in [4096, 128 << 10, 1 << 20] {
            group.throughput(Throughput::Bytes(size as u64));
            let mut position = 0;
            let mut next = move || {
                // A stride that visits sectors in no useful order for a disk.
                position = (position + 37 * size) % (FILE - size);
                (position - position % 4096) as u64
            };
            group.bench_function(BenchmarkId::new(format!("{name}/overwrite"), size), |bench| {
                bench.iter(|| content.write_at(next(), &data[..size]).expect("room"));
            });
            let mut buf = vec![0; size];
            group.bench_function(BenchmarkId::new(format!("{name}/read"), size), |bench| {
                bench.iter(|| content.read_at(next(), black_box(&mut buf)).expect("readable"));
            });
            let fresh = Content::new(store.clone());
            let mut end = 0;
            group.bench_function(BenchmarkId::new(format!("{name}/append"), size), |bench| {
                bench.iter(|| {
                    if end > FILE as u64 {
                        fresh.set_size(0).expect("truncating needs no space");
                        end = 0;
                    }
                    fresh.write_at(end, &data[..size]).expect("room");
                    end += size as u64;
                });
            });
        }
    }
    let mut baseline = vec![0; 1 << 20];
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function(BenchmarkId::new("memcpy", 1 << 20), |bench| {
        bench.iter(|| black_box(&mut baseline).copy_from_slice(black_box(&data)));
    });
    group.finish();
}

criterion_group!(benches, content);
criterion_main!(benches);
