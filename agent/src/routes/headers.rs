//! Which headers go on. A request is built anew: what the bot says of the connection, of the host, of another method
//! or path, or where the credential goes, stays behind.

use std::borrow::Cow;

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

/// What ends at a connection (RFC 9110 section 7.6.1), or is said anew on the next.
const OF_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("alt-svc"),
];

/// What of a bot's own request is not passed on besides.
const NOT_OF_BOTS: [&str; 29] = [
    // Said anew.
    "host",
    "content-length",
    "expect",
    "trailer",
    // Another method or path than the policy has seen.
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-forwarded-uri",
    // Another host or client.
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-host",
    // Credentials of the bot's own: a placeholder that the upstream would refuse, or someone else's account there.
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-goog-api-key",
    "private-token",
    // A part or a compressed answer cannot be searched for the secret.
    "accept-encoding",
    "range",
    "if-range",
    "sec-websocket-extensions",
];

/// What is ours to say: an answer of an upstream is told from our own by them.
const OURS: &str = "keyhatch-";

/// The headers of a request to the upstream, but for its host and the credential.
pub fn to_upstream(of_bot: &HeaderMap, injected: &[HeaderName]) -> HeaderMap {
    let named = named_by_connection(of_bot);
    let stays_behind = |name: &HeaderName| {
        // Gateways of CGI's kind take `_` and `-` for the same.
        let plain = match name.as_str() {
            odd if odd.contains('_') => Cow::Owned(odd.replace('_', "-")),
            plain => Cow::Borrowed(plain),
        };
        OF_CONNECTION.iter().any(|other| *other == *plain)
            || NOT_OF_BOTS.contains(&&*plain)
            || plain.starts_with(OURS)
            || named.iter().any(|other| *other == *plain)
            || injected.iter().any(|other| *other == *plain)
    };
    let mut headers: HeaderMap = of_bot
        .iter()
        .filter(|(name, _)| !stays_behind(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    if takes_trailers(of_bot) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    headers
}

/// Leaves what an upstream says of its connection, or in our name.
pub fn from_upstream(headers: &mut HeaderMap) {
    // The length is the chunks' to say (RFC 9112 section 6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let named = named_by_connection(headers);
    let leaves: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            OF_CONNECTION.contains(name)
                || name.as_str().starts_with(OURS)
                || named.iter().any(|other| *other == name.as_str())
        })
        .cloned()
        .collect();
    for name in leaves {
        headers.remove(name);
    }
}

/// Whether a body is in a form that cannot be searched: compressed in itself, or for the transfer.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let other_than = |name: HeaderName, plain: &[&str]| {
        let mut words = headers
            .get_all(name)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(|word| word.trim_ascii().to_ascii_lowercase());
        words.any(|word| !word.is_empty() && !plain.iter().any(|p| p.as_bytes() == word))
    };
    other_than(header::CONTENT_ENCODING, &["identity"])
        || other_than(header::TRANSFER_ENCODING, &["identity", "chunked"])
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    words(headers, header::TE).any(|word| word.eq_ignore_ascii_case("trailers"))
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    words(headers, header::CONNECTION)
        .map(str::to_ascii_lowercase)
        // Nothing that says what the body is can be made to vanish.
        .filter(|word| !word.starts_with("content-"))
        .collect()
}

fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn only_end_to_end_headers_go_on() {
        let of_bot = headers(&[
            ("Host", "elsewhere"),
            ("Connection", "close, X-Secret-Hop"),
            ("X-Secret-Hop", "1"),
            ("Authorization", "Bearer placeholder"),
            ("X_Api_Key", "mine"),
            ("X_Injected", "mine"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Forwarded-Host", "elsewhere"),
            ("Api-Key", "mine"),
            ("Cookie", "session=mine"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("Range", "bytes=0-1"),
            ("Accept-Encoding", "gzip"),
            ("Keyhatch-Route", "x"),
            ("Content-Type", "application/json"),
            ("X-Kept", "1"),
        ]);
        let injected = [HeaderName::from_static("x-injected")];
        let sent = to_upstream(&of_bot, &injected);
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept-encoding", "content-type", "x-kept"]);
        assert_eq!(sent["accept-encoding"], "identity");
    }

    #[test]
    fn trailers_are_asked_for_where_the_bot_takes_them() {
        let sent = to_upstream(&headers(&[("TE", "gzip;q=0.1, trailers")]), &[]);
        assert_eq!(
            (&sent["te"], &sent["connection"]),
            (&"trailers".parse().unwrap(), &"te".parse().unwrap())
        );
    }

    #[test]
    fn an_upstream_speaks_neither_of_its_connection_nor_for_us() {
        let mut answer = headers(&[
            ("Connection", "keep-alive, X-Hop, Content-Length"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Keyhatch-Route", "forged"),
            ("Content-Length", "3"),
            ("Set-Cookie", "a=b"),
        ]);
        from_upstream(&mut answer);
        let mut names: Vec<&str> = answer.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "set-cookie"]);
    }

    #[test]
    fn compression_is_seen() {
        for (name, value, encoded) in [
            ("content-encoding", "identity", false),
            ("content-encoding", "", false),
            ("content-encoding", "GZIP", true),
            ("content-encoding", "identity, br", true),
            ("transfer-encoding", "chunked", false),
            ("transfer-encoding", "gzip, chunked", true),
        ] {
            assert_eq!(is_encoded(&headers(&[(name, value)])), encoded, "{value}");
        }
    }
}
