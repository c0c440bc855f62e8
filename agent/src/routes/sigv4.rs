//! Requests as AWS's services want them: signed with Signature Version 4, whatever the bot's own client signed.
//!
//! Path and query are written in the one form in which they are signed. What is signed of the headers is what AWS asks
//! for: `Host`, the content's, and its own.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use hyper::HeaderMap;
use hyper::header::HeaderName;
use zeroize::Zeroizing;

use super::exchange::Outgoing;
use super::failure::Failure;
use super::headers;
use crate::config::SigV4;
use crate::http::Address;

/// Of a signature; the bot's own are left out. So are those of S3's sessions, which are credentials of another kind.
pub static OF_SIGNATURES: [HeaderName; 5] = [
    HeaderName::from_static("x-amz-date"),
    CONTENT_SHA256,
    SECURITY_TOKEN,
    HeaderName::from_static("x-amz-region-set"),
    HeaderName::from_static("x-amz-s3session-token"),
];
/// Carries the token of temporary credentials.
pub const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The parameters of presigned URLs, of both versions.
const OF_PRESIGNED: [&str; 10] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-content-sha256",
    "awsaccesskeyid",
    "signature",
];

/// Services that take a body whose hash is not signed, and want to be told so in a header.
const UNSIGNED_BODIES: [&str; 4] = ["s3", "s3-object-lambda", "s3-outposts", "s3express"];

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

const CHUNKS: &str = "each chunk of the body is signed with the bot's own key, which means nothing here: have its client \
     send X-Amz-Content-Sha256 as UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER or the body's SHA-256";
const NO_HASH: &str =
    "X-Amz-Content-Sha256 is neither a SHA-256 nor a word that this service knows";
const NOT_TEXT: &str = "a header that is signed is not UTF-8";

/// Who signs.
pub struct Keys<'a> {
    pub access_key_id: &'a [u8],
    pub secret_access_key: &'a [u8],
    pub session_token: Option<&'a [u8]>,
}

/// A signed request, but for the session token.
pub struct Signed {
    /// Path and query as they were signed.
    pub target: String,
    /// `Authorization`.
    pub authorization: Zeroizing<String>,
    /// The signature in it, which must not come back.
    pub signature: Zeroizing<String>,
    /// Headers that are no secret.
    pub headers: Vec<(HeaderName, String)>,
}

/// What is signed of a body.
enum Payload {
    /// The hash that the bot's client made. AWS compares it with what comes.
    Hash(String),
    /// Nothing.
    Unsigned,
    /// Nothing; it ends with a checksum.
    UnsignedTrailer,
    /// Its hash, where the body is here.
    OfBody,
}

/// Whether the body must be read first, since its hash is signed and the bot's client did not say it.
pub fn needs_body(sigv4: &SigV4, headers: &HeaderMap) -> bool {
    !takes_unsigned(sigv4) && matches!(payload(sigv4, headers), Ok(Payload::OfBody))
}

fn takes_unsigned(sigv4: &SigV4) -> bool {
    UNSIGNED_BODIES.contains(&sigv4.service.as_str())
}

fn payload(sigv4: &SigV4, headers: &HeaderMap) -> Result<Payload, Failure> {
    let takes_unsigned = takes_unsigned(sigv4);
    let Some(said) = headers.get(CONTENT_SHA256) else {
        return Ok(Payload::OfBody);
    };
    match said.to_str().unwrap_or_default() {
        UNSIGNED if takes_unsigned => Ok(Payload::Unsigned),
        UNSIGNED => Ok(Payload::OfBody),
        UNSIGNED_TRAILER if takes_unsigned => Ok(Payload::UnsignedTrailer),
        hash if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(Payload::Hash(hash.to_ascii_lowercase()))
        }
        said if said.starts_with("STREAMING-") && said != UNSIGNED_TRAILER => {
            Err(Failure::Unsignable(CHUNKS))
        }
        _ => Err(Failure::Unsignable(NO_HASH)),
    }
}

