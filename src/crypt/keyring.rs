//! The keys of a run: the run key, one slot for each file, and the content keys made from both.

use std::io;
use std::sync::atomic::Ordering;

use hkdf::Hkdf;
use sha2::Sha512;
use zeroize::{Zeroize, Zeroizing};

use super::cache::CipherCache;
use super::slots::{SLOT_BYTES, SlotArena, SlotId, secret_pages};
use super::{CryptError, Engine, SectorCipher, XtsKey, self_test};
use crate::spec::{EngineChoice, MemoryLock};
use crate::sync::{RwLock, rank};
use crate::sys::memory::{Protection, SecretPages};

/// Bytes of the run key: one SHA-512 output, which makes it an HKDF pseudorandom key as it is.
const RUN_KEY_BYTES: usize = 64;
/// Starts the `info` of HKDF-Expand; the slot's bytes follow.
const CONTENT_KEY_LABEL: &[u8] = b"runseal content key v1 ";

/// A secret from elsewhere that takes part in the run key, such as a data key of KMS. Wiped on drop.
pub struct KeyShare(Zeroizing<Vec<u8>>);

impl KeyShare {
    /// Takes the secret.
    pub fn new(secret: Zeroizing<Vec<u8>>) -> Self {
        Self(secret)
    }
}

/// The run key and every key slot of a run, with the engine that uses them.
///
/// The run key is 64 bytes from the kernel, or, with a [`KeyShare`], `HKDF-Extract(salt: 64 bytes from the kernel, input:
/// the share)` (RFC 5869, SHA-512): who knows only one of the two knows nothing of the run key.
///
/// The content key of a slot is `HKDF-Expand(run key, label || slot bytes, 64)` (RFC 5869, SHA-512): without the run
/// key no slot is worth anything, and without its slot no content key can be made again.
///
/// Invariant: after [`Keyring::wipe`], and after the last [`Keyring::release`] of a slot, no copy of the key
/// material concerned remains in this process.
///
/// Order of locks: a way of the cache, then the run key, then the list of free slots ([`crate::sync::rank`]).
pub struct Keyring {
    engine: Engine,
    protection: Protection,
    run_key: RwLock<{ rank::RUN_KEY }, Option<RunKey>>,
    slots: SlotArena,
    ciphers: CipherCache,
}

impl Keyring {
    /// Draws a run key, chooses the engine, runs its self-test.
    pub fn new(engine: EngineChoice, lock: MemoryLock) -> Result<Self, CryptError> {
        Self::with_share(engine, lock, None)
    }

    /// The same, with a secret from elsewhere mixed into the run key.
    pub fn with_share(engine: EngineChoice, lock: MemoryLock, share: Option<KeyShare>) -> Result<Self, CryptError> {
        let engine = Engine::choose(engine)?;
        self_test::run(engine)?;
        let run_key = RunKey::draw(lock, share)?;
        Ok(Self {
            engine,
            protection: run_key.0.protection(),
            run_key: RwLock::new(Some(run_key)),
            slots: SlotArena::new(lock),
            ciphers: CipherCache::new(),
        })
    }

