//! What may be asked of a route: a method, and a pattern over paths in their one normal form.

use std::fmt;

use super::pattern::{Pattern, PatternError};

/// Methods that no route passes on: `TRACE` echoes the credential by design, `CONNECT` is for proxies.
pub const FORBIDDEN_METHODS: [&str; 2] = ["TRACE", "CONNECT"];

/// `METHOD /path`, with `*` for any method and the wildcards of [`Pattern`] in the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPattern {
    method: Option<Box<str>>,
    paths: Pattern,
    /// The same over folded paths.
    folded: Pattern,
}

/// Why a text is not a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No method, or no path.
    #[error("write a method and a path, as \"GET /v1/models\"")]
    Shape,
    /// Not a word in capitals.
    #[error("a method is a word in capitals such as GET, or * for any")]
    Method,
    /// One that no route passes on.
    #[error("no route passes TRACE or CONNECT on, leave it out")]
    Forbidden,
    /// Something that no path holds once it is normalised.
    #[error(
        "no path is like that once it is decoded: it begins with a slash, has no empty, . or .. segment and no ; \\ ? # or %, write it as \"/v1/models/**\""
    )]
    Path,
    /// The pattern itself.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl CallPattern {
    /// Reads `METHOD /path/pattern`.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        let (method, path) = text.split_once(' ').ok_or(CallError::Shape)?;
        let method = match method {
            "*" => None,
            word if FORBIDDEN_METHODS.contains(&word) => return Err(CallError::Forbidden),
            word if !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') =>
            {
                Some(word.into())
            }
            _ => return Err(CallError::Method),
        };
        let segments = path.strip_prefix('/').ok_or(CallError::Path)?;
        let odd = |c: char| c.is_control() || matches!(c, ';' | '\\' | '?' | '#' | '%' | ' ');
        let whole = segments.strip_suffix('/').unwrap_or(segments);
        let empty = |segment: &str| matches!(segment, "" | "." | "..");
        if segments.contains(odd) || !whole.is_empty() && whole.split('/').any(empty) {
            return Err(CallError::Path);
        }
        Ok(Self {
            method,
            paths: Pattern::parse(path)?,
            folded: Pattern::parse(&folded(path))?,
        })
    }

    /// Whether it stands for this call; `path` is in its normal form, decoded.
    #[must_use]
    pub fn matches(&self, method: &str, path: &str) -> bool {
        self.is_of(method) && self.paths.matches(path)
    }

    /// Whether it stands for this call, or for one that some server takes for the same: paths in any case, with a slash
    /// or spaces at the end. For what bars a call; nothing is allowed so.
    #[must_use]
    pub fn may_mean(&self, method: &str, path: &str) -> bool {
        self.is_of(method) && (self.paths.matches(path) || self.folded.matches(&folded(path)))
    }

    /// Whether there is a call that both may mean.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let one = self.method.is_none() || other.method.is_none() || self.method == other.method;
        one && self.folded.meets(&other.folded)
    }

    fn is_of(&self, method: &str) -> bool {
        self.method.as_deref().is_none_or(|own| own == method)
    }

    /// Whether it stands for every call that `other` stands for.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.method.is_none() || self.method == other.method) && self.paths.covers(&other.paths)
    }
}

fn folded(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(str::trim).collect();
    let path = segments.join("/").to_lowercase();
    let path = path.trim_end_matches('/');
    if path.is_empty() { "/" } else { path }.to_owned()
}

impl fmt::Display for CallPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.method.as_deref().unwrap_or("*"),
            self.paths
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_a_method_and_a_path() {
        let models = CallPattern::parse("GET /v1/models/**").unwrap();
        assert!(models.matches("GET", "/v1/models/gpt/x"));
        for (method, path) in [
            ("POST", "/v1/models/a"),
            ("get", "/v1/models/a"),
            ("GET", "/v1/modelsx"),
        ] {
            assert!(!models.matches(method, path), "{method} {path}");
        }
        let any = CallPattern::parse("* /**").unwrap();
        assert!(any.matches("DELETE", "/a/b/") && any.covers(&models) && !models.covers(&any));
        assert!(CallPattern::parse("GET /").unwrap().matches("GET", "/"));
        assert_eq!(any.to_string(), "* /**");
    }

    #[test]
    fn what_bars_a_call_is_not_passed_by_with_a_slash_or_a_capital() {
        let pay = CallPattern::parse("POST /Payouts/").unwrap();
        for path in [
            "/payouts",
            "/payouts/",
            "/PAYOUTS",
            "/payouts ",
            "/payouts /",
            "/ payouts//",
        ] {
            assert!(pay.may_mean("POST", path), "{path}");
        }
        assert!(!pay.may_mean("GET", "/payouts") && !pay.may_mean("POST", "/payouts/1"));
        assert!(!pay.matches("POST", "/payouts"));
        let below = CallPattern::parse("* /payouts/*").unwrap();
        assert!(below.may_mean("GET", "/payouts/") && below.may_mean("GET", "/Payouts/1/"));
        assert!(CallPattern::parse("GET /").unwrap().may_mean("GET", "/"));
        assert!(pay.meets(&CallPattern::parse("* /p*").unwrap()) && !pay.meets(&below));
    }

    #[test]
    fn what_no_call_can_be_is_refused() {
        for (text, why) in [
            ("/v1", CallError::Shape),
            ("get /v1", CallError::Method),
            (" /v1", CallError::Method),
            ("TRACE /v1", CallError::Forbidden),
            ("GET v1", CallError::Path),
            ("GET /v1//x", CallError::Path),
            ("GET /v1/../x", CallError::Path),
            ("GET /v1/%41", CallError::Path),
            ("GET /v1?x=1", CallError::Path),
            ("GET /a;b", CallError::Path),
        ] {
            assert_eq!(CallPattern::parse(text), Err(why), "{text}");
        }
    }
}
