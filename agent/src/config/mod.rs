//! TOML to validated types: the only place that reads configuration.
//!
//! Whatever is wrong is found in one go, each with `file:line`. A [`Config`] that exists is one that the
//! daemon can run with.

mod agent;
mod audit;
mod bounds;
mod detect;
mod document;
mod driver;
mod dropin;
mod held;
mod host;
mod inject;
mod on_rotated;
mod rotation;
mod route;
mod rules;
mod section;
mod source;
mod stamps;
mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyhatch_protocol::Name;
use toml::de::DeTable;

pub use agent::{Admin, Agent, Metrics};
pub use audit::{Audit, OnFailure, SyncMode};
pub use bounds::{Condition, Cost, RouteLimits, Spend};
pub use detect::{Detect, Ignore, Notify, Rule, Webhook};
pub use driver::{Alphabet, Driver, Program, VaultDriver};
pub use dropin::{Dropin, NATIVE_PATHS, is_under};
pub use inject::{Algorithm, Encoding, Hmac, Inject, OAuth2, Part, Piece, SigV4, Signed, Template};
pub use on_rotated::{Job, OnRotated};
pub use rotation::{Every, GRACE, Rotation};
pub use route::Route;
pub use source::{KeySource, KeySourceError, Platform, STORE_FILE, Source, SourceKind};
pub use stamps::Stamps;
pub use upstream::{Aws, ClientCert, Fetching, LeasedPath, Vault, VaultAuth};

use crate::files::Trust;
pub use crate::policy::{Diagnostic, Place};
use crate::policy::{Policy, Report, RouteInput, Rules, suggest};

use document::Document;
use section::{Section, Value};

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/keyhatch/keyhatch.toml";