    /// Name and version of the engine, as reports show it.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// What protects the run key in memory: `memfd_secret`, `mlock` or `unlocked`.
    pub fn key_memory(&self) -> &'static str {
        self.protection.name()
    }

    /// Bytes of key memory that the kernel would not lock: run key and slots. 0 under [`MemoryLock::Require`].
    pub fn unlocked_bytes(&self) -> u64 {
        let run_key = self.run_key.read();
        let pages = run_key.iter().map(|key| &key.0).filter(|pages| pages.protection() == Protection::Unlocked);
        pages.map(|pages| pages.bytes() as u64).sum::<u64>() + self.slots.unlocked_bytes()
    }

    /// A fresh slot with one reference.
    pub fn acquire(&self) -> Result<SlotId, CryptError> {
        let mut secret = Zeroizing::new([0; SLOT_BYTES]);
        draw_random(&mut *secret)?;
        // Held until the secret is in place: a wipe comes either before, and is seen, or after, and finds it.
        let run_key = self.run_key.read();
        run_key.as_ref().ok_or(CryptError::Wiped)?;
        self.slots.insert(&secret)
    }

    /// Adds `n` references to a live slot.
    pub fn retain(&self, slot: SlotId, n: u32) {
        self.slots.retain(slot, n);
    }

    /// Gives `n` references back; wipes the slot, and every cached key made from it, with the last.
    pub fn release(&self, slot: SlotId, n: u32) {
        if self.slots.release(slot, n) {
            self.ciphers.forget(slot);
            self.slots.reuse(slot);
        }
    }

    /// Encrypts whole sectors from `src` into `dst` (same length, a multiple of 4096). The first has data-unit
    /// sequence number `unit`, the following ones count up. After [`Keyring::wipe`]: [`CryptError::Wiped`], and
    /// `dst` is untouched.
    pub fn encrypt(&self, slot: SlotId, unit: u64, src: &[u8], dst: &mut [u8]) -> Result<(), CryptError> {
        self.ciphers.with(slot, || self.cipher(slot), |cipher| cipher.encrypt(unit, src, dst))
    }

    /// Decrypts whole sectors in place; the inverse of [`Keyring::encrypt`].
    pub fn decrypt(&self, slot: SlotId, unit: u64, buf: &mut [u8]) -> Result<(), CryptError> {
        self.ciphers.with(slot, || self.cipher(slot), |cipher| cipher.decrypt(unit, buf))
    }

    /// Slots alive now.
    pub fn live_slots(&self) -> u64 {
        self.slots.live()
    }

    /// Destroys the run key and all slots, after the encryptions under way. Encrypting, decrypting and acquiring
    /// afterwards fail with [`CryptError::Wiped`]; releasing still works.
    pub fn wipe(&self) {
        {
            let mut run_key = self.run_key.write();
            *run_key = None;
            self.slots.wipe();
        }
        // No cipher can be made any more; those made before are in the cache, or on their way in under its locks.
        self.ciphers.wipe();
    }

    /// The expanded content key of a slot.
    fn cipher(&self, slot: SlotId) -> Result<SectorCipher, CryptError> {
        let cipher = self.expand(slot);
        scrub_stack();
        cipher
    }

    /// Not inlined: its frame must lie where [`scrub_stack`] wipes.
    #[inline(never)]
    fn expand(&self, slot: SlotId) -> Result<SectorCipher, CryptError> {
        let run_key = self.run_key.read();
        let run_key = run_key.as_ref().ok_or(CryptError::Wiped)?;
        let secret = self.slots.secret(slot).ok_or(CryptError::Wiped)?;
        SectorCipher::new(self.engine, &run_key.content_key(&secret)?)
    }
}

#[cfg(debug_assertions)]
impl Keyring {
    /// Asserts the invariants of the key slots; nothing may be given back meanwhile.
    pub fn check(&self) {
        self.slots.check();
    }
}

/// The root of all keys of a run, in secret pages; wiped on drop.
struct RunKey(SecretPages);

impl RunKey {
    fn draw(lock: MemoryLock, share: Option<KeyShare>) -> Result<Self, CryptError> {
        let pages = secret_pages(RUN_KEY_BYTES, lock)?;
        let mut bytes = Zeroizing::new([0; RUN_KEY_BYTES]);
        draw_random(&mut *bytes)?;
        if let Some(share) = share {
            bytes = mix(&bytes, &share);
            scrub_stack();
        }
        for (word, bytes) in pages.words().iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(bytes.try_into().expect("chunks of 8")), Ordering::Relaxed);
        }
        Ok(Self(pages))
    }

    fn bytes(&self) -> Zeroizing<[u8; RUN_KEY_BYTES]> {
        let mut bytes = Zeroizing::new([0; RUN_KEY_BYTES]);
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0.words()) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        bytes
    }

    fn content_key(&self, slot: &[u8; SLOT_BYTES]) -> Result<XtsKey, CryptError> {
        let mut key = Zeroizing::new([0; 64]);
        let expand = Hkdf::<Sha512>::from_prk(&*self.bytes()).expect("the run key is as long as a SHA-512 output");
        expand.expand_multi_info(&[CONTENT_KEY_LABEL, slot], &mut *key).expect("64 bytes are one SHA-512 output");
        XtsKey::new(key)
    }
}

/// `HKDF-Extract` with `local` as salt. Not inlined: its frame must lie where [`scrub_stack`] wipes.
#[inline(never)]
fn mix(local: &[u8; RUN_KEY_BYTES], share: &KeyShare) -> Zeroizing<[u8; RUN_KEY_BYTES]> {
    let (mut extracted, _) = Hkdf::<Sha512>::extract(Some(local), &share.0);
    let mut key = Zeroizing::new([0; RUN_KEY_BYTES]);
    key.copy_from_slice(&extracted);
    extracted.as_mut_slice().zeroize();
    key
}

