//! The store against a plain byte vector, its accounting, its failures.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::backing::{Fault, FaultyBacking, MemoryBacking};
use crate::spec::{EngineChoice, MemoryLock};

const S: u64 = SECTOR_U64;

fn store_over(backing: impl Backing + 'static, sectors: u64) -> Arc<Store> {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
    Store::new(Box::new(backing), keyring, sectors * S)
}

fn store() -> Arc<Store> {
    store_over(MemoryBacking::new(2), 1 << 20)
}

fn bytes(content: &Content) -> Vec<u8> {
    let mut buf = vec![0xee; content.size() as usize];
    assert_eq!(content.read_at(0, &mut buf).unwrap(), buf.len());
    buf
}

/// One change of one of two contents.
#[derive(Clone, Debug)]
enum Op {
    Write { file: bool, offset: u64, len: usize, fill: u8 },
    SetSize { file: bool, size: u64 },
    Punch { file: bool, offset: u64, len: u64 },
    Allocate { file: bool, offset: u64, len: u64, keep_size: bool },
    Copy { to: bool, offset: u64, from_offset: u64, len: u64 },
    Clear { file: bool },
}

fn position() -> impl Strategy<Value = u64> {
    // Sector boundaries and their neighbours, up to six sectors: where the edges are.
    (0u64..6, prop_oneof![Just(0), Just(1), Just(2047), Just(4095)]).prop_map(|(sector, byte)| sector * S + byte)
}

fn op() -> impl Strategy<Value = Op> {
    let file = any::<bool>;
    prop_oneof![
        4 => (file(), position(), position(), 1u8..255)
            .prop_map(|(file, offset, len, fill)| Op::Write { file, offset, len: len as usize, fill }),
        2 => (file(), position()).prop_map(|(file, size)| Op::SetSize { file, size }),
        2 => (file(), position(), position()).prop_map(|(file, offset, len)| Op::Punch { file, offset, len }),
        2 => (file(), position(), position(), any::<bool>())
            .prop_map(|(file, offset, len, keep_size)| Op::Allocate { file, offset, len, keep_size }),
        3 => (file(), position(), position(), position())
            .prop_map(|(to, offset, from_offset, len)| Op::Copy { to, offset, from_offset, len }),
        1 => file().prop_map(|file| Op::Clear { file }),
    ]
}

fn grow_to(model: &mut Vec<u8>, end: u64) {
    if model.len() < end as usize {
        model.resize(end as usize, 0);
    }
}

fn apply(op: &Op, contents: &mut [Content; 2], models: &mut [Vec<u8>; 2], store: &Arc<Store>) {
    match *op {
        Op::Write { file, offset, len, fill } => {
            let data: Vec<u8> = (0..len).map(|i| fill ^ i as u8).collect();
            contents[file as usize].write_at(offset, &data).unwrap();
            let model = &mut models[file as usize];
            if len > 0 {
                grow_to(model, offset + len as u64);
                model[offset as usize..offset as usize + len].copy_from_slice(&data);
            }
        }
        Op::SetSize { file, size } => {
            contents[file as usize].set_size(size).unwrap();
            models[file as usize].resize(size as usize, 0);
        }
        Op::Punch { file, offset, len } => {
            contents[file as usize].punch(offset, len).unwrap();
            let model = &mut models[file as usize];
            let end = ((offset + len) as usize).min(model.len());
            model[(offset as usize).min(end)..end].fill(0);
        }
        Op::Allocate { file, offset, len, keep_size } => {
            let size = if keep_size { SizePolicy::Keep } else { SizePolicy::Grow };
            contents[file as usize].allocate(offset, len, size).unwrap();
            if !keep_size {
                grow_to(&mut models[file as usize], offset + len);
            }
        }
        Op::Copy { to, offset, from_offset, len } => {
            let copied = contents[to as usize].copy_from(offset, &contents[!to as usize], from_offset, len).unwrap();
            let source = &models[!to as usize];
            let start = (from_offset as usize).min(source.len());
            let part = source[start..(from_offset as usize + len as usize).min(source.len()).max(start)].to_vec();
            assert_eq!(copied, part.len() as u64);
            let model = &mut models[to as usize];
            if !part.is_empty() {
                grow_to(model, offset + copied);
                model[offset as usize..offset as usize + part.len()].copy_from_slice(&part);
            }
        }
        Op::Clear { file } => {
            contents[file as usize] = Content::new(store.clone());
            models[file as usize].clear();
        }
    }
}

