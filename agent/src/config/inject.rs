//! `inject` of a route: where the credential goes, and how it is written there.

mod hmac;
mod oauth2;
mod sigv4;

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

pub use hmac::{Algorithm, Encoding, Hmac, Piece, Signed};
pub use oauth2::OAuth2;
pub use sigv4::SigV4;

use super::section::{Section, Value};
use crate::policy::{At, Report, suggest};

/// One place of a request that the credential is put into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inject {
    /// A header.
    Header {
        /// Its name.
        name: HeaderName,
        /// Its value.
        value: Template,
    },
    /// A parameter of the query.
    Query {
        /// Its name, decoded.
        name: String,
        /// Its value, decoded.
        value: Template,
    },
    /// `Authorization: Basic` (RFC 7617).
    Basic {
        /// The user, without a colon.
        user: Template,
        /// The password.
        password: Template,
    },
    /// A signature of the request for AWS.
    SigV4(SigV4),
    /// A signature of the body.
    Hmac(Hmac),
    /// `Authorization: Bearer` with a token that the agent gets.
    OAuth2(OAuth2),
    /// A client certificate, with the fields `certificate` and `private_key` of the secret.
    Mtls,
}

/// A text in which the secret, or fields of it, have places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(pub Vec<Part>);

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Written as it stands.
    Text(String),
    /// The secret, or this field of it.
    Secret(Option<String>),
}

/// Headers that frame the message or belong to the connection: a credential is no such thing.
const NOT_FOR_CREDENTIALS: [&str; 14] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "accept-encoding",
    "content-encoding",
    "content-type",
    "range",
    "if-range",
];

const KINDS: [&str; 7] = [
    "header", "query", "basic", "sigv4", "hmac", "oauth2", "mtls",
];

impl Inject {
    /// The templates in it.
    pub fn templates(&self) -> impl Iterator<Item = &Template> {
        let (one, two) = match self {
            Self::Header { value, .. } | Self::Query { value, .. } => (Some(value), None),
            Self::Basic { user, password } => (Some(user), Some(password)),
            Self::SigV4(_) | Self::Hmac(_) | Self::OAuth2(_) | Self::Mtls => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Whether it uses fields of the secret by their names.
    #[must_use]
    pub fn names_fields(&self) -> bool {
        match self {
            Self::SigV4(_) | Self::OAuth2(_) | Self::Mtls => true,
            _ => self.templates().any(|t| t.secrets().any(|f| f.is_some())),
        }
    }

    fn uses_secret(&self) -> bool {
        self.names_fields()
            || matches!(self, Self::Hmac(_))
            || self.templates().any(|t| t.secrets().next().is_some())
    }
}

impl Template {
    /// Reads `text {secret} text {secret#field}`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, place) = rest.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let inside = place
                .strip_prefix("{secret")
                .and_then(|place| place.split_once('}'));
            let (field, after) = inside.ok_or(PLACES)?;
            parts.push(Part::Secret(match field.strip_prefix('#') {
                None if field.is_empty() => None,
                Some(name) if !name.is_empty() && !name.contains('{') => Some(name.to_owned()),
                _ => return Err(PLACES.into()),
            }));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The parts that stand for the secret: a field's name each, or nothing for the whole.
    pub fn secrets(&self) -> impl Iterator<Item = Option<&str>> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Secret(field) => Some(field.as_deref()),
        })
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Secret(_) => None,
        })
    }
}

const PLACES: &str = "the places in it are {secret} and {secret#field}";

/// One table, or a list of them.
pub(super) fn read(value: &Value<'_>, report: &mut Report) -> Option<Vec<Inject>> {
    let tables = if value.is_list() {
        value.list(report)?
    } else {
        vec![*value]
    };
    let before = report.errors.len();
    let mut all: Vec<Inject> = Vec::new();
    for table in &tables {
        let Some(inject) = table
            .section("`inject`", report)
            .and_then(|section| read_one(&section, report))
        else {
            continue;
        };
        let places = inject.places();
        let taken = |place: &&String| all.iter().any(|other| other.places().contains(place));
        if let Some(place) = places.iter().find(taken) {
            let text = format!("`inject` has {place} twice, remove one");
            report.error(&table.place(), text);
        }
        all.push(inject);
    }
    check_signed(&all, value, report);
    if report.errors.len() == before && !all.iter().any(Inject::uses_secret) {
        let text = "`inject` uses no secret, write {secret} where it goes";
        report.error(&value.place(), text);
    }
    (report.errors.len() == before).then_some(all)
}

/// AWS counts the query and all its own headers as signed.
fn check_signed(all: &[Inject], value: &Value<'_>, report: &mut Report) {
    let is_amz = |name: &HeaderName| name.as_str().starts_with("x-amz-");
    let is_signed = |inject: &Inject| match inject {
        Inject::Query { .. } => true,
        other => other.headers().iter().any(is_amz),
    };
    if all.iter().any(|inject| matches!(inject, Inject::SigV4(_)))
        && let Some(other) = all.iter().find(|inject| is_signed(inject))
    {
        let place = other.places().join(" and ");
        let text =
            format!("`sigv4` signs what the bot sends, which {place} is no part of, remove one");
        report.error(&value.place(), text);
    }
}

