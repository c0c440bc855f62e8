//! Where a call goes at the upstream: the path in one normal form, and the query.
//!
//! The policy sees the same path that the upstream gets. Whatever two servers might read in two ways is refused
//! instead of repaired: an empty, `.` or `..` segment, an encoded slash, a backslash, a `;`, a control character,
//! a `%` that would be an escape once more.

use std::fmt::Write;

use keyhatch_protocol::percent_decode;

/// A path and query that an upstream is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The path, decoded: what rules are about and records say.
    pub path: String,
    /// The query as it came.
    pub query: Option<String>,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// There is no path at all.
    #[error("a route is called as /v1/use/ROUTE/PATH")]
    Missing,
    /// An escape without two digits.
    #[error("a percent escape in the path is cut short")]
    Escape,
    /// Not text.
    #[error("the path is not UTF-8 once it is decoded")]
    NotText,
    /// A segment that is none.
    #[error("the path has an empty, . or .. segment")]
    Segment,
    /// Something that servers read in different ways.
    #[error(
        "the path has an encoded slash, a backslash, a ; or a control character, or is encoded twice"
    )]
    Ambiguous,
}

impl Target {
    /// Reads what follows the route's name.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, BadPath> {
        let segments = path.strip_prefix('/').ok_or(BadPath::Missing)?;
        let mut decoded = String::with_capacity(path.len());
        let last = segments.split('/').count() - 1;
        for (at, segment) in segments.split('/').enumerate() {
            let text = decode(segment)?;
            // A slash at the end is a part of the path.
            if matches!(&*text, "." | "..") || text.is_empty() && at < last {
                return Err(BadPath::Segment);
            }
            decoded.push('/');
            decoded.push_str(&text);
        }
        Ok(Self {
            path: decoded,
            query: query.map(str::to_owned),
        })
    }

    /// The path as it is sent: what stands for itself in a path does, all else is escaped.
    #[must_use]
    pub fn encoded(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for byte in self.path.bytes() {
            if byte == b'/' || is_path_character(byte) {
                out.push(char::from(byte));
            } else {
                escape(byte, &mut out);
            }
        }
        out
    }

    /// The path with everything escaped but what no server escapes.
    #[must_use]
    pub fn escaped(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for byte in self.path.bytes() {
            if byte == b'/' {
                out.push('/');
            } else {
                escape_reserved(byte, &mut out);
            }
        }
        out
    }

    /// The query without the parameters of these names, each name and value escaped like that.
    #[must_use]
    pub fn escaped_query_without<'a>(&self, names: impl Fn(&str) -> bool + 'a) -> String {
        let query = self.query_without(names).replace('+', " ");
        let mut out = String::with_capacity(query.len());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let before = if out.is_empty() { "" } else { "&" };
            out.push_str(before);
            for (at, part) in pair.splitn(2, '=').enumerate() {
                if at > 0 {
                    out.push('=');
                }
                let decoded = percent_decode(part);
                let decoded = decoded.as_deref().unwrap_or(part.as_bytes());
                decoded
                    .iter()
                    .for_each(|byte| escape_reserved(*byte, &mut out));
            }
        }
        out
    }

    /// The query without the parameters of these names, in whichever way they are written.
    #[must_use]
    pub fn query_without<'a>(&self, names: impl Fn(&str) -> bool + 'a) -> String {
        let query = self.query.as_deref().unwrap_or_default();
        // Some servers end a parameter at a `;` too.
        let is_injected = |pair: &str| {
            pair.split(';').any(|part| {
                let name = part.split('=').next().unwrap_or_default();
                let name = name.replace('+', " ");
                percent_decode(&name).is_none_or(|name| {
                    let name = String::from_utf8_lossy(&name);
                    names(name.trim())
                })
            })
        };
        let kept: Vec<&str> = query.split('&').filter(|pair| !is_injected(pair)).collect();
        kept.join("&")
    }
}