proptest! {
    /// Whatever happens, contents read back as byte vectors would, and in the end nothing is left allocated.
    #[test]
    fn contents_behave_as_byte_vectors(ops in prop::collection::vec(op(), 1..40)) {
        let store = store();
        let mut contents = [(); 2].map(|()| Content::new(store.clone()));
        let mut models = [Vec::new(), Vec::new()];
        for op in &ops {
            apply(op, &mut contents, &mut models, &store);
            for (content, model) in contents.iter().zip(&models) {
                prop_assert_eq!(content.size(), model.len() as u64);
                prop_assert!(bytes(content) == *model, "after {:?}", op);
                content.check();
            }
            store.check();
            let mapped: u64 = contents.iter().map(Content::sectors).sum();
            prop_assert!(store.usage().used <= mapped);
        }
        drop(contents);
        prop_assert_eq!(store.usage().used, 0);
        prop_assert_eq!(store.keyring.live_slots(), 0);
    }
}

// promise: T-01, T-04
#[test]
fn the_backing_sees_only_ciphertext_and_every_sector_differs() {
    let memory = Arc::new(MemoryBacking::new(2));
    let store = store_over(Arc::clone(&memory), 1024);
    let content = Content::new(store.clone());
    content.write_at(0, &vec![0x41; 64 * SECTOR]).unwrap();
    content.write_at(64 * S, &[0x41; 100]).unwrap();
    let image = memory.image();
    assert!(!image.windows(16).any(|w| w == [0x41; 16]));
    let sectors: BTreeSet<&[u8]> = image.chunks(SECTOR).filter(|s| s.iter().any(|b| *b != 0)).collect();
    assert_eq!(sectors.len(), 65, "two sectors of equal plaintext have equal ciphertext");
    drop(content);
}

// promise: T-04
#[test]
fn reused_space_is_encrypted_under_new_sequence_numbers() {
    let memory = Arc::new(MemoryBacking::new(1));
    let store = store_over(Arc::clone(&memory), 64);
    let content = Content::new(store.clone());
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        content.write_at(0, &[7; SECTOR]).unwrap();
        assert!(seen.insert(memory.image()), "the same place got the same ciphertext again");
        content.set_size(0).unwrap();
    }
}

// promise: S-30
#[test]
fn the_limit_holds_and_freed_space_counts_again() {
    let store = store_over(MemoryBacking::new(2), 4);
    let (one, two) = (Content::new(store.clone()), Content::new(store.clone()));
    one.write_at(0, &[1; 3 * SECTOR]).unwrap();
    two.write_at(0, &[2; SECTOR]).unwrap();
    assert!(matches!(two.write_at(S, b"x"), Err(StoreError::NoSpace)));
    assert!(matches!(two.allocate(0, 2 * S, SizePolicy::Grow), Err(StoreError::NoSpace)));
    assert_eq!((two.size(), bytes(&two)), (S, vec![2; SECTOR]));
    two.write_at(10, b"in place needs no space").unwrap();
    assert!(!store.latched());
    one.set_size(2 * S).unwrap();
    two.write_at(S, b"x").unwrap();
    assert_eq!(store.usage(), SpaceUsage { limit: 4, used: 4 });
}

// promise: S-12
#[test]
fn reserved_space_is_there_when_it_is_written() {
    let store = store_over(MemoryBacking::new(2), 4);
    let (reserved, other) = (Content::new(store.clone()), Content::new(store.clone()));
    reserved.allocate(0, 4 * S, SizePolicy::Keep).unwrap();
    assert_eq!((reserved.size(), reserved.sectors()), (0, 4));
    assert!(matches!(other.write_at(0, b"x"), Err(StoreError::NoSpace)));
    reserved.write_at(100, &[5; 3 * SECTOR]).unwrap();
    assert_eq!(reserved.sectors(), 4);
    assert_eq!(&bytes(&reserved)[..101], [vec![0; 100], vec![5]].concat());
}

