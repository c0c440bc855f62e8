//! From a lease of the secret to what a request is written with, and what its answer is searched for.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::Route;
use super::compose::{basic, joined, percent_encoded};
use super::exchange::Outgoing;
use super::failure::Failure;
use super::identity::Identity;
use super::insert::Insertion;
use super::mask::Mask;
use super::oauth2::Token;
use super::token_request::TokenRequest;
use super::way::Way;
use super::whole::{Room, Shares};
use super::{hmac, sigv4};
use crate::cache::{Entry, Form, Lease, LoadError, Permit, Version};
use crate::config::{Hmac, Inject, OAuth2, Part, SigV4, Template};
use crate::http::Address;
use crate::sys::arena::{Arena, Block, Full};

const NO_FIELD: &str = "the secret has no such field as this route is configured to use";
const NO_HEADER: &str =
    "the secret holds a character that no header can carry, such as a newline at its end";
const COLON: &str = "the user for basic authentication holds a colon, which would end it";
const NO_TOKEN: &str = "there are no random numbers";

/// What a request is written with. Nothing of it is outside secret memory but random tokens.
pub struct Credential {
    pub(super) insertions: Vec<Insertion>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the bot's that it stands instead of, besides those.
    pub(super) replaced: &'static [HeaderName],
    pub(super) query: Vec<(String, Arc<str>)>,
    /// Path and query, where they are signed as they are written.
    pub(super) target: Option<String>,
    pub(super) identity: Option<Identity>,
    pub(super) token: Option<Token>,
    pub(super) mask: Arc<Mask>,
    /// Whether requests that are under way share it.
    pub(super) is_shared: bool,
}

/// The credential that requests under way are written with, where it is the same for all; it goes with the last of them.
#[derive(Default)]
pub(super) struct Shared(Mutex<Option<(Arc<str>, Weak<Credential>)>>);

impl Shared {
    fn get(&self, version: &Arc<str>) -> Option<Arc<Credential>> {
        let shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_version = shared.as_ref().filter(|(of, _)| Arc::ptr_eq(of, version));
        of_version.and_then(|(_, credential)| credential.upgrade())
    }

    fn set(&self, version: &Arc<str>, credential: &Arc<Credential>) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *shared = Some((Arc::clone(version), Arc::downgrade(credential)));
    }
}

/// Whether it writes the same into each request.
fn is_fixed(inject: &Inject) -> bool {
    matches!(
        inject,
        Inject::Header { .. } | Inject::Query { .. } | Inject::Basic { .. }
    )
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
        self.find(field)?.ok_or(Failure::Credential(NO_FIELD))
    }

    fn find(&self, field: &str) -> Result<Option<Lease>, Failure> {
        self.version
            .lease_field(self.permit, self.arena, self.entry, field, Form::Raw)
            .map_err(|error| match error {
                LoadError::Full(full) => Failure::Full(full),
                LoadError::Version(_) => Failure::Credential(NO_FIELD),
            })
    }

    fn field(&self, field: &'static str) -> Result<Lease, Failure> {
        self.find(field)?.ok_or(Failure::NoField(field))
    }

    fn identity(&self) -> Result<Identity, Failure> {
        Ok(Identity {
            version: Arc::clone(self.version.id()),
            certificate: self.field("certificate")?,
            private_key: self.field("private_key")?,
        })
    }
}

impl Route {
    /// Room for a body that has to be read before the credential can be made; `None` where it need not be.
    ///
    /// # Errors
    /// Where it is too large for that, or the bot has no room left.
    pub(super) fn room(
        &self,
        outgoing: &Outgoing,
        bot: &str,
        announced: Option<u64>,
    ) -> Result<Option<Room>, Failure> {
        let signs = |inject: &Inject| match inject {
            Inject::Hmac(_) => true,
            Inject::SigV4(sigv4) => sigv4::needs_body(sigv4, &outgoing.headers),
            _ => false,
        };
        if !self.config.inject.iter().any(signs) {
            return Ok(None);
        }
        Shares::room(&self.shares, bot, announced).map(Some)
    }

