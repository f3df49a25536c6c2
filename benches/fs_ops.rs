//! Operations of [`runseal::fs::Scratch`] without a kernel: what is left of a FUSE request when the kernel's part is taken away.
//!
//! `cargo bench --bench fs_ops`

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, Kind, ROOT, RenameFlags, Scratch, ScratchOptions, WriteMode};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::Store;

const CALLER: Creator = Creator { uid: 0, gid: 0, umask: 0 };
/// Entries of the directory that the operations find themselves in.
const ENTRIES: u64 = 100_000;

fn scratch() -> Scratch {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keys can be made");
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 30);
    Scratch::new(store, ScratchOptions { memory: 8 << 30, uid: 0, gid: 0, mode: 0o755 })
}

fn name(i: u64) -> [u8; 16] {
    let mut name = *b"file-00000000000";
    let mut rest = i;
    for digit in name[5..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

fn create(fs: &Scratch, name: &[u8]) -> u64 {
    fs.mknod(ROOT, name, Kind::File, 0o644, 0, &CALLER).expect("the name is new").ino
}

fn namespace(c: &mut Criterion) {
    let fs = scratch();
    for i in 0..ENTRIES {
        create(&fs, &name(i));
    }
    let mut group = c.benchmark_group("fs");
    let mut next = ENTRIES;
    group.bench_function("create, unlink, forget", |b| {
        b.iter(|| {
            next += 1;
            let ino = create(&fs, &name(next));
            fs.unlink(ROOT, &name(next)).expect("just made");
            fs.forget(ino, 1);
        });
    });
    let mut at = 0;
    group.bench_function("lookup, forget", |b| {
        b.iter(|| {
            at = (at + 7919) % ENTRIES;
            let attr = fs.lookup(ROOT, &name(at)).expect("it is there");
            fs.forget(attr.ino, 1);
        });
    });
    let mut from = name(0);
    group.bench_function("rename", |b| {
        b.iter(|| {
            next += 1;
            let to = name(next);
            fs.rename(ROOT, &from, ROOT, &to, RenameFlags::default()).expect("it is there");
            from = to;
        });
    });
    group.bench_function("readdir of 100 entries", |b| {
        b.iter(|| {
            let mut left = 100;
            let take = &mut |entry: runseal::fs::DirEntry<'_>| {
                black_box(entry.ino);
                left -= 1;
                left > 0
            };
            fs.readdir(ROOT, 2, take).expect("a directory");
        });
    });
    group.finish();
}

fn contents(c: &mut Criterion) {
    let fs = scratch();
    let ino = create(&fs, b"f");
    let data = [1; 4096];
    let mut buf = [0; 4096];
    let mut group = c.benchmark_group("fs");
    group.bench_function("write 4 KiB", |b| {
        b.iter(|| fs.write(ino, 0, black_box(&data), WriteMode::default()).expect("there is space"));
    });
    group.bench_function("read 4 KiB", |b| {
        b.iter(|| fs.read(ino, 0, black_box(&mut buf)).expect("it was written"));
    });
    let mut next = 0;
    group.bench_function("create, write 4 KiB, unlink, forget", |b| {
        b.iter(|| {
            next += 1;
            let ino = create(&fs, &name(next));
            fs.write(ino, 0, &data, WriteMode::default()).expect("there is space");
            fs.unlink(ROOT, &name(next)).expect("just made");
            fs.forget(ino, 1);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = namespace, contents
}
criterion_main!(benches);
