//! The bytes in which databases hold architectures: those that a step trains, or those that it ranks.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | version: 1 |
//! | varint | number of architectures; then for each of them |
//! | varint | number of values, n |
//! | n / 8, rounded up | kinds of the values, the least significant bit first: 0 for a choice, 1 for a real |
//! | varint or 8 | each value: a choice as a varint, a real as an f64 in little-endian order |
//!
//! A varint has seven bits of a number in each byte, the least significant first; all bytes but the last have the highest bit
//! set. Databases of earlier versions hold JSON, which begins with `[`.

use std::sync::Arc;

use crate::asng::{Architecture, Value};

const VERSION: u8 = 1;

/// Writes architectures in version 1. Every bit survives.
pub(super) fn encode(architectures: &[Architecture]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    put_varint(&mut bytes, architectures.len());
    for Architecture(values) in architectures {
        put_varint(&mut bytes, values.len());
        let is_real = |value: &Value| matches!(value, Value::Real(_));
        for eight in values.chunks(8) {
            let bit = |(i, value)| u8::from(is_real(value)) << i;
            bytes.push(eight.iter().enumerate().map(bit).sum());
        }
        for value in values {
            match *value {
                Value::Choice(choice) => put_varint(&mut bytes, choice as usize),
                Value::Real(real) => bytes.extend(real.to_le_bytes()),
            }
        }
    }
    bytes
}

/// Reads what [`encode`] of this or an earlier version has written, or says what is wrong with it.
pub(super) fn decode(bytes: &[u8]) -> Result<Arc<[Architecture]>, String> {
    match bytes.split_first() {
        Some((b'[', _)) => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        Some((&VERSION, body)) => from_version_1(body).ok_or_else(|| "bytes make no sense".into()),
        Some((version, _)) => Err(format!("version {version} is unknown, not {VERSION}")),
        None => Err("no bytes".into()),
    }
}

fn from_version_1(mut bytes: &[u8]) -> Option<Arc<[Architecture]>> {
    let count = take_count(&mut bytes)?;
    let mut architectures = Vec::with_capacity(count);
    for _ in 0..count {
        let count = take_count(&mut bytes)?;
        let kinds = bytes.split_off(..count.div_ceil(8))?;
        let mut values = Vec::with_capacity(count);
        for i in 0..count {
            values.push(if kinds[i / 8] >> (i % 8) & 1 == 1 {
                let (real, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Real(f64::from_le_bytes(*real))
            } else {
                Value::Choice(take_varint(&mut bytes)?)
            });
        }
        architectures.push(Architecture(values.into()));
    }
    bytes.is_empty().then(|| architectures.into())
}

fn put_varint(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0_u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return number.try_into().ok();
        }
    }
    None
}

/// Takes the number of parts that follow, each of which has a byte at least: so damage cannot ask for much memory.
fn take_count(bytes: &mut &[u8]) -> Option<usize> {
    let count = take_varint(bytes)? as usize;
    (count <= bytes.len()).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let choice = prop_oneof![0..10_u32, any::<u32>()].prop_map(Value::Choice);
        // Also NaN, whose bits count.
        prop_oneof![choice, any::<u64>().prop_map(|bits| Value::Real(f64::from_bits(bits)))]
    }

    fn lists() -> impl Strategy<Value = Vec<Architecture>> {
        let architecture = prop::collection::vec(values(), 0..20);
        prop::collection::vec(architecture.prop_map(|values| Architecture(values.into())), 0..5)
    }

    fn bits(architectures: &[Architecture]) -> Vec<Vec<(bool, u64)>> {
        let bits = |value: &Value| match *value {
            Value::Choice(choice) => (false, choice.into()),
            Value::Real(real) => (true, real.to_bits()),
        };
        architectures.iter().map(|Architecture(values)| values.iter().map(bits).collect()).collect()
    }

    proptest! {
        #[test]
        fn every_bit_survives(list in lists()) {
            prop_assert_eq!(bits(&decode(&encode(&list)).unwrap()), bits(&list));
        }

        #[test]
        fn bytes_that_are_cut_short_or_go_on_are_an_error(list in lists(), more in any::<u8>()) {
            let mut bytes = encode(&list);
            for len in 0..bytes.len() {
                prop_assert!(decode(&bytes[..len]).is_err(), "{} bytes", len);
            }
            bytes.push(more);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn damaged_bytes_do_no_harm(list in lists(), place in any::<usize>(), byte in any::<u8>()) {
            let mut bytes = encode(&list);
            let place = place % bytes.len();
            bytes[place] = byte;
            let _ = decode(&bytes);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
            let _ = decode(&[&[VERSION], &bytes[..]].concat());
        }
    }

    #[test]
    fn the_layout_of_version_1_never_changes() {
        let one = Architecture([Value::Choice(3), Value::Real(-2.0), Value::Choice(300)].into());
        let bytes = [
            &[1, 2][..],                     // version, architectures
            &[3, 0b010],                     // values, kinds
            &[3, 0, 0, 0, 0, 0, 0, 0, 0xc0], // 3, -2.0
            &[0xac, 0x02],                   // 300
            &[0],                            // an architecture without values
        ]
        .concat();
        assert_eq!(encode(&[one.clone(), Architecture([].into())]), bytes);
    }

    #[test]
    fn what_was_stored_as_json_is_read() {
        let json = br#"[[3,2.75],[0,-1.0]]"#;
        let pair = |choice, real| Architecture([Value::Choice(choice), Value::Real(real)].into());
        assert_eq!(*decode(json).unwrap(), [pair(3, 2.75), pair(0, -1.0)]);
        assert!(decode(b"[[3,").is_err());
        assert_eq!(decode(&[2]).unwrap_err(), "version 2 is unknown, not 1");
    }

    #[test]
    fn damage_cannot_ask_for_memory() {
        let huge = [VERSION, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(decode(&huge).is_err());
        assert!(decode(&[VERSION, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
