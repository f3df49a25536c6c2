//! Both cipher engines against published XTS-AES-256 vectors, against each other, and against what XTS promises.
//!
//! Vectors go through the sector call as well as through the data-unit call: what XTS makes of a block depends on its
//! place, not on the length of the data unit, so a sector that begins with a vector's plaintext begins with its
//! ciphertext.

use std::collections::HashSet;

use proptest::prelude::*;
use runseal::crypt::{CryptError, Engine, SectorCipher, XtsKey};
use runseal::units::SECTOR;
use zeroize::Zeroizing;

const IEEE_1619: &str = include_str!("vectors/ieee1619_xts_aes_256.txt");
const CAVP: &str = include_str!("vectors/cavp_xts_gen_aes_256_seq_no.rsp");
const WYCHEPROOF: &str = include_str!("vectors/wycheproof_aes_xts.json");

// promise: T-20
#[test]
fn ieee_1619_annex_b_vectors_10_to_14() {
    let vectors: Vec<_> = records(IEEE_1619)
        .iter()
        .map(|record| {
            let tweak: [u8; 16] = hex(field(record, "Tweak")).try_into().expect("16 bytes");
            Vector::new(
                format!("IEEE 1619 vector {}", field(record, "Vector")),
                field(record, "Key"),
                u128::from_le_bytes(tweak),
                field(record, "PT"),
                field(record, "CT"),
            )
        })
        .collect();
    assert_eq!(vectors.len(), 5);
    vectors.iter().for_each(Vector::check);
}

// promise: T-20
#[test]
fn nist_cavp_vectors_with_data_unit_sequence_numbers() {
    let records = records(CAVP);
    let vectors: Vec<_> = records
        .iter()
        .filter(|record| field(record, "DataUnitLen").parse::<usize>().expect("bits").is_multiple_of(128))
        .map(|record| {
            Vector::new(
                format!("CAVP XTSGenAES256 COUNT {}", field(record, "COUNT")),
                field(record, "Key"),
                field(record, "DataUnitSeqNumber").parse().expect("a number"),
                field(record, "PT"),
                field(record, "CT"),
            )
        })
        .collect();
    let stealing = records.len() - vectors.len();
    println!("SKIP: {stealing} of {} CAVP vectors need ciphertext stealing, which runseal never uses", records.len());
    assert_eq!((vectors.len(), stealing), (600, 400));
    vectors.iter().for_each(Vector::check);
}

#[test]
fn wycheproof_vectors_with_512_bit_keys() {
    let file: serde_json::Value = serde_json::from_str(WYCHEPROOF).expect("JSON");
    let groups = file["testGroups"].as_array().expect("groups");
    let (mut vectors, mut other_keys, mut stealing) = (Vec::new(), 0, 0);
    for group in groups {
        for test in group["tests"].as_array().expect("tests") {
            let text = |name: &str| test[name].as_str().expect("text");
            assert_eq!(text("result"), "valid");
            if group["keySize"] != 512 {
                other_keys += 1;
            } else if text("msg").len() / 2 % 16 != 0 {
                stealing += 1;
            } else {
                let unit = hex(text("iv")).iter().rev().fold(0, |unit, &byte| unit << 8 | u128::from(byte));
                let name = format!("Wycheproof {}", test["tcId"]);
                vectors.push(Vector::new(name, text("key"), unit, text("msg"), text("ct")));
            }
        }
    }
    println!("SKIP: {other_keys} Wycheproof vectors for shorter keys, {stealing} that need ciphertext stealing");
    assert_eq!(file["numberOfTests"], vectors.len() + other_keys + stealing);
    assert_eq!((vectors.len(), stealing), (21, 20));
    vectors.iter().for_each(Vector::check);
}

#[test]
fn equal_plaintext_under_different_sequence_numbers_gives_different_ciphertext() {
    for &engine in Engine::ALL {
        let mut cipher = cipher(engine, &[3; 31]);
        let (mut seen, mut out) = (HashSet::new(), vec![0; SECTOR]);
        for unit in (0..200).chain((8..64).map(|bit| 1 << bit)).chain([u64::MAX]) {
            cipher.encrypt(unit, &[0; SECTOR], &mut out).expect("encrypts");
            let fresh = out.chunks_exact(16).all(|block| seen.insert(block.to_vec()));
            assert!(fresh, "{}: a block repeats in unit {unit}", engine.name());
        }
    }
}

