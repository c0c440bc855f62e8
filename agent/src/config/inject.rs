//! `inject` of a route: where the credential goes, and how it is written there.

use hyper::header::{HeaderName, HeaderValue};

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

const KINDS: [&str; 3] = ["header", "query", "basic"];
const LATER_KINDS: [&str; 4] = ["sigv4", "hmac", "oauth2", "mtls"];

impl Inject {
    /// The templates in it.
    pub fn templates(&self) -> impl Iterator<Item = &Template> {
        let (one, two) = match self {
            Self::Header { value, .. } | Self::Query { value, .. } => (value, None),
            Self::Basic { user, password } => (user, Some(password)),
        };
        std::iter::once(one).chain(two)
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
        if all.iter().any(|other| other.place() == inject.place()) {
            let text = format!("`inject` has {} twice, remove one", inject.place());
            report.error(&table.place(), text);
        }
        all.push(inject);
    }
    let uses = |inject: &Inject| inject.templates().any(|t| t.secrets().next().is_some());
    if report.errors.len() == before && !all.iter().any(uses) {
        let text = "`inject` uses no secret, write {secret} where it goes";
        report.error(&value.place(), text);
    }
    (report.errors.len() == before).then_some(all)
}

impl Inject {
    /// What of a request it fills, for messages.
    fn place(&self) -> String {
        match self {
            Self::Header { name, .. } => format!("header {:?}", name.as_str()),
            Self::Query { name, .. } => format!("query parameter {name:?}"),
            Self::Basic { .. } => "header \"authorization\"".into(),
        }
    }
}

fn read_one(section: &Section<'_>, report: &mut Report) -> Option<Inject> {
    let mut kinds = section
        .values()
        .filter(|value| KINDS.contains(&value.key) || LATER_KINDS.contains(&value.key));
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
            section.check_keys(&["header", "value"], &LATER_KINDS, report);
            let name = header_name(&kind.string(report)?, report);
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
            section.check_keys(&["query", "value"], &LATER_KINDS, report);
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
        _ => {
            section.check_keys(&["basic"], &LATER_KINDS, report);
            basic(kind, report)
        }
    }
}

fn basic(value: Value<'_>, report: &mut Report) -> Option<Inject> {
    if LATER_KINDS.contains(&value.key) {
        return None;
    }
    let section = value.section("`basic`", report)?;
    section.check_keys(&["user", "password"], &[], report);
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

fn header_name(text: &At<&str>, report: &mut Report) -> Option<HeaderName> {
    let problem = match text.value.parse::<HeaderName>() {
        Ok(name) if NOT_FOR_CREDENTIALS.contains(&name.as_str()) => {
            "it belongs to the message or the connection, and cannot carry a credential"
        }
        Ok(name) => return Some(name),
        Err(_) => "no header has such a name, write one as \"authorization\"",
    };
    report.error(
        &text.place,
        format!("`header` is {:?}, {problem}", text.value),
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
