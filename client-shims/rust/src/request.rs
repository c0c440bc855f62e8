//! The requests of the native API, as bytes. They hold names and versions, never values.

use std::fmt::Write as _;
use std::time::Duration;

use keyhatch_protocol::{BatchRequest, MAX_VALUE, Name, OCTET_STREAM, split_field};

use crate::Error;

/// JSON escapes make at most six bytes of one; the rest of the document is small.
const MAX_JSON_VALUE: usize = 6 * MAX_VALUE + 16 * 1024;
/// A page of names.
const MAX_PAGE: usize = 4 * 1024 * 1024;
const MAX_SMALL: usize = 1024 * 1024;
const MAX_BATCH_BODY: usize = keyhatch_protocol::MAX_BATCH * MAX_JSON_VALUE;

const JSON: &str = "application/json";

/// Which value of which secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    name: Name,
    field: Option<String>,
    version: Option<String>,
}

impl Wanted {
    /// The current value of `NAME`, or of one field of it: `NAME#field`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, field) = split_field(text);
        Ok(Self {
            name: parse_name(name)?,
            field: field.map(Into::into),
            version: None,
        })
    }

    /// One field of a value that is a JSON object.
    #[must_use]
    pub fn field(self, field: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..self
        }
    }

    /// The value before the current one, which is kept for the grace time of a rotation.
    #[must_use]
    pub fn previous(self) -> Self {
        self.version("previous")
    }

    /// The value with this version id, as far as it is still kept.
    #[must_use]
    pub fn version(self, version: impl Into<String>) -> Self {
        Self {
            version: Some(version.into()),
            ..self
        }
    }

    /// The secret's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn target(&self) -> String {
        let mut target = Target::new(format!("/v1/secrets/{}", self.name));
        if let Some(version) = &self.version {
            target.add("version", version);
        }
        if let Some(field) = &self.field {
            target.add("field", field);
        }
        target.text
    }
}

impl From<Name> for Wanted {
    fn from(name: Name) -> Self {
        Self {
            name,
            field: None,
            version: None,
        }
    }
}

pub(crate) fn parse_name(text: &str) -> Result<Name, Error> {
    Name::parse(text).map_err(|cause| Error::Name {
        name: text.into(),
        cause,
    })
}

/// One request, ready to send.
pub(crate) struct Request {
    pub bytes: Vec<u8>,
    /// The largest body that its answer may have.
    pub limit: usize,
    /// How much longer than usual the answer may take.
    pub wait: Duration,
    /// A 503 is what was asked for, not a reason to ask again.
    pub takes_503: bool,
}

impl Request {
    pub(crate) fn value(wanted: &Wanted) -> Self {
        Self::get(&wanted.target(), OCTET_STREAM, "", MAX_VALUE)
    }

    pub(crate) fn document(wanted: &Wanted) -> Self {
        Self::get(&wanted.target(), JSON, "", MAX_JSON_VALUE)
    }

    /// The value once it is another one than `version`, or 304 after `wait`.
    pub(crate) fn change(wanted: &Wanted, version: &str, wait: Duration) -> Result<Self, Error> {
        // What an entity tag can hold (RFC 9110, section 8.8.3), so that no version can add a header.
        if !version
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"')
        {
            return Err(Error::Input("this is not a version that an agent gives"));
        }
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let headers = format!("If-None-Match: \"{version}\"\r\nPrefer: wait={seconds}\r\n");
        let mut request = Self::get(&wanted.target(), OCTET_STREAM, &headers, MAX_VALUE);
        request.wait = Duration::from_secs(seconds);
        Ok(request)
    }

    pub(crate) fn list(prefix: &str, after: Option<&str>) -> Self {
        let mut target = Target::new("/v1/secrets".into());
        target.add("prefix", prefix);
        if let Some(after) = after {
            target.add("after", after);
        }
        Self::get(&target.text, JSON, "", MAX_PAGE)
    }

