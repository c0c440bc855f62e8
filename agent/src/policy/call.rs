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
        })
    }

    /// Whether it stands for this call; `path` is in its normal form, decoded.
    #[must_use]
    pub fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|own| own == method) && self.paths.matches(path)
    }

    /// Whether it stands for every call that `other` stands for.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.method.is_none() || self.method == other.method) && self.paths.covers(&other.paths)
    }
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
