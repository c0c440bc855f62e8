//! `[[route]]`: an upstream that bots reach with a secret they do not see.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use keyhatch_protocol::{Name, split_field};

use super::bounds::{Condition, RouteLimits, read_conditions, read_limits};
use super::document::Document;
use super::inject::{self, Inject};
use super::section::{self, Section, checked_name, duration};
use super::source::Source;
use super::{Depth, held};
use crate::files::Holds;
use crate::http::{Address, Pin};
use crate::policy::{At, CallPattern, Report, RouteInput, suggest};

/// How long an upstream may be silent unless told otherwise: a model may think for minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// One `[[route]]`, but for what the policy knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name, unique.
    pub name: String,
    /// Where its requests go, and nowhere else.
    pub upstream: Address,
    /// Where in a request the credential goes.
    pub inject: Vec<Inject>,
    /// The secret.
    pub secret: Name,
    /// The field of it that `{secret}` stands for.
    pub field: Option<String>,
    /// Authorities instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Public keys of which the upstream has one; empty where any will do.
    pub pins: Vec<Pin>,
    /// The HTTP proxy that leads there.
    pub proxy: Option<Address>,
    /// Whether HTTP/2 is spoken to an upstream that has it.
    pub http2: bool,
    /// Whether the upstream may be at a private or loopback address.
    pub allow_private: bool,
    /// How much each bot may do with it.
    pub limits: RouteLimits,
    /// What a request's body has to say.
    pub require: Vec<Condition>,
    /// Calls that wait for an operator.
    pub approve: Vec<CallPattern>,
    /// How long the upstream may be silent.
    pub timeout: Duration,
}

impl Route {
    /// The ports that are connected to for it.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        if let Some(proxy) = &self.proxy {
            return vec![proxy.target().1];
        }
        let servers = self.token_servers().chain([&self.upstream]);
        servers.map(|server| server.target().1).collect()
    }

    /// The servers that its access tokens come from.
    fn token_servers(&self) -> impl Iterator<Item = &Address> {
        self.inject.iter().filter_map(|inject| match inject {
            Inject::OAuth2(oauth2) => Some(&oauth2.server),
            _ => None,
        })
    }
}

/// What is known of services; its format is that of routes.
const PRESETS: &str = include_str!("presets.toml");

/// Every route, and what the policy is to know of them.
pub(super) fn read_all(
    sections: &[Section<'_>],
    sources: &[Source],
    depth: Depth,
    report: &mut Report,
) -> (Vec<Route>, Vec<RouteInput>) {
    let catalogue = Document::new("presets.toml".into(), PRESETS.to_owned());
    let table = catalogue.parse(report).unwrap_or_default();
    let presets: BTreeMap<&str, Section<'_>> = section::values(&catalogue, &table)
        .filter_map(|value| Some((value.key, value.section("a preset", report)?)))
        .collect();
    let mut read = |section: &Section<'_>| {
        let preset = match section.string("preset", report) {
            None => Section::default(),
            Some(At { value: name, place }) => {
                let Some(preset) = presets.get(name) else {
                    let hint = suggest(name, presets.keys().copied());
                    report.error(&place, format!("there is no preset {name:?}, {hint}"));
                    return None;
                };
                Section::default().or(preset)
            }
        };
        read(&section.or(&preset), sources, depth, report)
    };
    sections.iter().filter_map(&mut read).unzip()
}