#[test]
fn sequence_numbers_past_64_bits_do_not_wrap() {
    for &engine in Engine::ALL {
        let mut cipher = cipher(engine, &[5; 9]);
        let (mut both, mut second) = (vec![0; 2 * SECTOR], vec![0; SECTOR]);
        cipher.encrypt(u64::MAX, &[1; 2 * SECTOR], &mut both).expect("encrypts");
        cipher.encrypt_unit(1 << 64, &[1; SECTOR], &mut second).expect("encrypts");
        assert!(both[SECTOR..] == second, "{}", engine.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // promise: T-20
    #[test]
    fn decryption_inverts_encryption_and_engines_agree(
        seed in any::<[u8; 32]>(),
        unit in any::<u64>(),
        plain in sectors(),
    ) {
        let mut answers = Vec::new();
        for &engine in Engine::ALL {
            let mut cipher = cipher(engine, &seed);
            let (source, mut sealed) = (plain.clone(), vec![0; plain.len()]);
            cipher.encrypt(unit, &source, &mut sealed).expect("encrypts");
            prop_assert!(source == plain, "the source is only read");
            let mut opened = sealed.clone();
            cipher.decrypt(unit, &mut opened).expect("decrypts");
            prop_assert!(opened == plain, "{}", engine.name());
            answers.push(sealed);
        }
        prop_assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "engines disagree");
    }

    #[test]
    fn engines_agree_on_units_of_any_number_of_blocks(
        seed in any::<[u8; 32]>(),
        unit in any::<u128>(),
        plain in (1_usize..300).prop_flat_map(|blocks| prop::collection::vec(any::<u8>(), blocks * 16)),
    ) {
        let mut answers = Vec::new();
        for &engine in Engine::ALL {
            let mut cipher = cipher(engine, &seed);
            let mut sealed = vec![0; plain.len()];
            cipher.encrypt_unit(unit, &plain, &mut sealed).expect("encrypts");
            let mut opened = sealed.clone();
            cipher.decrypt_unit(unit, &mut opened).expect("decrypts");
            prop_assert!(opened == plain, "{}", engine.name());
            answers.push(sealed);
        }
        prop_assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "engines disagree");
    }

    #[test]
    fn each_sector_depends_on_itself_and_its_number_only(
        seed in any::<[u8; 32]>(),
        unit in 0..u64::MAX - 8,
        plain in sectors(),
        position in any::<prop::sample::Index>(),
    ) {
        for &engine in Engine::ALL {
            let mut cipher = cipher(engine, &seed);
            let mut sealed = vec![0; plain.len()];
            cipher.encrypt(unit, &plain, &mut sealed).expect("encrypts");
            for (number, sector) in (unit..).zip(plain.chunks_exact(SECTOR)) {
                let mut alone = vec![0; SECTOR];
                cipher.encrypt(number, sector, &mut alone).expect("encrypts");
                let start = (number - unit) as usize * SECTOR;
                prop_assert!(alone == sealed[start..start + SECTOR], "{}", engine.name());
            }
            let (mut changed, mut sealed_changed) = (plain.clone(), vec![0; plain.len()]);
            let byte = position.index(plain.len());
            changed[byte] ^= 1;
            cipher.encrypt(unit, &changed, &mut sealed_changed).expect("encrypts");
            let differing = (0..plain.len() / 16).filter(|i| sealed[i * 16..][..16] != sealed_changed[i * 16..][..16]);
            prop_assert_eq!(differing.collect::<Vec<_>>(), [byte / 16], "{}", engine.name());
        }
    }
}

/// One published case.
struct Vector {
    name: String,
    key: [u8; 64],
    unit: u128,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl Vector {
    fn new(name: String, key: &str, unit: u128, plain: &str, sealed: &str) -> Self {
        Self { name, key: hex(key).try_into().expect("64 bytes"), unit, plain: hex(plain), sealed: hex(sealed) }
    }

    fn check(&self) {
        for &engine in Engine::ALL {
            let key = XtsKey::new(Zeroizing::new(self.key)).expect("halves differ");
            let mut cipher = SectorCipher::new(engine, &key).expect("cipher");
            self.check_unit(&mut cipher).unwrap_or_else(|error| panic!("{}: {error}", engine.name()));
            self.check_sector(&mut cipher).unwrap_or_else(|error| panic!("{}: {error}", engine.name()));
        }
    }

    fn check_unit(&self, cipher: &mut SectorCipher) -> Result<(), CryptError> {
        let mut buffer = vec![0; self.plain.len()];
        cipher.encrypt_unit(self.unit, &self.plain, &mut buffer)?;
        assert_eq!(buffer, self.sealed, "{}", self.name);
        cipher.decrypt_unit(self.unit, &mut buffer)?;
        assert_eq!(buffer, self.plain, "{}", self.name);
        Ok(())
    }

    fn check_sector(&self, cipher: &mut SectorCipher) -> Result<(), CryptError> {
        // Some Wycheproof vectors have longer tweaks, which no sector of a run can have.
        let Ok(unit) = self.unit.try_into() else { return Ok(()) };
        let padded: Vec<u8> = self.plain.iter().copied().chain(std::iter::repeat(0)).take(SECTOR).collect();
        let mut buffer = vec![0; SECTOR];
        cipher.encrypt(unit, &padded, &mut buffer)?;
        assert_eq!(buffer[..self.sealed.len()], self.sealed, "{}", self.name);
        cipher.decrypt(unit, &mut buffer)?;
        assert!(buffer == padded, "{}", self.name);
        Ok(())
    }
}

/// A cipher whose key repeats `seed` over 64 bytes, with the last one changed so that the halves differ.
fn cipher(engine: Engine, seed: &[u8]) -> SectorCipher {
    let mut bytes: [u8; 64] = std::array::from_fn(|i| seed[i % seed.len()]);
    bytes[63] ^= 0x80;
    let key = XtsKey::new(Zeroizing::new(bytes)).expect("halves differ");
    SectorCipher::new(engine, &key).expect("cipher")
}

/// 1 to 8 sectors of random bytes.
fn sectors() -> impl Strategy<Value = Vec<u8>> {
    (1_usize..=8).prop_flat_map(|count| prop::collection::vec(any::<u8>(), count * SECTOR))
}

/// The `Name = value` records of a vector file, separated by blank lines; comments and `[SECTION]`s are left out.
fn records(text: &str) -> Vec<Vec<(&str, &str)>> {
    let records = text.split("\n\n").map(|record| record.lines().filter_map(|line| line.split_once(" = ")).collect());
    records.filter(|record: &Vec<_>| !record.is_empty()).collect()
}

fn field<'a>(record: &[(&str, &'a str)], name: &str) -> &'a str {
    record.iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits")).collect()
}