impl Inject {
    /// The headers that it fills.
    #[must_use]
    pub fn headers(&self) -> Vec<HeaderName> {
        match self {
            Self::Header { name, .. } => vec![name.clone()],
            Self::Basic { .. } | Self::SigV4(_) | Self::OAuth2(_) => vec![AUTHORIZATION],
            Self::Hmac(hmac) => hmac.headers().cloned().collect(),
            Self::Query { .. } | Self::Mtls => Vec::new(),
        }
    }

    /// What of a request it fills, for messages.
    fn places(&self) -> Vec<String> {
        match self {
            Self::Query { name, .. } => vec![format!("query parameter {name:?}")],
            Self::Mtls => vec!["a client certificate".into()],
            other => {
                let headers = other.headers();
                let header = |name: &HeaderName| format!("header {:?}", name.as_str());
                headers.iter().map(header).collect()
            }
        }
    }
}

fn read_one(section: &Section<'_>, report: &mut Report) -> Option<Inject> {
    let mut kinds = section.values().filter(|value| KINDS.contains(&value.key));
    let Some(kind) = kinds.next() else {
        let given = section.values().next().map_or("", |value| value.key);
        let text = format!("`inject` says not where to, {}", suggest(given, KINDS));
        report.error(&section.place(), text);
        return None;
    };
    let value = |report: &mut Report| {
        let value = section.required("value", "\"Bearer {secret}\"", report)?;
        template(&value.string(report)?, "value", report)
    };
    match kind.key {
        "header" => {
            section.check_keys(&["header", "value"], report);
            let name = header_name("header", &kind.string(report)?, report);
            let value = value(report)?;
            if !value
                .texts()
                .all(|text| HeaderValue::from_str(text).is_ok())
            {
                let text = "`value` has characters that no header can hold, leave them out";
                report.error(&section.place_of("value"), text);
                return None;
            }
            Some(Inject::Header { name: name?, value })
        }
        "query" => {
            section.check_keys(&["query", "value"], report);
            let At { value: name, place } = kind.string(report)?;
            if name.is_empty() {
                report.error(&place, "`query` is empty, name the parameter");
                return None;
            }
            Some(Inject::Query {
                name: name.to_owned(),
                value: value(report)?,
            })
        }
        other => {
            section.check_keys(&[other], report);
            match other {
                "sigv4" => sigv4::read(&kind, report).map(Inject::SigV4),
                "hmac" => hmac::read(&kind, report).map(Inject::Hmac),
                "oauth2" => oauth2::read(&kind, report).map(Inject::OAuth2),
                "mtls" => {
                    kind.section("`mtls`", report)?.check_keys(&[], report);
                    Some(Inject::Mtls)
                }
                _ => basic(kind, report),
            }
        }
    }
}

fn basic(value: Value<'_>, report: &mut Report) -> Option<Inject> {
    let section = value.section("`basic`", report)?;
    section.check_keys(&["user", "password"], report);
    let mut part = |key: &str, example: &str| {
        let value = section.required(key, example, report)?;
        template(&value.string(report)?, key, report)
    };
    let user = part("user", "\"{secret#user}\"");
    let password = part("password", "\"{secret#password}\"");
    let user = user?;
    if user.texts().any(|text| text.contains(':')) {
        let text = "`user` has a colon, which separates it from the password, leave it out";
        report.error(&section.place_of("user"), text);
        return None;
    }
    Some(Inject::Basic {
        user,
        password: password?,
    })
}

fn template(text: &At<&str>, key: &str, report: &mut Report) -> Option<Template> {
    Template::parse(text.value)
        .map_err(|why| {
            let problem = format!("`{key}` is {:?}, {why}", text.value);
            report.error(&text.place, problem);
        })
        .ok()
}

fn header_name(key: &str, text: &At<&str>, report: &mut Report) -> Option<HeaderName> {
    let problem = match text.value.parse::<HeaderName>() {
        Ok(name) if NOT_FOR_CREDENTIALS.contains(&name.as_str()) => {
            "it belongs to the message or the connection, and cannot carry a credential"
        }
        Ok(name) => return Some(name),
        Err(_) => "no header has such a name, write one as \"authorization\"",
    };
    report.error(
        &text.place,
        format!("`{key}` is {:?}, {problem}", text.value),
    );
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_places_for_the_secret_and_its_fields() {
        let template = Template::parse("Bearer {secret}, {secret#a b}!").unwrap();
        assert_eq!(
            template.0,
            [
                Part::Text("Bearer ".into()),
                Part::Secret(None),
                Part::Text(", ".into()),
                Part::Secret(Some("a b".into())),
                Part::Text("!".into()),
            ]
        );
        for bad in [
            "{",
            "}",
            "{secret",
            "{secrets}",
            "{secret#}",
            "{key}",
            "{secret}}",
            "{{secret}",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