    /// Leases the secret and writes it as this route's upstream wants it; `body` is what is here of the request's.
    ///
    /// # Errors
    /// Where the secret is not such a one, or an access token is not to be had.
    pub async fn credential(
        &self,
        granted: &Granted<'_>,
        outgoing: &Outgoing,
        body: Option<&[u8]>,
    ) -> Result<Arc<Credential>, Failure> {
        let is_fixed = self.config.inject.iter().all(is_fixed);
        let version = granted.version.id();
        if is_fixed && let Some(same) = self.shared.get(version) {
            return Ok(same);
        }
        let mut writing = Writing {
            granted,
            outgoing,
            body,
            upstream: &self.config.upstream,
            field: self.config.field.as_deref(),
            nonce: random_token()?,
            parts: Parts::default(),
        };
        for inject in &self.config.inject {
            if let Inject::OAuth2(oauth2) = inject {
                let token = self
                    .access_token(oauth2, granted, &mut writing.parts)
                    .await?;
                writing.bearer(token)?;
            } else {
                writing.write(inject)?;
            }
        }
        let credential = Arc::new(writing.parts.finish(granted.arena, is_fixed)?);
        if is_fixed {
            self.shared.set(version, &credential);
        }
        Ok(credential)
    }

    async fn access_token(
        &self,
        oauth2: &OAuth2,
        granted: &Granted<'_>,
        parts: &mut Parts,
    ) -> Result<Token, Failure> {
        let request = |refreshed| self.token_request(oauth2, granted, refreshed);
        let version = granted.version.id();
        let token = self.tokens.get(version, request).await?;
        // An upstream that is the token endpoint, too, knows these.
        parts.secrets.extend(granted.find("client_secret")?);
        parts.secrets.extend(granted.find("refresh_token")?);
        parts.others.extend(self.tokens.refresh(version));
        Ok(token)
    }

    fn token_request(
        &self,
        oauth2: &OAuth2,
        granted: &Granted<'_>,
        refreshed: Option<Arc<Block>>,
    ) -> Result<TokenRequest, Failure> {
        let tls = if oauth2.server.is_tls() {
            Some(self.tls()?.clone())
        } else {
            None
        };
        let identity = if self.config.inject.contains(&Inject::Mtls) {
            Some(granted.identity()?)
        } else {
            None
        };
        Ok(TokenRequest {
            oauth2: oauth2.clone(),
            way: Way::of(&self.config),
            tls,
            identity,
            arena: Arc::clone(granted.arena),
            client_id: granted.field("client_id")?,
            client_secret: granted.find("client_secret")?,
            refresh_token: granted.find("refresh_token")?,
            refreshed,
        })
    }
}

struct Writing<'a> {
    granted: &'a Granted<'a>,
    outgoing: &'a Outgoing,
    body: Option<&'a [u8]>,
    upstream: &'a Address,
    /// What `{secret}` stands for, where not for the whole.
    field: Option<&'a str>,
    /// What the tokens of this request begin with.
    nonce: String,
    parts: Parts,
}

#[derive(Default)]
struct Parts {
    insertions: Vec<Insertion>,
    headers: Vec<(HeaderName, HeaderValue)>,
    replaced: &'static [HeaderName],
    query: Vec<(String, Arc<str>)>,
    target: Option<String>,
    identity: Option<Identity>,
    token: Option<Token>,
    secrets: Vec<Lease>,
    /// What else must not come back: `user:password` together, signatures, tokens.
    others: Vec<Arc<Block>>,
}

