//! `[[bot]]` and `[role.X]`: read into the policy's words, each with its line.

use std::path::PathBuf;

use keyhatch_protocol::{Action, Name, split_field};

use super::section::{Section, Value, checked_name, shown};
use super::{Depth, host};
use crate::policy::{
    At, BotInput, Credential, CredentialInput, Pattern, PatternError, Place, Report, RoleInput,
    RuleInput, Selectors, suggest,
};

/// A bot, or nothing where anything in it is wrong: half a bot would only lead to more errors.
pub(super) fn read_bot(
    section: &Section<'_>,
    depth: Depth,
    report: &mut Report,
) -> Option<BotInput> {
    let before = report.errors.len();
    section.check_keys(&["name", "match", "roles", "credentials"], report);
    let name = section
        .required("name", "\"support-bot\"", report)
        .and_then(|name| name.string(report))
        .and_then(|name| checked_name("bot", name, report));
    let selectors = section
        .required("match", "{ user = \"support\" }", report)
        .and_then(|value| value.section("`match`", report))
        .map(|selectors| read_selectors(&selectors, depth, report));
    let roles = section
        .required("roles", "[\"llm-caller\"]", report)
        .and_then(|value| value.strings(report));
    let credentials = section
        .get("credentials")
        .and_then(|value| value.section("`credentials`", report))
        .map(|section| read_credentials(&section, report));
    if report.errors.len() > before {
        return None;
    }
    let owned = |role: At<&str>| At {
        value: role.value.to_owned(),
        place: role.place,
    };
    Some(BotInput {
        name: name?,
        selectors: selectors?,
        roles: roles?.into_iter().map(owned).collect(),
        credentials: credentials.unwrap_or_default(),
    })
}

fn read_credentials(section: &Section<'_>, report: &mut Report) -> Vec<CredentialInput> {
    let credentials = section.values().filter_map(|value| {
        let At { value: text, place } = value.string(report)?;
        let id = value.key;
        if !is_credential_id(id) {
            let why = "systemd takes 1 to 255 printable ASCII characters without : and /";
            report.error(
                &place,
                format!("credential id {id:?} is none, {why}, rename it"),
            );
            return None;
        }
        match read_credential(text) {
            Ok(credential) => Some(CredentialInput {
                id: id.to_owned(),
                credential,
                place,
            }),
            Err(why) => {
                let hint = "write it as \"app/db\" or \"app/db#password\"";
                report.error(
                    &place,
                    format!("credential {id:?} is {text:?}, {why}, {hint}"),
                );
                None
            }
        }
    });
    credentials.collect()
}

/// A name, and after a `#` one of its fields.
fn read_credential(text: &str) -> Result<Credential, String> {
    let (name, field) = split_field(text);
    if field == Some("") {
        return Err("its field has no name".into());
    }
    Ok(Credential {
        name: Name::parse(name).map_err(|error| error.to_string())?,
        field: field.map(str::to_owned),
    })
}

/// What systemd takes for one (`credential_name_valid` in its creds-util.c).
fn is_credential_id(id: &str) -> bool {
    let fits = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':' && byte != b'/';
    (1..=255).contains(&id.len()) && id != "." && id != ".." && id.bytes().all(fits)
}

fn read_selectors(section: &Section<'_>, depth: Depth, report: &mut Report) -> Selectors {
    let keys = [
        "uid",
        "user",
        "gid",
        "group",
        "unit",
        "user_unit",
        "cgroup",
        "exe",
        "exe_sha256",
    ];
    section.check_keys(&keys, report);
    let account = |key: &'static str, report: &mut Report| {
        let At { value, place } = section.string(key, report)?;
        host::checked_account(key, value, &place, depth, report)
    };
    Selectors {
        user: account("user", report),
        group: account("group", report),
        uid: section.get("uid").and_then(|value| value.number(report)),
        gid: section.get("gid").and_then(|value| value.number(report)),
        unit: glob(section, "unit", UNIT, report),
        user_unit: glob(section, "user_unit", UNIT, report),
        cgroup: glob(section, "cgroup", CGROUP, report),
        exe: exe(section, report),
        exe_sha256: digest(section, report),
    }
}

/// What a glob must be able to match, or it never matches anything; and how to say so.
type Shape = (&'static [&'static str], &'static str);

const UNIT: Shape = (
    &["*.service", "*.scope"],
    "a unit ends in .service or .scope and has no slash, write it as \"support-bot.service\"",
);
const CGROUP: Shape = (
    &["/**"],
    "a cgroup path begins with a slash, write it as \"/system.slice/support-bot.service\"",
);

fn glob(
    section: &Section<'_>,
    key: &str,
    (shapes, why): Shape,
    report: &mut Report,
) -> Option<Pattern> {
    let At { value: text, place } = section.string(key, report)?;
    let found = Pattern::parse(text)
        .map_err(|error| error.to_string())
        .and_then(|pattern| {
            let possible =
                |shape: &&str| Pattern::parse(shape).is_ok_and(|shape| shape.meets(&pattern));
            if shapes.iter().any(possible) {
                Ok(pattern)
            } else {
                Err(format!("it can never match, {why}"))
            }
        });
    found
        .map_err(|why| report.error(&place, format!("`{key}` is {text:?}, {why}")))
        .ok()
}