/// One segment, decoded.
fn decode(segment: &str) -> Result<String, BadPath> {
    let bytes = percent_decode(segment).ok_or(BadPath::Escape)?;
    let text = String::from_utf8(bytes.into_owned()).map_err(|_| BadPath::NotText)?;
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | ';');
    if text.contains(odd)
        || text.contains('%')
            && percent_decode(&text).is_some_and(|again| *again != *text.as_bytes())
    {
        return Err(BadPath::Ambiguous);
    }
    Ok(text)
}

/// `pchar` of RFC 3986 section 3.3, but for the `;` that no path here holds.
fn is_path_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

/// Unreserved characters of RFC 3986 stand for themselves.
pub(super) fn escape_reserved(byte: u8, out: &mut String) {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        out.push(char::from(byte));
    } else {
        escape(byte, out);
    }
}

fn escape(byte: u8, out: &mut String) {
    // Writing to a string does not fail.
    let _ = write!(out, "%{byte:02X}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<Target, BadPath> {
        Target::parse(path, None)
    }

    #[test]
    fn one_normal_form() {
        for (given, path, sent) in [
            ("/v1/models", "/v1/models", "/v1/models"),
            ("/", "/", "/"),
            ("/v1/%6dodels/", "/v1/models/", "/v1/models/"),
            ("/a%20b/%C3%A9", "/a b/é", "/a%20b/%C3%A9"),
            ("/x:verb@2,(a)", "/x:verb@2,(a)", "/x:verb@2,(a)"),
            ("/a%3Fb%23c", "/a?b#c", "/a%3Fb%23c"),
            ("/100%25", "/100%", "/100%25"),
            ("/...", "/...", "/..."),
        ] {
            let target = parse(given).unwrap();
            assert_eq!(
                (target.path.as_str(), target.encoded().as_str()),
                (path, sent)
            );
            assert_eq!(parse(sent).unwrap(), target, "its own form");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (path, why) in [
            ("", BadPath::Missing),
            ("v1", BadPath::Missing),
            ("//v1", BadPath::Segment),
            ("/v1//x", BadPath::Segment),
            ("/v1/../x", BadPath::Segment),
            ("/v1/%2e%2E/x", BadPath::Segment),
            ("/v1/.%2e", BadPath::Segment),
            ("/v1/./x", BadPath::Segment),
            ("/v1%2fx", BadPath::Ambiguous),
            ("/v1%5C..%5Cx", BadPath::Ambiguous),
            ("/v1\\x", BadPath::Ambiguous),
            ("/v1/..;/x", BadPath::Ambiguous),
            ("/v1/%252e%252e/x", BadPath::Ambiguous),
            ("/v1%252fx", BadPath::Ambiguous),
            ("/v1%00", BadPath::Ambiguous),
            ("/v1%0d%0aHost:x", BadPath::Ambiguous),
            ("/v1%C2%85", BadPath::Ambiguous),
            ("/v1%ff", BadPath::NotText),
            ("/v1%c0%ae", BadPath::NotText),
            ("/v1%2", BadPath::Escape),
            ("/v1%zz", BadPath::Escape),
        ] {
            assert_eq!(parse(path), Err(why), "{path}");
        }
    }

    #[test]
    fn everything_that_may_be_is_escaped_for_a_signature() {
        let target = Target::parse("/b/a=b%20(c)~/é+", Some("acl&a=b%2Fc+d&x-a=1&k=a=b&%zz=;"));
        let target = target.unwrap();
        assert_eq!(target.escaped(), "/b/a%3Db%20%28c%29~/%C3%A9%2B");
        let query = target.escaped_query_without(|name| name == "x-a");
        assert_eq!(query, "acl&a=b%2Fc%20d&k=a%3Db");
    }

    #[test]
    fn injected_parameters_of_the_bots_are_left_out() {
        let target = |query: &str| Target {
            path: "/".into(),
            query: Some(query.into()),
        };
        let without = |query: &str| target(query).query_without(|name| name == "key");
        for (query, kept) in [
            ("a=1&b=%20", "a=1&b=%20"),
            ("key=x&a=1", "a=1"),
            ("a=1&k%65y=x&key", "a=1"),
            ("a=1;key=x&b", "b"),
            ("%zz=1&b", "b"),
            ("keys=1", "keys=1"),
        ] {
            assert_eq!(without(query), kept, "{query}");
        }
    }
}