    pub(crate) fn batch(names: &[&str]) -> Result<Self, Error> {
        let names = names.iter().copied().map(String::from).collect();
        let body = serde_json::to_vec(&BatchRequest { names })
            .map_err(|_| Error::Input("these names cannot be asked for"))?;
        let mut bytes = format!(
            "POST /v1/batch HTTP/1.1\r\nHost: keyhatch\r\nAccept: {JSON}\r\nContent-Type: {JSON}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        Ok(Self {
            bytes,
            limit: MAX_BATCH_BODY,
            wait: Duration::ZERO,
            takes_503: false,
        })
    }

    pub(crate) fn rotate(name: &Name) -> Self {
        let bytes = format!(
            "POST /v1/rotate/{name} HTTP/1.1\r\nHost: keyhatch\r\nAccept: {JSON}\r\nContent-Length: 0\r\n\r\n"
        )
        .into_bytes();
        Self {
            bytes,
            limit: MAX_PAGE,
            wait: Duration::ZERO,
            takes_503: false,
        }
    }

    pub(crate) fn watch(names: &[Name], last_id: Option<&str>) -> Self {
        let mut target = Target::new("/v1/watch".into());
        for name in names {
            target.add("name", name.as_str());
        }
        let resume = last_id.map(|id| format!("Last-Event-ID: {id}\r\n"));
        let resume = resume.as_deref().unwrap_or_default();
        Self::get(&target.text, "text/event-stream", resume, MAX_SMALL)
    }

    pub(crate) fn whoami() -> Self {
        Self::get("/v1/whoami", JSON, "", MAX_SMALL)
    }

    pub(crate) fn health() -> Self {
        Self {
            takes_503: true,
            ..Self::get("/v1/health", JSON, "", MAX_SMALL)
        }
    }

    fn get(target: &str, accept: &str, headers: &str, limit: usize) -> Self {
        let bytes =
            format!("GET {target} HTTP/1.1\r\nHost: keyhatch\r\nAccept: {accept}\r\n{headers}\r\n");
        Self {
            bytes: bytes.into_bytes(),
            limit,
            wait: Duration::ZERO,
            takes_503: false,
        }
    }
}

/// A path with a query.
struct Target {
    text: String,
    separator: char,
}

impl Target {
    fn new(path: String) -> Self {
        Self {
            text: path,
            separator: '?',
        }
    }

    fn add(&mut self, key: &str, value: &str) {
        self.text.push(self.separator);
        self.separator = '&';
        self.text.push_str(key);
        self.text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                self.text.push(byte.into());
            } else {
                // Writing to a String cannot fail.
                let _ = write!(self.text, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(request: Request) -> String {
        String::from_utf8(request.bytes).unwrap()
    }

    #[test]
    fn a_value_is_asked_for_as_its_bytes() {
        let wanted = Wanted::parse("app/db#pass word").unwrap().previous();
        assert_eq!(
            text(Request::value(&wanted)),
            "GET /v1/secrets/app/db?version=previous&field=pass%20word HTTP/1.1\r\nHost: keyhatch\r\n\
             Accept: application/octet-stream\r\n\r\n"
        );
    }

    #[test]
    fn a_long_poll_waits_whole_seconds_and_takes_only_versions() {
        let wanted = Wanted::parse("a").unwrap();
        let request = Request::change(&wanted, "3-ab", Duration::from_millis(1500)).unwrap();
        assert_eq!(request.wait, Duration::from_secs(2));
        assert!(text(request).contains("\r\nIf-None-Match: \"3-ab\"\r\nPrefer: wait=2\r\n"));
        for bad in ["a\r\nX: y", "a\"", "a b", "\u{e9}"] {
            assert!(Request::change(&wanted, bad, Duration::ZERO).is_err());
        }
    }

    #[test]
    fn a_watch_names_each_secret_and_resumes() {
        let names = [Name::parse("a+b").unwrap(), Name::parse("c/d").unwrap()];
        let request = text(Request::watch(&names, Some("7")));
        assert!(request.starts_with("GET /v1/watch?name=a%2Bb&name=c/d HTTP/1.1\r\n"));
        assert!(request.ends_with("\r\nLast-Event-ID: 7\r\n\r\n"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_the_request_line(prefix in any::<String>(), field in any::<String>()) {
            let wanted = Wanted::parse("a").unwrap().field(field);
            for request in [Request::list(&prefix, Some(&prefix)), Request::value(&wanted)] {
                let request = text(request);
                prop_assert!(request.is_ascii());
                prop_assert_eq!(request.lines().count(), 4);
                prop_assert_eq!(request.lines().next().unwrap().split(' ').count(), 3);
            }
        }
    }
}