/// The tables.
const TABLES: [&str; 10] = [
    "agent",
    "audit",
    "bot",
    "detect",
    "dropin",
    "honeytoken",
    "role",
    "rotation",
    "route",
    "source",
];

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything: also owners and modes of files, as far as the daemon trusts them, and users and groups.
    Full(Trust),
    /// What the files say, for use off the host.
    ContentOnly,
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[agent]`.
    pub agent: Agent,
    /// `[[source]]`, at least one.
    pub sources: Vec<Source>,
    /// `[[bot]]` and `[role.X]`.
    pub policy: Arc<Policy>,
    /// `[audit]`.
    pub audit: Audit,
    /// `[dropin]`.
    pub dropin: Dropin,
    /// `[[route]]`.
    pub routes: Vec<Route>,
    /// `[[honeytoken]]`: their names.
    pub honeytokens: Vec<Name>,
    /// `[detect]`.
    pub detect: Detect,
    /// `[[rotation]]`.
    pub rotations: Vec<Rotation>,
    /// What is odd but not wrong.
    pub warnings: Vec<Diagnostic>,
    /// The files that were read, the main one first.
    pub files: Vec<PathBuf>,
}

/// Reads `path` and `conf.d/*.toml` beside it; or everything that is wrong with them, in order.
pub fn load(path: &Path, depth: Depth) -> Result<Config, Vec<Diagnostic>> {
    let mut report = Report::default();
    let documents = document::read_all(path, depth, &mut report);
    assemble(&documents, depth, report)
}

fn assemble(
    documents: &[Document],
    depth: Depth,
    mut report: Report,
) -> Result<Config, Vec<Diagnostic>> {
    let tables: Vec<(&Document, DeTable<'_>)> = documents
        .iter()
        .filter_map(|document| Some((document, document.parse(&mut report)?)))
        .collect();
    // What a file that cannot be read leaves out would only look like more errors.
    let complete = report.errors.is_empty();
    let mut parts = Parts::new();
    for (document, table) in &tables {
        for value in section::values(document, table) {
            parts.add(&value, &mut report);
        }
    }
    let main = documents.first().map_or_else(
        || parts.agent.place(),
        |document| Place {
            file: document.name().clone(),
            line: 0,
        },
    );
    let agent = agent::read(&parts.agent, depth, &mut report);
    let state_place = parts
        .agent
        .get("state_dir")
        .map_or_else(|| main.clone(), |value| value.place());
    held::check_state_dir(&agent.state_dir, &state_place, depth, &mut report);
    let audit = audit::read(&parts.audit, &mut report);
    let audit_place = parts
        .audit
        .get("dir")
        .map_or_else(|| main.clone(), |value| value.place());
    held::check_audit_dir(&audit.dir, &audit_place, depth, &mut report);
    check_audit_dir(&agent, &audit, &parts, &mut report);
    let taken = [
        ("state_dir", agent.state_dir.as_path()),
        ("audit dir", audit.dir.as_path()),
    ];
    let sources = source::read_all(
        &parts.sources,
        &taken,
        &main,
        agent.snapshot_key.is_some(),
        depth,
        &mut report,
    );
    let dropin = dropin::read(&parts.dropin, &mut report);
    let rotations = rotation::read_all(&parts.rotations, &sources, depth, &mut report);
    let (routes, calls) = route::read_all(&parts.routes, &sources, depth, &mut report);
    let honeytokens =
        detect::read_honeytokens(&parts.honeytokens, &routes, &rotations, &mut report);
    let policy = read_policy(&parts, calls, depth, complete, &mut report);
    let detect = detect::read(&parts.detect, policy.as_ref(), depth, &mut report);
    let order = |found: &Diagnostic| {
        let file = documents
            .iter()
            .position(|document| document.name() == &found.place.file);
        (file, found.place.line)
    };
    report.errors.sort_by_key(order);
    report.warnings.sort_by_key(order);
    if !report.errors.is_empty() {
        return Err(report.errors);
    }
    Ok(Config {
        agent,
        sources,
        policy: Arc::new(policy.unwrap_or_default()),
        audit,
        dropin,
        routes,
        honeytokens,
        detect,
        rotations,
        warnings: report.warnings,
        files: documents
            .iter()
            .map(|document| document.path.clone())
            .collect(),
    })
}

/// The tables of all files, added up.
struct Parts<'a> {
    agent: Section<'a>,
    audit: Section<'a>,
    dropin: Section<'a>,
    sources: Vec<Section<'a>>,
    rotations: Vec<Section<'a>>,
    bots: Vec<Section<'a>>,
    roles: Vec<(&'a str, Section<'a>)>,
    routes: Vec<Section<'a>>,
    detect: Section<'a>,
    honeytokens: Vec<Section<'a>>,
}

impl<'a> Parts<'a> {
    fn new() -> Self {
        Self {
            agent: Section::new("[agent]"),
            audit: Section::new("[audit]"),
            dropin: Section::new("[dropin]"),
            sources: Vec::new(),
            rotations: Vec::new(),
            bots: Vec::new(),
            roles: Vec::new(),
            routes: Vec::new(),
            detect: Section::new("[detect]"),
            honeytokens: Vec::new(),
        }
    }

    fn add(&mut self, value: &Value<'a>, report: &mut Report) {
        match value.key {
            "agent" => drop(self.agent.add(value, report)),
            "audit" => drop(self.audit.add(value, report)),
            "dropin" => drop(self.dropin.add(value, report)),
            "source" => self.sources.extend(value.sections(report)),
            "rotation" => self.rotations.extend(value.sections(report)),
            "bot" => self.bots.extend(value.sections(report)),
            "role" => self.roles.extend(value.named_sections(report)),
            "detect" => drop(self.detect.add(value, report)),
            "honeytoken" => self.honeytokens.extend(value.sections(report)),
            "route" => self.routes.extend(value.sections(report)),
            key => {
                let text = format!("unknown table or key {key:?}, {}", suggest(key, TABLES));
                report.error(&value.place(), text);
            }
        }
    }
}

fn read_policy(
    parts: &Parts<'_>,
    routes: Vec<RouteInput>,
    depth: Depth,
    complete: bool,
    report: &mut Report,
) -> Option<Policy> {
    let mut rules = Rules {
        routes,
        ..Rules::default()
    };
    for section in &parts.bots {
        rules.bots.extend(rules::read_bot(section, depth, report));
    }
    for (name, section) in &parts.roles {
        rules.roles.extend(rules::read_role(name, section, report));
    }
    if let Depth::Full(_) = depth {
        for bot in &rules.bots {
            host::check_exe(bot, report);
        }
    }
    if !complete {
        return None;
    }
    match Policy::compile(rules) {
        Ok((policy, warnings)) => {
            report.warnings.extend(warnings);
            Some(policy)
        }
        Err(errors) => {
            report.errors.extend(errors);
            None
        }
    }
}

fn check_audit_dir(agent: &Agent, audit: &Audit, parts: &Parts<'_>, report: &mut Report) {
    let given = parts
        .audit
        .get("dir")
        .or_else(|| parts.agent.get("state_dir"));
    if let Some(value) = given
        && audit.dir == agent.state_dir
    {
        let text = format!(
            "`dir` and `state_dir` are both {}, each needs its own folder, change one",
            section::shown(&audit.dir)
        );
        report.error(&value.place(), text);
    }
}

#[cfg(test)]
mod tests;