/// Signs what a bot asks of `upstream`; `body` where it is here.
pub fn signed(
    sigv4: &SigV4,
    keys: &Keys<'_>,
    upstream: &Address,
    outgoing: &Outgoing,
    body: Option<&[u8]>,
) -> Result<Signed, Failure> {
    let payload = match (payload(sigv4, &outgoing.headers)?, body) {
        (Payload::Hash(hash), _) => SignableBody::Precomputed(hash),
        (Payload::OfBody, Some(body)) => SignableBody::Bytes(body),
        (Payload::UnsignedTrailer, _) => SignableBody::StreamingUnsignedPayloadTrailer,
        (Payload::Unsigned | Payload::OfBody, _) => SignableBody::UnsignedPayload,
    };
    let mut settings = SigningSettings::default();
    // Paths are in one normal form already, and S3 alone takes them as they are.
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    if takes_unsigned(sigv4) {
        settings.percent_encoding_mode = PercentEncodingMode::Single;
    }
    if takes_unsigned(sigv4) || outgoing.headers.contains_key(CONTENT_SHA256) {
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    }
    let identity = credentials(keys)?.into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(&sigv4.region)
        .name(&sigv4.service)
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .map_err(|_| Failure::Credential(NO_KEYS))?
        .into();
    let target = target(outgoing);
    let sent = headers::to_upstream(&outgoing.headers, &OF_SIGNATURES);
    let request = SignableRequest::new(
        outgoing.method.as_str(),
        format!("{upstream}{target}"),
        of_aws(&sent)?.into_iter(),
        payload,
    );
    let request = request.map_err(|_| Failure::Unsignable(NOT_TEXT))?;
    let signed = sign(request, &params).map_err(|_| Failure::Credential(NO_KEYS))?;
    let (instructions, signature) = signed.into_parts();
    let mut authorization = Zeroizing::default();
    let mut headers = Vec::new();
    for (name, value) in instructions.headers() {
        match HeaderName::try_from(name) {
            Ok(hyper::header::AUTHORIZATION) => authorization = Zeroizing::new(value.to_owned()),
            Ok(name) if name != SECURITY_TOKEN => headers.push((name, value.to_owned())),
            _ => {}
        }
    }
    Ok(Signed {
        target,
        authorization,
        signature: Zeroizing::new(signature),
        headers,
    })
}

const NO_KEYS: &str =
    "the secret's access_key_id, secret_access_key or session_token cannot stand in a header";

fn credentials(keys: &Keys<'_>) -> Result<Credentials, Failure> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Failure::Credential(NO_KEYS)),
    };
    let token = keys.session_token.map(text).transpose()?;
    let (id, key) = (text(keys.access_key_id)?, text(keys.secret_access_key)?);
    Ok(Credentials::new(id, key, token, None, "keyhatch"))
}

/// The path and query in the one form that AWS signs: everything escaped that may be.
pub fn target(outgoing: &Outgoing) -> String {
    let mut text = outgoing.target.escaped();
    let is_of_signature = |name: &str| OF_PRESIGNED.contains(&name.to_ascii_lowercase().as_str());
    let query = outgoing.target.escaped_query_without(is_of_signature);
    if !query.is_empty() {
        text.push('?');
        text.push_str(&query);
    }
    text
}

/// The headers that are signed.
fn of_aws(sent: &HeaderMap) -> Result<Vec<(&str, &str)>, Failure> {
    let is_signed =
        |name: &str| matches!(name, "content-type" | "content-md5") || name.starts_with("x-amz-");
    sent.iter()
        .filter(|(name, _)| is_signed(name.as_str()))
        .map(
            |(name, value)| match std::str::from_utf8(value.as_bytes()) {
                Ok(value) => Ok((name.as_str(), value)),
                Err(_) => Err(Failure::Unsignable(NOT_TEXT)),
            },
        )
        .collect()
}