fn exe(section: &Section<'_>, report: &mut Report) -> Option<PathBuf> {
    let At { value: path, place } = section.path("exe", report)?;
    if path.as_os_str().as_encoded_bytes().contains(&b'*') {
        let text = format!(
            "`exe` is {}, but it names one file, not a pattern, write its path",
            shown(&path)
        );
        report.error(&place, text);
        return None;
    }
    Some(path)
}

fn digest(section: &Section<'_>, report: &mut Report) -> Option<[u8; 32]> {
    let At { value: text, place } = section.string("exe_sha256", report)?;
    let digest = parse_digest(text);
    if digest.is_none() {
        let why = "it must be 64 hexadecimal digits, write what sha256sum prints";
        report.error(&place, format!("`exe_sha256` is {text:?}, {why}"));
    }
    digest
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |pair: &[u8; 2]| {
        let pair = std::str::from_utf8(pair).ok()?;
        // `from_str_radix` would take a sign too.
        u8::from_str_radix(pair, 16)
            .ok()
            .filter(|_| !pair.starts_with('+'))
    };
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes?.try_into().ok()
}

/// A role, with those of its rules that are well-formed.
pub(super) fn read_role(
    name: &str,
    section: &Section<'_>,
    report: &mut Report,
) -> Option<RoleInput> {
    section.check_keys(&["grants", "deny"], report);
    let at = At {
        value: name,
        place: section.place(),
    };
    let name = checked_name("role", at, report)?;
    let role = RoleInput {
        grants: read_rules(section.get("grants"), "a grant", report),
        deny: read_rules(section.get("deny"), "a deny", report),
        name,
    };
    Some(role)
}

fn read_rules(value: Option<Value<'_>>, what: &str, report: &mut Report) -> Vec<RuleInput> {
    let Some(list) = value.and_then(|value| value.list(report)) else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for value in list {
        if let Some(section) = value.section(what, report) {
            rules.extend(read_rule(&section, what, report));
        }
    }
    rules
}

fn read_rule(section: &Section<'_>, what: &str, report: &mut Report) -> Option<RuleInput> {
    section.check_keys(&["secrets", "routes", "actions"], report);
    if let Some(routes) = section.get("routes") {
        return read_route_rule(section, &routes, what, report);
    }
    let secrets = section.required("secrets", "[\"openai/*\"]", report)?;
    let patterns = read_patterns(&secrets, Pattern::of_names, report)?;
    let actions = match section.get("actions") {
        Some(value) => read_actions(&value, what, report)?,
        None if what == "a deny" => Action::ALL.to_vec(),
        None => vec![Action::Read, Action::List, Action::Watch],
    };
    Some(RuleInput {
        secrets: patterns,
        routes: Vec::new(),
        actions,
        place: section.place(),
    })
}

/// A rule about routes: the one thing that is done with them is to use them.
fn read_route_rule(
    section: &Section<'_>,
    routes: &Value<'_>,
    what: &str,
    report: &mut Report,
) -> Option<RuleInput> {
    if let Some(secrets) = section.get("secrets") {
        let text = format!("{what} is about `secrets` or about `routes`, write one for each");
        report.error(&secrets.place(), text);
    }
    if let Some(actions) = section.get("actions") {
        for At { value: word, place } in actions.strings(report)? {
            if word != Action::Use.as_str() {
                let text =
                    format!("action {word:?} is on secrets, on routes there is only \"use\"");
                report.error(&place, text);
            }
        }
    }
    Some(RuleInput {
        secrets: Vec::new(),
        routes: read_patterns(routes, Pattern::parse, report)?,
        actions: vec![Action::Use],
        place: section.place(),
    })
}

fn read_patterns(
    value: &Value<'_>,
    parse: impl Fn(&str) -> Result<Pattern, PatternError>,
    report: &mut Report,
) -> Option<Vec<Pattern>> {
    let texts = value.strings(report)?;
    let key = value.key;
    if texts.is_empty() {
        let text = format!("`{key}` is empty, so that it names nothing, add a name or pattern");
        report.error(&value.place(), text);
    }
    let mut patterns = Vec::new();
    for At { value: text, place } in texts {
        match parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => report.error(&place, format!("`{key}` has {text:?}, {error}")),
        }
    }
    (!patterns.is_empty()).then_some(patterns)
}

fn read_actions(value: &Value<'_>, what: &str, report: &mut Report) -> Option<Vec<Action>> {
    let words = value.strings(report)?;
    if words.is_empty() {
        report.error(
            &value.place(),
            "`actions` is empty, so that it allows nothing, add one or leave it out",
        );
    }
    let mut actions = Vec::new();
    for At { value: word, place } in words {
        match word.parse() {
            Ok(Action::Use) if what != "a deny" => use_of_secret(&place, report),
            Ok(action) if !actions.contains(&action) => actions.push(action),
            Ok(_) => report.error(
                &place,
                format!("action {word:?} is listed twice, remove one"),
            ),
            Err(()) => {
                let hint = suggest(word, Action::ALL.iter().map(|action| action.as_str()));
                report.error(&place, format!("there is no action {word:?}, {hint}"));
            }
        }
    }
    (!actions.is_empty()).then_some(actions)
}

fn use_of_secret(place: &Place, report: &mut Report) {
    let text =
        "action \"use\" is granted on routes, write { routes = [\"NAME\"], actions = [\"use\"] }";
    report.error(place, text);
}
