//! A new pair of Ed25519 keys as one value, with the keys as OpenSSH writes them in its fields.

use serde::Serialize;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};
use zeroize::Zeroizing;

use super::cipher::wipe_frames;
use super::key::random;
use super::{StoreError, Value};

#[derive(Serialize)]
struct Fields<'a> {
    private_key: &'a str,
    public_key: &'a str,
}

impl Value {
    /// A JSON object of `private_key`, which begins with `-----BEGIN OPENSSH PRIVATE KEY-----`, and `public_key`, a
    /// line of `authorized_keys`.
    pub fn key_pair() -> Result<Self, StoreError> {
        let value = key_pair_below();
        wipe_frames();
        value
    }
}

/// Leaves the private key in its frames, which the caller wipes.
#[inline(never)]
fn key_pair_below() -> Result<Value, StoreError> {
    let mut seed = Zeroizing::new([0; 32]);
    random(&mut seed[..])?;
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    let fault = |_| StoreError::Cipher;
    let private_key = key.to_openssh(LineEnding::LF).map_err(fault)?;
    let public_key = key.public_key().to_openssh().map_err(fault)?;
    let fields = Fields {
        private_key: &private_key,
        public_key: &public_key,
    };
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut value = Vec::with_capacity(1024);
    serde_json::to_writer(&mut value, &fields).map_err(|_| StoreError::Cipher)?;
    Value::new(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_are_of_one_pair_and_each_time_of_another() {
        let pair = || -> (PrivateKey, String) {
            let value = Value::key_pair().unwrap();
            let fields: serde_json::Value = serde_json::from_slice(value.as_bytes()).unwrap();
            let text = |field: &str| fields[field].as_str().unwrap().to_owned();
            let private = PrivateKey::from_openssh(text("private_key")).unwrap();
            (private, text("public_key"))
        };
        let ((private, public), (_, other)) = (pair(), pair());
        assert_eq!(private.public_key().to_openssh().unwrap(), public);
        assert!(public.starts_with("ssh-ed25519 AAAA") && public != other);
    }
}