// promise: S-13
#[test]
fn copies_share_space_until_one_side_is_written() {
    let store = store_over(MemoryBacking::new(2), 64);
    let (source, copy) = (Content::new(store.clone()), Content::new(store.clone()));
    source.write_at(0, &[1; 8 * SECTOR]).unwrap();
    assert_eq!(copy.copy_from(0, &source, 0, u64::MAX / 2).unwrap(), 8 * S);
    assert_eq!((store.usage().used, copy.sectors()), (8, 8));
    copy.write_at(S + 5, b"changed").unwrap();
    assert_eq!(store.usage().used, 9);
    assert_eq!(bytes(&source), vec![1; 8 * SECTOR]);
    assert_eq!(&bytes(&copy)[SECTOR + 5..SECTOR + 12], b"changed");
    drop(source);
    assert_eq!(store.usage().used, 8);
    assert_eq!(store.keyring.live_slots(), 2, "the copy still reads under the key of its source");
    drop(copy);
    assert_eq!((store.usage().used, store.keyring.live_slots()), (0, 0));
}

#[test]
fn a_copy_inside_one_content_shares_too() {
    let store = store();
    let content = Content::new(store.clone());
    content.write_at(0, &[3; 2 * SECTOR]).unwrap();
    content.copy_from(4 * S, &content, 0, 2 * S).unwrap();
    assert_eq!((content.size(), store.usage().used), (6 * S, 2));
    assert_eq!(&bytes(&content)[4 * SECTOR..], &[3; 2 * SECTOR]);
    content.set_size(3 * S).unwrap();
    assert_eq!(store.usage().used, 2);
    drop(content);
    assert_eq!(store.usage().used, 0);
}

// promise: T-06
#[test]
fn emptying_a_content_wipes_its_key() {
    let store = store();
    let content = Content::new(store.clone());
    assert_eq!(store.keyring.live_slots(), 0);
    content.write_at(0, b"secret").unwrap();
    assert_eq!(store.keyring.live_slots(), 1);
    content.set_size(0).unwrap();
    assert_eq!(store.keyring.live_slots(), 0);
}

#[test]
fn data_and_holes_are_told_apart() {
    let store = store();
    let content = Content::new(store.clone());
    content.write_at(2 * S + 10, &[1; SECTOR]).unwrap();
    content.set_size(9 * S).unwrap();
    content.allocate(6 * S, S, SizePolicy::Keep).unwrap();
    assert_eq!(content.next_data(0), Some(2 * S..4 * S));
    assert_eq!(content.next_data(3 * S + 1), Some(3 * S + 1..4 * S));
    assert_eq!(content.next_data(4 * S), None);
    content.set_size(3 * S + 7).unwrap();
    assert_eq!(content.next_data(0), Some(2 * S..3 * S + 7));
}

// promise: S-41
#[test]
fn a_failed_write_latches_and_reading_goes_on() {
    let fault = Arc::new(Fault::default());
    let store = store_over(FaultyBacking::new(MemoryBacking::new(2), Arc::clone(&fault)), 64);
    let content = Content::new(store.clone());
    content.write_at(0, &[1; SECTOR]).unwrap();
    fault.arm(0, libc::EIO);
    assert!(matches!(content.write_at(S, &[2; SECTOR]), Err(StoreError::Backing { op: "write", .. })));
    fault.disarm();
    assert!(store.latched());
    assert!(matches!(content.write_at(S, &[2; SECTOR]), Err(StoreError::Latched)));
    assert!(matches!(content.allocate(S, S, SizePolicy::Grow), Err(StoreError::Latched)));
    assert_eq!(bytes(&content), vec![1; SECTOR]);
    assert_eq!(store.usage().used, 1, "the failed write still holds space");
}

#[test]
fn a_full_disk_refuses_without_latching_and_loses_nothing() {
    let fault = Arc::new(Fault::default());
    let store = store_over(FaultyBacking::new(MemoryBacking::new(3), Arc::clone(&fault)), 64);
    let content = Content::new(store.clone());
    content.write_at(0, &[1; SECTOR + 10]).unwrap();
    fault.arm(0, libc::ENOSPC);
    assert!(matches!(content.write_at(2 * S, &[2; SECTOR]), Err(StoreError::NoSpace)));
    fault.disarm();
    assert!(!store.latched());
    assert_eq!((content.size(), store.usage().used), (S + 10, 2));
    content.write_at(2 * S, &[2; SECTOR]).unwrap();
    assert_eq!(bytes(&content)[2 * SECTOR..], [2; SECTOR]);
}

#[test]
fn a_failed_read_is_reported_and_does_not_latch() {
    let fault = Arc::new(Fault::default());
    let store = store_over(FaultyBacking::new(MemoryBacking::new(1), Arc::clone(&fault)), 64);
    let content = Content::new(store.clone());
    content.write_at(0, &[1; SECTOR]).unwrap();
    fault.arm(0, libc::EIO);
    let mut buf = [0; 10];
    assert!(matches!(content.read_at(0, &mut buf), Err(StoreError::Backing { op: "read", .. })));
    fault.disarm();
    assert!(!store.latched());
    assert_eq!(content.read_at(0, &mut buf).unwrap(), 10);
}

