//! Speed of the cipher engines beside a plain copy, and what the keyring adds to them.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use runseal::crypt::{Engine, Keyring, SectorCipher, XtsKey};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::units::SECTOR;
use zeroize::Zeroizing;

const SIZES: [usize; 3] = [SECTOR, 64 << 10, 1 << 20];

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = engines, keyring
}
criterion_main!(benches);

/// Bytes a second of each engine, one thread, data in cache.
fn engines(criterion: &mut Criterion) {
    let key = XtsKey::new(Zeroizing::new(std::array::from_fn(|i| i as u8))).expect("halves differ");
    let mut group = criterion.benchmark_group("xts");
    for size in SIZES {
        let (source, mut target) = (vec![0x5a; size], vec![0; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("memcpy", size), |bencher| {
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)));
        });
        for &engine in Engine::ALL {
            let mut cipher = SectorCipher::new(engine, &key).expect("cipher");
            group.bench_function(BenchmarkId::new(format!("{} encrypt", engine.name()), size), |bencher| {
                bencher.iter(|| cipher.encrypt(1, black_box(&source), black_box(&mut target)));
            });
            group.bench_function(BenchmarkId::new(format!("{} decrypt", engine.name()), size), |bencher| {
                bencher.iter(|| cipher.decrypt(1, black_box(&mut target)));
            });
        }
    }
    group.finish();
}

/// One sector through the keyring: key in the cache, key made anew each time, and the life of a slot.
fn keyring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keyring");
    let (source, mut target) = (vec![0x5a; SECTOR], vec![0; SECTOR]);
    for choice in [EngineChoice::Auto, EngineChoice::Portable] {
        let keys = Keyring::new(choice, MemoryLock::Try).expect("keyring");
        let slots: Vec<_> = (0..4096).map(|_| keys.acquire().expect("slot")).collect();
        group.bench_function(format!("{} hit", keys.engine()), |bencher| {
            bencher.iter(|| keys.encrypt(slots[0], 1, black_box(&source), black_box(&mut target)));
        });
        let mut next = slots.iter().cycle();
        group.bench_function(format!("{} miss", keys.engine()), |bencher| {
            bencher
                .iter(|| keys.encrypt(*next.next().expect("endless"), 1, black_box(&source), black_box(&mut target)));
        });
        group.bench_function(format!("{} acquire and release", keys.engine()), |bencher| {
            bencher.iter(|| keys.release(keys.acquire().expect("slot"), 1));
        });
    }
    group.finish();
}
