//! One request to a token endpoint (RFC 6749 sections 4.4 and 6), over a connection that ends with it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::compose::{basic, joined, percent_encoded};
use super::failure::Failure;
use super::identity::Identity;
use super::way::Way;
use crate::cache::Lease;
use crate::config::OAuth2;
use crate::http::{self, Bound, Request, Response};
use crate::sys::arena::{Arena, Block};

/// How long a token may take, the connection included.
const WITHIN: Duration = Duration::from_secs(30);

/// An answer with a token in it is never larger.
const LARGEST: usize = 64 * 1024;

/// What is asked for, and who asks.
pub struct TokenRequest {
    pub oauth2: OAuth2,
    pub way: Way,
    pub tls: Option<TlsConnector>,
    /// What it shows in TLS, where the route has one (RFC 8705).
    pub identity: Option<Identity>,
    pub arena: Arc<Arena>,
    pub client_id: Lease,
    pub client_secret: Option<Lease>,
    pub refresh_token: Option<Lease>,
    /// The one that came instead of it.
    pub refreshed: Option<Arc<Block>>,
}

/// What was given.
pub struct Given {
    pub access_token: Block,
    pub refresh_token: Option<Block>,
    pub time: Option<Duration>,
}

/// How a client shows its secret (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    InHeader,
    InBody,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    #[serde(borrow)]
    token_type: Option<Cow<'a, str>>,
    /// A number, which some servers write as a string.
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
    #[serde(borrow)]
    refresh_token: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Refusal<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
}

/// The words of RFC 6749 section 5.2. Whatever else a server says is not repeated.
const ERRORS: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

impl TokenRequest {
    /// Asks. A server that takes no secret in a header is asked once more with it in the body.
    pub async fn send(&self) -> Result<Given, Failure> {
        let asked = async {
            let first = if self.client_secret.is_some() {
                Shown::InHeader
            } else {
                Shown::InBody
            };
            let response = self.ask(first).await?;
            if first == Shown::InHeader && is_client_unknown(&response) {
                return self.given(&self.ask(Shown::InBody).await?);
            }
            self.given(&response)
        };
        timeout(WITHIN, asked)
            .await
            .unwrap_or(Err(Failure::Timeout(WITHIN)))
    }

    async fn ask(&self, shown: Shown) -> Result<Response, Failure> {
        let request = Request {
            method: Method::POST,
            path: self.oauth2.path.clone(),
            headers: self.headers(shown)?,
            body: self.body(shown)?,
        };
        let server = &self.oauth2.server;
        let stream = self.way.tcp(server).await?;
        let shown = match (&self.tls, &self.identity) {
            (Some(tls), Some(identity)) => Some(identity.connector(tls)?),
            _ => None,
        };
        let tls = shown.as_ref().map(|(tls, _)| tls).or(self.tls.as_ref());
        let bound = Bound::Secret(Arc::clone(&self.arena), LARGEST);
        http::once(stream, server, tls, &request, &bound)
            .await
            .map_err(|failure| Failure::TokenEndpoint(failure.to_string()))
    }