fn read(
    section: &Section<'_>,
    sources: &[Source],
    depth: Depth,
    report: &mut Report,
) -> Option<(Route, RouteInput)> {
    let before = report.errors.len();
    let keys = [
        "name",
        "upstream",
        "inject",
        "secret",
        "allow",
        "deny",
        "ca_file",
        "pins",
        "proxy",
        "http2",
        "allow_private",
        "limits",
        "preset",
        "timeout",
        "require",
        "approve",
    ];
    section.check_keys(&keys, report);
    let name = section
        .required("name", "\"openai\"", report)
        .and_then(|name| name.string(report))
        .and_then(|name| checked_name("route", name, report));
    let allow_private = section.boolean("allow_private", report).unwrap_or(false);
    let upstream = read_upstream(section, allow_private, report);
    let secret = read_secret(section, sources, report);
    let inject = section
        .required(
            "inject",
            "{ header = \"authorization\", value = \"Bearer {secret}\" }",
            report,
        )
        .and_then(|value| inject::read(&value, report));
    let allow = section
        .required("allow", "[\"GET /v1/models\"]", report)
        .and_then(|_| read_calls(section, "allow", report));
    let mut calls = |key: &str| match section.get(key) {
        Some(_) => read_calls(section, key, report),
        None => Some(Vec::new()),
    };
    let (deny, approve) = (calls("deny"), calls("approve"));
    for call in approve.iter().flatten() {
        let allowed = |allow: &At<CallPattern>| allow.value.meets(&call.value);
        if allow
            .as_ref()
            .is_some_and(|allow| !allow.iter().any(allowed))
        {
            let text = format!(
                "`approve` has \"{}\", which `allow` has nothing of, so that no call waits for it",
                call.value
            );
            report.warning(&call.place, text);
        }
    }
    let route = Route {
        name: name.as_ref()?.value.clone(),
        upstream: upstream?,
        inject: inject?,
        secret: secret.as_ref()?.0.clone(),
        field: secret?.1,
        ca_file: read_ca_file(section, depth, report),
        pins: read_pins(section, report),
        proxy: read_proxy(section, report),
        http2: section.boolean("http2", report).unwrap_or(false),
        allow_private,
        limits: read_limits(section, report),
        require: read_conditions(section, report),
        approve: approve?.into_iter().map(|call| call.value).collect(),
        timeout: duration(section, "timeout", report).unwrap_or(PATIENCE),
    };
    check_inject(&route, section, report);
    let calls = RouteInput {
        name: name?,
        secret: route.secret.clone(),
        allow: allow?,
        deny: deny?,
    };
    (report.errors.len() == before).then_some((route, calls))
}

fn read_upstream(
    section: &Section<'_>,
    allow_private: bool,
    report: &mut Report,
) -> Option<Address> {
    let value = section.required("upstream", "\"https://api.openai.com\"", report)?;
    let At { value: text, place } = value.string(report)?;
    match Address::parse(text) {
        Ok(address) if !address.is_tls() && !allow_private => {
            let why = "the credential would travel there unencrypted, use https, or say allow_private = true";
            report.error(&place, format!("`upstream` is {text:?}, {why}"));
            None
        }
        Ok(address) => Some(address),
        Err(error) => {
            report.error(&place, format!("`upstream`: {error}"));
            None
        }
    }
}

/// The secret's name and field, which some source can have.
fn read_secret(
    section: &Section<'_>,
    sources: &[Source],
    report: &mut Report,
) -> Option<(Name, Option<String>)> {
    let value = section.required("secret", "\"openai/api-key\"", report)?;
    let At { value: text, place } = value.string(report)?;
    let (name, field) = split_field(text);
    let name = match Name::parse(name) {
        Ok(name) => name,
        Err(error) => {
            report.error(&place, format!("`secret` is {text:?}, {error}"));
            return None;
        }
    };
    let field = field.map(str::to_owned);
    let owned = |source: &Source| name.as_str().starts_with(&source.prefix);
    if !sources.iter().any(owned) {
        let text = format!(
            "`secret` is {text:?}, but no source has names that begin so, name another or add a source"
        );
        report.error(&place, text);
    }
    Some((name, field))
}

