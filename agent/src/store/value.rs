//! A secret value in memory: bounded, wiped on drop, never printed or cloned.

use keyhatch_protocol::MAX_VALUE;
use zeroize::Zeroizing;

use super::StoreError;
use super::key::random;

/// Letters and digits.
pub const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// 0 to 65,536 secret bytes.
#[derive(PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Takes `bytes` over, which are wiped also where they are refused.
    pub fn new(bytes: Vec<u8>) -> Result<Self, StoreError> {
        let bytes = Zeroizing::new(bytes);
        if bytes.len() > MAX_VALUE {
            return Err(StoreError::ValueTooLarge(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// A random value of `length` letters and digits, each equally likely.
    pub fn generate(length: usize) -> Result<Self, StoreError> {
        Self::generate_of(ALPHABET, length)
    }

    /// A random value of `length` bytes of `alphabet`, which has 1 to 256, each equally likely.
    pub fn generate_of(alphabet: &[u8], length: usize) -> Result<Self, StoreError> {
        if !(1..=MAX_VALUE).contains(&length) || !(1..=256).contains(&alphabet.len()) {
            return Err(StoreError::GeneratedLength(length));
        }
        // Bytes from here up would make some characters likelier than others.
        let fair = 256 - 256 % alphabet.len();
        let mut value = Zeroizing::new(Vec::with_capacity(length));
        let mut bytes = Zeroizing::new([0; 64]);
        while value.len() < length {
            random(&mut bytes[..])?;
            let wanted = length - value.len();
            let fair = bytes
                .iter()
                .map(|byte| usize::from(*byte))
                .filter(|byte| *byte < fair);
            value.extend(
                fair.map(|byte| alphabet[byte % alphabet.len()])
                    .take(wanted),
            );
        }
        Ok(Self(value))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_65536_bytes() {
        assert!(Value::new(vec![0; 65_536]).is_ok());
        let error = Value::new(vec![0; 65_537]).err().unwrap();
        assert_eq!(error, StoreError::ValueTooLarge(65_537));
        for length in [0, 65_537] {
            let error = Value::generate(length).err().unwrap();
            assert_eq!(error, StoreError::GeneratedLength(length));
        }
    }

    #[test]
    fn generated_values_use_the_whole_alphabet_evenly() {
        let mut seen = [0_u32; 256];
        for byte in Value::generate(65_536).unwrap().as_bytes() {
            seen[usize::from(*byte)] += 1;
        }
        // 1057 of each are expected; ten standard deviations either side never happen.
        for byte in 0..=255_u8 {
            let count = seen[usize::from(byte)];
            let wanted = if ALPHABET.contains(&byte) {
                730..1390
            } else {
                0..1
            };
            assert!(wanted.contains(&count), "{byte}: {count}");
        }
        assert_eq!(Value::generate(40).unwrap().as_bytes().len(), 40);
    }
}