    fn headers(&self, shown: Shown) -> Result<HeaderMap, Failure> {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, form),
            (ACCEPT, HeaderValue::from_static("application/json")),
        ]);
        if let (Shown::InHeader, Some(secret)) = (shown, &self.client_secret) {
            let [id, secret] =
                [&self.client_id, secret].map(|part| percent_encoded(&self.arena, part.as_ref()));
            let pair = joined(&self.arena, &[&id?, b":", &secret?])?;
            let value = basic(&self.arena, &pair)?;
            let value = HeaderValue::from_bytes(&value);
            headers.insert(AUTHORIZATION, value.map_err(|_| Failure::NoAnswer)?);
        }
        Ok(headers)
    }

    /// The form. It stays in secret memory until it is written.
    fn body(&self, shown: Shown) -> Result<Bytes, Failure> {
        let refresh = match (&self.refreshed, &self.refresh_token) {
            (Some(refreshed), _) => Some(&***refreshed),
            (None, token) => token.as_ref().map(AsRef::as_ref),
        };
        let mut fields: Vec<(&str, &[u8])> = match refresh {
            Some(token) => vec![("grant_type", b"refresh_token"), ("refresh_token", token)],
            None => vec![("grant_type", b"client_credentials")],
        };
        fields.extend(
            self.oauth2
                .scope
                .as_ref()
                .map(|scope| ("scope", scope.as_bytes())),
        );
        if shown == Shown::InBody {
            fields.push(("client_id", self.client_id.as_ref()));
            let secret = self.client_secret.as_ref();
            fields.extend(secret.map(|secret| ("client_secret", secret.as_ref())));
        }
        let mut pieces = Vec::new();
        for (name, value) in &fields {
            pieces.push((*name, percent_encoded(&self.arena, value)?));
        }
        let mut all: Vec<&[u8]> = Vec::new();
        for (name, value) in &pieces {
            let separator: &[u8] = if all.is_empty() { b"" } else { b"&" };
            all.extend([separator, name.as_bytes(), b"=", value]);
        }
        Ok(Bytes::from_owner(Form(joined(&self.arena, &all)?)))
    }

    fn given(&self, response: &Response) -> Result<Given, Failure> {
        if response.status != StatusCode::OK {
            let said = error(response).unwrap_or("nothing that RFC 6749 knows");
            let status = response.status.as_u16();
            return Err(Failure::TokenEndpoint(format!(
                "it answered {status} with {said}"
            )));
        }
        let bad = |why: &str| Failure::TokenEndpoint(format!("its answer {why}"));
        let answer: Answer<'_> = serde_json::from_slice(&response.body)
            .map_err(|_| bad("is not JSON with an access_token"))?;
        let is_bearer = |word: Cow<'_, str>| word.eq_ignore_ascii_case("bearer");
        if !answer.token_type.is_none_or(is_bearer) {
            return Err(bad("has a token_type other than Bearer"));
        }
        let visible = answer
            .access_token
            .bytes()
            .all(|byte| byte.is_ascii_graphic());
        if answer.access_token.is_empty() || !visible {
            return Err(bad("has an access_token that no header can carry"));
        }
        let kept = |text: &str| joined(&self.arena, &[text.as_bytes()]);
        Ok(Given {
            access_token: kept(&answer.access_token)?,
            refresh_token: answer.refresh_token.as_deref().map(kept).transpose()?,
            time: answer.expires_in.and_then(lifetime),
        })
    }
}

/// What is no time at all, or less, has passed already.
fn lifetime(expires_in: &RawValue) -> Option<Duration> {
    let seconds: f64 = expires_in.get().trim_matches('"').parse().ok()?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

/// Whether the server did not take the secret where it was shown, or not at all.
fn is_client_unknown(response: &Response) -> bool {
    response.status == StatusCode::UNAUTHORIZED
        || response.status == StatusCode::BAD_REQUEST
            && matches!(error(response), Some("invalid_client" | "invalid_request"))
}

fn error(response: &Response) -> Option<&'static str> {
    let refusal: Refusal<'_> = serde_json::from_slice(&response.body).ok()?;
    ERRORS.into_iter().find(|word| *word == refusal.error)
}

/// A body in secret memory.
struct Form(Block);

impl AsRef<[u8]> for Form {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lifetime_of_a_token_is_read_however_it_is_written() {
        for (json, seconds) in [
            ("3600", Some(3600.0)),
            ("\"3600\"", Some(3600.0)),
            ("3599.5", Some(3599.5)),
            ("-1", Some(0.0)),
            ("\"soon\"", None),
            ("1e300", None),
        ] {
            let time = lifetime(serde_json::from_str(json).unwrap());
            assert_eq!(time.map(|time| time.as_secs_f64()), seconds, "{json}");
        }
    }
}