fn read_calls(
    section: &Section<'_>,
    key: &str,
    report: &mut Report,
) -> Option<Vec<At<CallPattern>>> {
    let value = section.get(key)?;
    let texts = value.strings(report)?;
    if texts.is_empty() {
        let text = format!("`{key}` is empty, write a call as \"GET /v1/models\", or leave it out");
        report.error(&value.place(), text);
        return None;
    }
    let mut calls = Vec::new();
    for At { value: text, place } in texts {
        match CallPattern::parse(text) {
            Ok(value) => calls.push(At { value, place }),
            Err(error) => report.error(&place, format!("`{key}` has {text:?}, {error}")),
        }
    }
    Some(calls)
}

fn read_ca_file(section: &Section<'_>, depth: Depth, report: &mut Report) -> Option<PathBuf> {
    let At { value: path, place } = section.path("ca_file", report)?;
    held::check_file(
        "the ca_file",
        &path,
        Holds::Access,
        "put it there",
        &place,
        depth,
        report,
    );
    Some(path)
}

fn read_pins(section: &Section<'_>, report: &mut Report) -> Vec<Pin> {
    let Some(value) = section.get("pins") else {
        return Vec::new();
    };
    let texts = value.strings(report).unwrap_or_default();
    if texts.is_empty() {
        let text = "`pins` is empty, write a key's as \"sha256//BASE64\", or leave it out";
        report.error(&value.place(), text);
    }
    let mut pins = Vec::new();
    for At { value: text, place } in texts {
        match Pin::parse(text) {
            Ok(pin) => pins.push(pin),
            Err(error) => report.error(&place, format!("`pins`: {error}")),
        }
    }
    pins
}

fn read_proxy(section: &Section<'_>, report: &mut Report) -> Option<Address> {
    let At { value: text, place } = section.string("proxy", report)?;
    match Address::parse(text) {
        Ok(address) if address.is_tls() => {
            let why = "write http://HOST:PORT, what goes through it is TLS all the way";
            report.error(&place, format!("`proxy` is {text:?}, {why}"));
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            // It may hold a password.
            let why = "write http://HOST:PORT, without a user, a password or a path";
            report.error(&place, format!("`proxy` is not such an address, {why}"));
            None
        }
    }
}

/// A field has no fields of its own; a token and a client certificate are as secret as any credential.
fn check_inject(route: &Route, section: &Section<'_>, report: &mut Report) {
    if !route.pins.is_empty() && route.token_servers().next().is_some() {
        let text = "`pins` are of the upstream alone, of the token endpoint any trusted certificate will do";
        report.warning(&section.place_of("pins"), text);
    }
    let mut say = |text: String| report.error(&section.place_of("inject"), text);
    if let Some(field) = &route.field
        && route.inject.iter().any(Inject::names_fields)
    {
        say(format!(
            "`inject` names fields, but `secret` is the field {field:?} already, name fields in one of them"
        ));
    }
    if !route.pins.is_empty() && !route.upstream.is_tls() {
        say("`pins` are of keys in TLS, but `upstream` is not https".into());
    }
    if route.http2 && !route.upstream.is_tls() {
        say("`http2` is agreed on in TLS, but `upstream` is not https".into());
    }
    let mut servers = route.token_servers().chain([&route.upstream]);
    if let Some(server) = servers.find(|server| !server.is_tls())
        && route.proxy.is_some()
    {
        say(format!(
            "`proxy` would read the credential on its way to {server}, use https"
        ));
    }
    for inject in &route.inject {
        match inject {
            Inject::Query { .. } if route.http2 => {
                say("`query` cannot be written into a path that `http2` compresses, leave one of them out".into());
            }
            Inject::OAuth2(oauth2) if !oauth2.server.is_tls() && !route.allow_private => {
                say(format!(
                    "`token_url` is at {}, the credential would travel there unencrypted, use https, or say allow_private = true",
                    oauth2.server
                ));
            }
            Inject::Mtls if !route.upstream.is_tls() => {
                say("`mtls` shows a certificate in TLS, but `upstream` is not https".into());
            }
            _ => {}
        }
    }
}