#[test]
fn every_fault_position_leaves_the_accounting_right() {
    for errno in [libc::EIO, libc::ENOSPC] {
        for position in 0..12 {
            let fault = Arc::new(Fault::default());
            let store = store_over(FaultyBacking::new(MemoryBacking::new(2), Arc::clone(&fault)), 256);
            let contents = [(); 2].map(|()| Content::new(store.clone()));
            fault.arm(position, errno);
            let _ = contents[0].write_at(100, &[1; 5 * SECTOR]);
            let _ = contents[0].allocate(8 * S, 3 * S, SizePolicy::Grow);
            let _ = contents[0].write_at(9 * S + 7, &[1; SECTOR]);
            let _ = contents[1].copy_from(1, &contents[0], 0, 3 * S);
            let _ = contents[1].copy_from(4 * S, &contents[0], 0, 3 * S);
            let _ = contents[0].punch(10, 3 * S);
            let _ = contents[0].set_size(2 * S + 9);
            fault.disarm();
            drop(contents);
            assert_eq!((store.usage().used, store.keyring.live_slots()), (0, 0), "errno {errno}, fault {position}");
        }
    }
}

#[test]
fn after_wiping_nothing_can_be_read_or_written() {
    let store = store();
    let content = Content::new(store.clone());
    content.write_at(0, b"secret").unwrap();
    store.wipe();
    assert!(matches!(content.read_at(0, &mut [0; 6]), Err(StoreError::Key(_))));
    assert!(matches!(content.write_at(0, b"x"), Err(StoreError::Key(_))));
}

// promise: S-32
#[test]
fn freed_space_goes_back_to_the_disk() {
    let memory = Arc::new(MemoryBacking::new(2));
    let store = store_over(Arc::clone(&memory), 1024);
    let content = Content::new(store.clone());
    content.write_at(0, &vec![1; 100 * SECTOR]).unwrap();
    drop(content);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let given_back = || memory.image().iter().all(|b| *b == 0);
    while !given_back() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(given_back());
}

#[test]
fn writers_of_one_content_lose_nothing() {
    let store = store();
    let content = Content::new(store.clone());
    // Pieces of 1000 bytes make neighbours share sectors; each thread writes every eighth piece.
    const PIECES: u64 = 800;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let content = &content;
            scope.spawn(move || {
                for piece in (thread..PIECES).step_by(8) {
                    content.write_at(piece * 1000, &[piece as u8; 1000]).unwrap();
                }
            });
        }
    });
    let all = bytes(&content);
    for piece in 0..PIECES {
        let start = piece as usize * 1000;
        assert!(all[start..start + 1000].iter().all(|b| *b == piece as u8), "piece {piece}");
    }
}

#[test]
fn contents_may_be_cut_copied_and_written_at_once() {
    let store = store_over(MemoryBacking::new(4), 4096);
    let contents = [(); 2].map(|()| Content::new(store.clone()));
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let contents = &contents;
            scope.spawn(move || {
                for round in 0..300u64 {
                    let (one, two) = (&contents[(thread % 2) as usize], &contents[((thread + 1) % 2) as usize]);
                    let offset = (round * 7919 + thread * 104_729) % (20 * S);
                    match round % 6 {
                        0..=2 => one.write_at(offset, &[thread as u8; 6000]).unwrap(),
                        3 => one.set_size(offset).unwrap(),
                        4 => drop(one.copy_from(offset, two, offset, 5 * S).unwrap()),
                        _ => one.punch(offset, 3 * S).unwrap(),
                    }
                    let mut buf = [0; 9000];
                    let n = one.read_at(offset, &mut buf).unwrap();
                    assert!(buf[..n].iter().all(|b| *b < 6), "a byte nobody wrote");
                }
            });
        }
    });
    drop(contents);
    assert_eq!((store.usage().used, store.keyring.live_slots()), (0, 0));
}

#[test]
fn overwriting_a_partial_last_sector_as_a_whole_grows_the_size() {
    let store = store();
    let content = Content::new(store.clone());
    content.write_at(0, &[1; SECTOR + 10]).unwrap();
    content.write_at(0, &[2; 2 * SECTOR]).unwrap();
    assert_eq!(bytes(&content), [2; 2 * SECTOR]);
}