fn draw_random(bytes: &mut [u8]) -> Result<(), CryptError> {
    getrandom::fill(bytes)
        .map_err(|error| CryptError::System { what: "no random bytes from the kernel", source: io::Error::from(error) })
}

/// Overwrites the stack below the caller, where key derivation has left intermediate values that its libraries do
/// not wipe.
#[inline(never)]
fn scrub_stack() {
    // Words, because zeroizing is one volatile store for each element.
    let mut stack = [0_u64; 1024];
    stack.zeroize();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use hkdf::hmac::{Hmac, KeyInit, Mac};
    use nix::sys::resource::{Resource, setrlimit};
    use nix::unistd::{Uid, setresuid};

    use super::*;
    use crate::sys::memory::tests::{CHILD, rerun_in_child};
    use crate::units::SECTOR;

    fn keyrings() -> impl Iterator<Item = Keyring> {
        let choices = [EngineChoice::Auto, EngineChoice::Portable];
        choices.into_iter().map(|choice| Keyring::new(choice, MemoryLock::Try).expect("keyring"))
    }

    fn sealed(keys: &Keyring, slot: SlotId) -> Vec<u8> {
        let mut out = vec![0; 2 * SECTOR];
        keys.encrypt(slot, 5, &[7; 2 * SECTOR], &mut out).expect("encrypts");
        out
    }

    #[test]
    fn what_is_encrypted_can_be_decrypted_with_its_slot_and_unit_only() {
        for keys in keyrings() {
            let (slot, other) = (keys.acquire().expect("slot"), keys.acquire().expect("slot"));
            let cipher = sealed(&keys, slot);
            assert_ne!(cipher, sealed(&keys, other));
            assert_ne!(cipher[..SECTOR], cipher[SECTOR..], "sectors of equal plaintext differ");
            let open = |slot, unit| {
                let mut buffer = cipher.clone();
                keys.decrypt(slot, unit, &mut buffer).expect("decrypts");
                buffer == [7; 2 * SECTOR]
            };
            assert_eq!((open(slot, 5), open(slot, 6), open(other, 5)), (true, false, false));
            assert_eq!(keys.live_slots(), 2);
        }
    }

    #[test]
    fn content_keys_are_hkdf_expand_of_run_key_and_slot() {
        for keys in keyrings() {
            let slot = keys.acquire().expect("slot");
            let run_key = keys.run_key.read().as_ref().expect("not wiped").bytes();
            // RFC 5869 2.3: T(1) = HMAC(PRK, info | 0x01).
            let mut mac = Hmac::<Sha512>::new_from_slice(&*run_key).expect("any length");
            mac.update(b"runseal content key v1 ");
            mac.update(&*keys.slots.secret(slot).expect("live"));
            mac.update(&[1]);
            let key = XtsKey::new(Zeroizing::new(mac.finalize().into_bytes().into())).expect("halves differ");
            let mut expected = vec![0; 2 * SECTOR];
            let mut cipher = SectorCipher::new(Engine::Portable, &key).expect("cipher");
            cipher.encrypt(5, &[7; 2 * SECTOR], &mut expected).expect("encrypts");
            assert_eq!(sealed(&keys, slot), expected);
        }
    }

    // promise: T-33
    #[test]
    fn both_halves_make_the_run_key() {
        let share = |byte| KeyShare::new(Zeroizing::new(vec![byte; 32]));
        let (local, other) = ([3; RUN_KEY_BYTES], [4; RUN_KEY_BYTES]);
        let key = mix(&local, &share(1));
        assert_ne!(*key, *mix(&local, &share(2)), "the data key matters");
        assert_ne!(*key, *mix(&other, &share(1)), "the randomness of this machine matters");
        assert_ne!(*key, local);
        // RFC 5869 2.2: PRK = HMAC(salt, IKM).
        let mut mac = Hmac::<Sha512>::new_from_slice(&local).expect("any length");
        mac.update(&[1; 32]);
        assert_eq!(key.as_slice(), mac.finalize().into_bytes().as_slice());
    }

    #[test]
    fn the_same_share_never_makes_the_same_run_key() {
        let keyring = || {
            let share = Some(KeyShare::new(Zeroizing::new(vec![1; 32])));
            Keyring::with_share(EngineChoice::Auto, MemoryLock::Try, share).expect("keyring")
        };
        let bytes = |keys: &Keyring| keys.run_key.read().as_ref().expect("not wiped").bytes();
        assert_ne!(*bytes(&keyring()), *bytes(&keyring()));
    }

    #[test]
    fn run_keys_and_slots_are_random() {
        let [a, b] = [EngineChoice::Auto; 2].map(|choice| Keyring::new(choice, MemoryLock::Try).expect("keyring"));
        let bytes = |keys: &Keyring| keys.run_key.read().as_ref().expect("not wiped").bytes();
        assert_ne!(bytes(&a), bytes(&b));
        assert_ne!(*bytes(&a), [0; RUN_KEY_BYTES]);
        let (s, t) = (a.acquire().expect("slot"), a.acquire().expect("slot"));
        assert_ne!(a.slots.secret(s), a.slots.secret(t));
    }

    // promise: T-06
    #[test]
    fn the_last_release_wipes_slot_and_cached_keys() {
        for keys in keyrings() {
            let slot = keys.acquire().expect("slot");
            keys.retain(slot, 1);
            let before = sealed(&keys, slot);
            assert_eq!((keys.slots.is_wiped(slot), keys.ciphers.copies(slot)), (false, 1));
            keys.release(slot, 1);
            assert_eq!((keys.slots.is_wiped(slot), keys.ciphers.copies(slot)), (false, 1));
            keys.release(slot, 1);
            assert_eq!((keys.slots.is_wiped(slot), keys.ciphers.copies(slot)), (true, 0));
            assert_eq!(keys.live_slots(), 0);
            let mut buffer = before.clone();
            assert!(matches!(keys.decrypt(slot, 5, &mut buffer), Err(CryptError::Wiped)), "a dead slot has no key");
            assert_eq!(buffer, before);

            let again = keys.acquire().expect("slot");
            assert_eq!(again, slot, "the index is used again");
            assert_ne!(sealed(&keys, again), before, "with another key");
        }
    }

    // promise: T-13
    #[test]
    fn a_wipe_leaves_nothing_and_every_later_use_fails() {
        for keys in keyrings() {
            let slots: Vec<_> = (0..100).map(|_| keys.acquire().expect("slot")).collect();
            let before = sealed(&keys, slots[0]);
            slots.iter().for_each(|&slot| drop(sealed(&keys, slot)));
            keys.wipe();
            assert!(keys.run_key.read().is_none());
            assert!(slots.iter().all(|&slot| keys.slots.is_wiped(slot)));
            assert_eq!(keys.ciphers.filled(), 0);

            let (mut out, mut buffer) = (vec![9; SECTOR], before.clone());
            assert!(matches!(keys.encrypt(slots[0], 5, &[7; SECTOR], &mut out), Err(CryptError::Wiped)));
            assert_eq!(out, [9; SECTOR]);
            assert!(matches!(keys.decrypt(slots[0], 5, &mut buffer), Err(CryptError::Wiped)));
            assert_eq!(buffer, before);
            assert!(matches!(keys.acquire(), Err(CryptError::Wiped)));
            slots.iter().for_each(|&slot| keys.release(slot, 1));
            assert_eq!(keys.live_slots(), 0);
            keys.wipe();
        }
    }

    #[test]
    fn more_slots_than_the_cache_holds_keep_their_keys() {
        for keys in keyrings() {
            let slots: Vec<_> = (0..600).map(|_| keys.acquire().expect("slot")).collect();
            let first: Vec<_> = slots.iter().map(|&slot| sealed(&keys, slot)).collect();
            assert!(keys.ciphers.filled() <= 512);
            assert!(slots.iter().zip(&first).all(|(&slot, before)| sealed(&keys, slot) == *before));
        }
    }

    #[test]
    fn threads_share_slots_and_draw_their_own() {
        for keys in keyrings() {
            let shared = keys.acquire().expect("slot");
            let expected = sealed(&keys, shared);
            thread::scope(|scope| {
                for _ in 0..12 {
                    scope.spawn(|| {
                        for _ in 0..40 {
                            keys.retain(shared, 1);
                            assert_eq!(sealed(&keys, shared), expected);
                            let own = keys.acquire().expect("slot");
                            let mut buffer = sealed(&keys, own);
                            assert_ne!(buffer, expected);
                            keys.decrypt(own, 5, &mut buffer).expect("decrypts");
                            assert_eq!(buffer, [7; 2 * SECTOR]);
                            keys.release(own, 1);
                            keys.release(shared, 1);
                        }
                    });
                }
            });
            assert_eq!(keys.live_slots(), 1);
            keys.release(shared, 1);
            assert_eq!(keys.ciphers.filled(), 0);
        }
    }

    #[test]
    fn a_wipe_during_encryption_lets_through_true_ciphertext_or_nothing() {
        for keys in keyrings() {
            let slots: Vec<_> = (0..600).map(|_| keys.acquire().expect("slot")).collect();
            let expected: Vec<_> = slots.iter().map(|&slot| sealed(&keys, slot)).collect();
            let wiped = AtomicBool::new(false);
            thread::scope(|scope| {
                for start in 0..6 {
                    let (keys, slots, expected, wiped) = (&keys, &slots, &expected, &wiped);
                    scope.spawn(move || {
                        for i in (start * 100..).map(|i| i % slots.len()) {
                            let after_wipe = wiped.load(Ordering::SeqCst);
                            let mut out = vec![0; 2 * SECTOR];
                            match keys.encrypt(slots[i], 5, &[7; 2 * SECTOR], &mut out) {
                                Ok(()) => assert!(!after_wipe && out == expected[i]),
                                Err(error) => return assert!(matches!(error, CryptError::Wiped)),
                            }
                        }
                    });
                }
                thread::sleep(std::time::Duration::from_millis(20));
                keys.wipe();
                wiped.store(true, Ordering::SeqCst);
            });
            assert_eq!(keys.ciphers.filled(), 0);
        }
    }

    #[test]
    fn memory_protection_is_reported() {
        let keys = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keyring");
        keys.acquire().expect("slot");
        assert_eq!(keys.unlocked_bytes() == 0, keys.key_memory() != "unlocked");
        assert!(!keys.engine().is_empty());
    }

    // promise: T-12
    #[test]
    fn a_small_memory_limit_is_refused_or_recorded() {
        if std::env::var_os(CHILD).is_none() {
            return rerun_in_child("crypt::keyring::tests::a_small_memory_limit_is_refused_or_recorded");
        }
        // Room for the run key, none for slots.
        setrlimit(Resource::RLIMIT_MEMLOCK, 16 << 10, 16 << 10).expect("lowering a limit");
        let nobody = Uid::from_raw(65534);
        if Uid::current().is_root() {
            setresuid(nobody, nobody, nobody).expect("dropping root, which no limit binds");
        }
        let strict = Keyring::new(EngineChoice::Auto, MemoryLock::Require).expect("the run key fits");
        assert!(matches!(strict.acquire(), Err(CryptError::NotLocked(_))));
        assert_eq!((strict.live_slots(), strict.unlocked_bytes()), (0, 0));
        let lax = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keyring");
        let slot = lax.acquire().expect("unlocked slot");
        sealed(&lax, slot);
        assert_eq!(lax.unlocked_bytes(), 512 << 10);

        setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).expect("lowering a limit");
        let refused = Keyring::new(EngineChoice::Auto, MemoryLock::Require).err().expect("refused");
        assert!(refused.to_string().contains("ulimit -l"), "{refused}");
        let lax = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keyring");
        assert_eq!((lax.key_memory(), lax.unlocked_bytes() > 0), ("unlocked", true));
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::sync::explore;

    fn keyring() -> Arc<Keyring> {
        Arc::new(Keyring::new(EngineChoice::Portable, MemoryLock::Try).expect("keyring"))
    }

    #[test]
    fn no_cipher_outlives_the_last_reference() {
        explore(|| {
            let keys = keyring();
            let slot = keys.acquire().expect("slot");
            keys.retain(slot, 1);
            let user = move |keys: &Keyring| {
                keys.encrypt(slot, 0, &[], &mut []).expect("a holder can encrypt");
                keys.release(slot, 1);
            };
            let other = keys.clone();
            let other = thread::spawn(move || user(&other));
            user(&keys);
            other.join().expect("no panic");
            assert_eq!((keys.ciphers.copies(slot), keys.live_slots()), (0, 0));
            keys.check();
        });
    }

    #[test]
    fn no_cipher_outlives_the_wipe() {
        explore(|| {
            let keys = keyring();
            let slot = keys.acquire().expect("slot");
            let user = keys.clone();
            let user = thread::spawn(move || user.encrypt(slot, 0, &[], &mut []));
            keys.wipe();
            let used = user.join().expect("no panic");
            assert!(matches!(used, Ok(()) | Err(CryptError::Wiped)));
            assert_eq!(keys.ciphers.filled(), 0);
            assert!(matches!(keys.encrypt(slot, 0, &[], &mut []), Err(CryptError::Wiped)));
        });
    }
}
