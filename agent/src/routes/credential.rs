//! From a lease of the secret to what a request is written with, and what its answer is searched for.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::Route;
use super::failure::Failure;
use super::insert::Insertion;
use super::mask::Mask;
use crate::cache::{Entry, Form, Lease, LoadError, Permit, Version};
use crate::config::{Inject, Part, Template};
use crate::sys::arena::{Arena, Block, Draft, Full};

const NO_FIELD: &str = "the secret has no such field as this route is configured to use";
const NO_HEADER: &str =
    "the secret holds a character that no header can carry, such as a newline at its end";
const COLON: &str = "the user for basic authentication holds a colon, which would end it";
const NO_TOKEN: &str = "there are no random numbers";

/// What a request is written with. Nothing of it is outside secret memory but random tokens.
pub struct Credential {
    pub(super) insertions: Vec<Insertion>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) query: Vec<(String, Arc<str>)>,
    pub(super) mask: Arc<Mask>,
}

/// A secret that was granted for one request.
pub struct Granted<'a> {
    /// The right to lease it.
    pub permit: &'a Permit,
    /// Where plaintext lives.
    pub arena: &'a Arc<Arena>,
    /// The secret.
    pub entry: &'a Entry,
    /// The version to use.
    pub version: &'a Version,
}

impl Granted<'_> {
    fn lease(&self, field: Option<&str>) -> Result<Lease, Failure> {
        let Some(field) = field else {
            return Ok(self.version.lease(self.permit, Form::Raw));
        };
        self.version
            .lease_field(self.permit, self.arena, self.entry, field, Form::Raw)
            .map_err(|error| match error {
                LoadError::Full(full) => Failure::Full(full),
                LoadError::Version(_) => Failure::Credential(NO_FIELD),
            })?
            .ok_or(Failure::Credential(NO_FIELD))
    }
}

impl Route {
    /// Leases the secret and writes it as this route's upstream wants it.
    ///
    /// # Errors
    /// Where the secret is not such a one.
    pub fn credential(&self, granted: &Granted<'_>) -> Result<Credential, Failure> {
        let mut writing = Writing {
            granted,
            field: self.config.field.as_deref(),
            token: random_token()?,
            credential: Parts::default(),
        };
        for inject in &self.config.inject {
            writing.write(inject)?;
        }
        let Parts {
            insertions,
            headers,
            query,
            secrets,
            pairs,
        } = writing.credential;
        let secrets = secrets.iter().map(AsRef::as_ref);
        let values: Vec<&[u8]> = secrets.chain(pairs.iter().map(|pair| &**pair)).collect();
        Ok(Credential {
            insertions,
            headers,
            query,
            mask: Arc::new(Mask::new(granted.arena, &values)?),
        })
    }
}

struct Writing<'a> {
    granted: &'a Granted<'a>,
    /// What `{secret}` stands for, where not for the whole.
    field: Option<&'a str>,
    token: String,
    credential: Parts,
}

#[derive(Default)]
struct Parts {
    insertions: Vec<Insertion>,
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Vec<(String, Arc<str>)>,
    secrets: Vec<Lease>,
    /// `user:password`, which come back together.
    pairs: Vec<Block>,
}

impl Writing<'_> {
    fn write(&mut self, inject: &Inject) -> Result<(), Failure> {
        match inject {
            Inject::Header { name, value } => {
                let value = self.fill(value)?;
                self.header(name.clone(), value)
            }
            Inject::Query { name, value } => {
                let value = self.fill(value)?;
                let value = self.percent_encoded(&value)?;
                let token = self.insert(value);
                self.credential.query.push((name.clone(), token));
                Ok(())
            }
            Inject::Basic { user, password } => {
                let user = self.fill(user)?;
                if user.contains(&b':') {
                    return Err(Failure::Credential(COLON));
                }
                let password = self.fill(password)?;
                let pair = self.joined(&[&user, b":", &password])?;
                let value = self.basic(&pair)?;
                self.credential.pairs.push(pair);
                self.header(AUTHORIZATION, value)
            }
        }
    }

    /// The template with the secret in its places.
    fn fill(&mut self, template: &Template) -> Result<Block, Failure> {
        let mut leases = Vec::new();
        for field in template.secrets() {
            leases.push(self.granted.lease(field.or(self.field))?);
        }
        let mut next = leases.iter();
        let mut pieces: Vec<&[u8]> = Vec::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => pieces.push(text.as_bytes()),
                Part::Secret(_) => pieces.extend(next.next().map(AsRef::as_ref)),
            }
        }
        let filled = self.joined(&pieces)?;
        self.credential.secrets.extend(leases);
        Ok(filled)
    }

    fn header(&mut self, name: HeaderName, value: Block) -> Result<(), Failure> {
        let odd = |byte: &u8| *byte < b' ' && *byte != b'\t' || *byte == 0x7f;
        if value.iter().any(odd) {
            return Err(Failure::Credential(NO_HEADER));
        }
        let token = self.insert(value);
        let token = HeaderValue::from_str(&token).map_err(|_| Failure::Credential(NO_TOKEN))?;
        self.credential.headers.push((name, token));
        Ok(())
    }

    /// The token that stands for `value` in the head.
    fn insert(&mut self, value: Block) -> Arc<str> {
        let number = self.credential.insertions.len();
        let token: Arc<str> = format!("{}{number:03}", self.token).into();
        self.credential.insertions.push(Insertion {
            token: Arc::clone(&token),
            value: Arc::new(value),
        });
        token
    }

    fn draft(&self, len: usize) -> Result<Draft, Full> {
        self.granted.arena.draft(len)
    }

    fn joined(&self, pieces: &[&[u8]]) -> Result<Block, Full> {
        let mut draft = self.draft(pieces.iter().map(|piece| piece.len()).sum())?;
        let mut at = 0;
        for piece in pieces {
            draft[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        Ok(draft.freeze())
    }

    fn basic(&self, pair: &[u8]) -> Result<Block, Full> {
        const SCHEME: &[u8] = b"Basic ";
        let mut draft = self.draft(SCHEME.len() + pair.len().div_ceil(3) * 4)?;
        let (scheme, encoded) = draft.split_at_mut(SCHEME.len());
        scheme.copy_from_slice(SCHEME);
        // The room was counted by the same rule that the encoder uses, so it always fits.
        let written = STANDARD.encode_slice(pair, encoded);
        debug_assert!(written.is_ok());
        Ok(draft.freeze())
    }

    fn percent_encoded(&self, value: &[u8]) -> Result<Block, Full> {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let len = value.iter().map(|byte| if plain(*byte) { 1 } else { 3 });
        let mut draft = self.draft(len.sum())?;
        let mut at = 0;
        for byte in value.iter().copied() {
            let escape = [
                b'%',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ];
            let written: &[u8] = if plain(byte) { &[byte] } else { &escape };
            draft[at..at + written.len()].copy_from_slice(written);
            at += written.len();
        }
        Ok(draft.freeze())
    }
}

/// 128 random bits as letters and digits: nobody writes them into a request by chance or guess.
fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Failure::Credential(NO_TOKEN))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
