//! A keyring that has the key of a slot at hand encrypts and decrypts without allocating.

mod allocations;

use runseal::crypt::Keyring;
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::units::SECTOR;

use crate::allocations::allocations;

#[test]
fn a_hit_allocates_nothing() {
    for choice in [EngineChoice::Auto, EngineChoice::Portable] {
        let keys = Keyring::new(choice, MemoryLock::Try).expect("keyring");
        let slot = keys.acquire().expect("slot");
        let (source, mut target) = (vec![1; 4 * SECTOR], vec![0; 4 * SECTOR]);
        let mut round = || {
            allocations(|| {
                keys.encrypt(slot, 9, &source, &mut target).expect("encrypts");
                keys.decrypt(slot, 9, &mut target).expect("decrypts");
            })
        };
        let miss = round();
        assert_eq!((miss > 0 || choice == EngineChoice::Auto, round()), (true, 0), "{}", keys.engine());
    }
}