impl Parts {
    fn finish(self, arena: &Arc<Arena>, is_shared: bool) -> Result<Credential, Failure> {
        let secrets = self.secrets.iter().map(AsRef::as_ref);
        let others = self.others.iter().map(|other| &***other);
        let values: Vec<&[u8]> = secrets.chain(others).collect();
        let mask = Arc::new(Mask::new(arena, &values)?);
        Ok(Credential {
            insertions: self.insertions,
            headers: self.headers,
            replaced: self.replaced,
            query: self.query,
            target: self.target,
            identity: self.identity,
            token: self.token,
            mask,
            is_shared,
        })
    }
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
                let value = percent_encoded(self.granted.arena, &value)?;
                let token = self.insert(value);
                self.parts.query.push((name.clone(), token));
                Ok(())
            }
            Inject::Basic { user, password } => {
                let user = self.fill(user)?;
                if user.contains(&b':') {
                    return Err(Failure::Credential(COLON));
                }
                let password = self.fill(password)?;
                let pair = self.joined(&[&user, b":", &password])?;
                let value = basic(self.granted.arena, &pair)?;
                self.parts.others.push(Arc::new(pair));
                self.header(AUTHORIZATION, value)
            }
            Inject::SigV4(sigv4) => self.sigv4(sigv4),
            Inject::Hmac(hmac) => self.hmac(hmac),
            Inject::Mtls => {
                self.parts.identity = Some(self.granted.identity()?);
                let key = self.granted.field("private_key")?;
                self.parts.secrets.push(key);
                Ok(())
            }
            // Asked for before.
            Inject::OAuth2(_) => Ok(()),
        }
    }

    fn bearer(&mut self, token: Token) -> Result<(), Failure> {
        let value = self.joined(&[b"Bearer ", &token.value])?;
        self.parts.others.push(Arc::clone(&token.value));
        self.parts.token = Some(token);
        self.header(AUTHORIZATION, value)
    }

    fn sigv4(&mut self, sigv4: &SigV4) -> Result<(), Failure> {
        let id = self.granted.field("access_key_id")?;
        let key = self.granted.field("secret_access_key")?;
        let session = self.granted.find("session_token")?;
        let keys = sigv4::Keys {
            access_key_id: id.as_ref(),
            secret_access_key: key.as_ref(),
            session_token: session.as_ref().map(AsRef::as_ref),
        };
        let signed = sigv4::signed(sigv4, &keys, self.upstream, self.outgoing, self.body)?;
        self.parts.replaced = &sigv4::OF_SIGNATURES;
        self.parts.target = Some(signed.target);
        for (name, value) in signed.headers {
            let value = HeaderValue::try_from(value).map_err(|_| Failure::Credential(NO_HEADER))?;
            self.parts.headers.push((name, value));
        }
        let authorization = self.joined(&[signed.authorization.as_bytes()])?;
        self.header(AUTHORIZATION, authorization)?;
        if let Some(session) = &session {
            let value = self.joined(&[session.as_ref()])?;
            self.header(sigv4::SECURITY_TOKEN, value)?;
        }
        let signature = self.joined(&[signed.signature.as_bytes()])?;
        self.parts.others.push(Arc::new(signature));
        self.parts
            .secrets
            .extend([id, key].into_iter().chain(session));
        Ok(())
    }

    fn hmac(&mut self, hmac: &Hmac) -> Result<(), Failure> {
        let key = self.granted.lease(self.field)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs().to_string();
        let body = self.body.unwrap_or_default();
        let signed = hmac::sign(hmac, key.as_ref(), body, &now);
        let value = self.joined(&[signed.value.as_bytes()])?;
        self.header(hmac.header.clone(), value)?;
        if let Some(name) = &hmac.timestamp {
            let now = HeaderValue::try_from(now).map_err(|_| Failure::Credential(NO_HEADER))?;
            self.parts.headers.push((name.clone(), now));
        }
        let signature = self.joined(&[signed.signature.as_bytes()])?;
        self.parts.others.push(Arc::new(signature));
        self.parts.secrets.push(key);
        Ok(())
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
        self.parts.secrets.extend(leases);
        Ok(filled)
    }

    fn header(&mut self, name: HeaderName, value: Block) -> Result<(), Failure> {
        let odd = |byte: &u8| *byte < b' ' && *byte != b'\t' || *byte == 0x7f;
        if value.iter().any(odd) {
            return Err(Failure::Credential(NO_HEADER));
        }
        let token = self.insert(value);
        let mut token = HeaderValue::from_str(&token).map_err(|_| Failure::Credential(NO_TOKEN))?;
        // HTTP/2 keeps such a field out of its tables.
        token.set_sensitive(true);
        self.parts.headers.push((name, token));
        Ok(())
    }

    /// The token that stands for `value` in the head.
    fn insert(&mut self, value: Block) -> Arc<str> {
        let number = self.parts.insertions.len();
        let token: Arc<str> = format!("{}{number:03}", self.nonce).into();
        self.parts.insertions.push(Insertion {
            token: Arc::clone(&token),
            value: Arc::new(value),
        });
        token
    }

    fn joined(&self, pieces: &[&[u8]]) -> Result<Block, Full> {
        joined(self.granted.arena, pieces)
    }
}

/// 128 random bits as letters and digits: nobody writes them into a request by chance or guess.
fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Failure::Credential(NO_TOKEN))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
