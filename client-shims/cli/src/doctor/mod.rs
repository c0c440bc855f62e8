//! `keyhatch doctor`: why a read would fail, and what to do.
//!
//! It asks for health, whoami and, where the caller may list the name, the list: nothing that would tell a caller more
//! than it may know. A refused read looks the same whether the secret exists or not, and so does what is said here.

mod pattern;
mod socket;

use keyhatch::blocking::Client;
use keyhatch::{Error, Whoami};
use keyhatch_protocol::Name;
use nix::unistd::{Uid, User};
use serde::Serialize;

use crate::failure::{Failure, code, hint};
use crate::options::Doctor;
use crate::output::{line, visible};

/// One thing looked at.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    /// What was found.
    found: String,
    /// What to do.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Default, Serialize)]
struct Findings {
    /// Whether a read would work.
    ok: bool,
    /// What a read would exit with.
    exit: u8,
    checks: Vec<Finding>,
    /// For an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<String>,
}

/// Looks at everything that a read needs, one after the other; the exit code is that of the first problem.
pub fn doctor(client: &Client, doctor: &Doctor) -> Result<u8, Failure> {
    if let Some(name) = &doctor.name {
        Name::parse(name).map_err(|cause| {
            let name = name.clone();
            Failure::Client("doctor".into(), Error::Name { name, cause })
        })?;
    }
    let mut findings = Findings::default();
    // After the first problem, what comes next could not be asked.
    let _ = findings.look(client, doctor.name.as_deref());
    findings.ok = findings.exit == 0;
    if doctor.json {
        let text = serde_json::to_string(&findings).map_err(std::io::Error::from)?;
        line(&text)?;
    } else {
        findings.print()?;
    }
    Ok(findings.exit)
}

/// A problem was found and noted.
struct Stop;

impl Findings {
    fn look(&mut self, client: &Client, name: Option<&str>) -> Result<(), Stop> {
        match socket::look(client.address()) {
            Ok(found) => self.good("socket", found),
            Err((found, advice)) => return self.problem(69, "socket", found, Some(advice)),
        }
        let health = client
            .health()
            .or_else(|error| self.failed("agent", &error))?;
        if health.status != "ready" {
            let found = format!("not ready: {}", health.reasons.join(", "));
            let sealed = health.reasons.iter().any(|reason| reason == "sealed");
            let advice = if sealed {
                "an operator unseals it: keyhatchd unseal"
            } else {
                "an operator sees what it needs: keyhatchd status"
            };
            return self.problem(75, "agent", found, Some(advice.into()));
        }
        let missing = match health.missing.as_slice() {
            [] => String::new(),
            missing => format!("; this host lacks {}", missing.join(", ")),
        };
        self.good(
            "agent",
            format!("ready, version {}{missing}", health.version),
        );
        let me = client
            .whoami()
            .or_else(|error| self.failed("identity", &error))?;
        self.explain = Some(explain(&me, name));
        self.identity(&me)?;
        self.bot(&me)?;
        self.grants(&me, name)?;
        name.map_or(Ok(()), |name| self.listed(client, &me, name))
    }

    fn identity(&mut self, me: &Whoami) -> Result<(), Stop> {
        let Some(uid) = me.uid else {
            let advice = "run the bot as a user of the agent's own user namespace";
            let found = "your uid has no mapping where the agent runs";
            return self.problem(77, "identity", found.into(), Some(advice.into()));
        };
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        self.good(
            "identity",
            format!(
                "pid {}, uid {}, unit {}, exe {}",
                me.pid,
                user(uid),
                or_unknown(&me.unit),
                or_unknown(&me.exe)
            ),
        );
        Ok(())
    }

    fn bot(&mut self, me: &Whoami) -> Result<(), Stop> {
        let Some(bot) = &me.bot else {
            let advice =
                "an operator gives a bot of the configuration selectors that match this identity";
            let found = "no bot of the policy matches, or more than one does";
            return self.problem(77, "bot", found.into(), Some(advice.into()));
        };
        self.good("bot", format!("{bot}, roles {}", me.roles.join(" ")));
        Ok(())
    }

    fn grants(&mut self, me: &Whoami, name: Option<&str>) -> Result<(), Stop> {
        let readable = pattern::granted(me, "read");
        if readable.is_empty() {
            let advice = "an operator gives a role of the bot a grant with the action read";
            let found = "none of your roles grants reading any secret";
            return self.problem(77, "grants", found.into(), Some(advice.into()));
        }
        let Some(name) = name else {
            self.good("grants", format!("you may read {}", readable.join(" ")));
            return Ok(());
        };
        match readable.iter().find(|grant| pattern::matches(grant, name)) {
            Some(grant) => {
                self.good("grants", format!("{grant} covers {name}"));
                Ok(())
            }
            None => self.problem(
                77,
                "grants",
                format!(
                    "none of yours covers {name}: you may read {}",
                    readable.join(" ")
                ),
                Some("check the name, or an operator grants it to a role of the bot".into()),
            ),
        }
    }

    /// Whether the name is among those that the caller may see, where it may list it.
    fn listed(&mut self, client: &Client, me: &Whoami, name: &str) -> Result<(), Stop> {
        let may_list = pattern::granted(me, "list");
        if !may_list.iter().any(|grant| pattern::matches(grant, name)) {
            let found = "not looked for: you may not list it; a read tells";
            self.good("secret", found.into());
            return Ok(());
        }
        let listed = client
            .list(name)
            .or_else(|error| self.failed("secret", &error))?;
        if listed.iter().any(|listed| listed.name.as_str() == name) {
            self.good("secret", format!("{name} is served"));
            return Ok(());
        }
        self.problem(
            66,
            "secret",
            format!("{name} is not among the secrets that you may see"),
            Some("check the name: there is none, or a deny rule of your roles covers it".into()),
        )
    }

    fn good(&mut self, check: &'static str, found: String) {
        self.checks.push(Finding {
            check,
            ok: true,
            found,
            advice: None,
        });
    }

    fn problem<T>(
        &mut self,
        exit: u8,
        check: &'static str,
        found: String,
        advice: Option<String>,
    ) -> Result<T, Stop> {
        self.exit = exit;
        self.checks.push(Finding {
            check,
            ok: false,
            found,
            advice,
        });
        Err(Stop)
    }

    fn failed<T>(&mut self, check: &'static str, error: &Error) -> Result<T, Stop> {
        self.problem(code(error), check, error.to_string(), hint(error))
    }

    fn print(&self) -> Result<(), Failure> {
        for finding in &self.checks {
            let word = if finding.ok { "ok" } else { "problem" };
            let found = visible(&finding.found);
            line(&format!("{word:<8} {:<9} {found}", finding.check))?;
            if let Some(advice) = &finding.advice {
                line(&format!("{:18} do: {}", "", visible(advice)))?;
            }
        }
        if let Some(explain) = self.explain.as_ref().filter(|_| !self.ok) {
            line(&format!("For an operator: {}", visible(explain)))?;
        }
        Ok(())
    }
}

/// The command that shows an operator which rule decides for this caller.
fn explain(me: &Whoami, name: Option<&str>) -> String {
    let name = name.unwrap_or("NAME");
    let mut facts: Vec<String> = Vec::new();
    facts.extend(me.uid.map(|uid| format!("uid={uid}")));
    facts.extend(me.gid.map(|gid| format!("gid={gid}")));
    facts.extend(me.unit.iter().map(|unit| format!("unit={unit}")));
    facts.extend(me.user_unit.iter().map(|unit| format!("user_unit={unit}")));
    facts.extend(me.exe.iter().map(|exe| format!("exe={exe}")));
    format!(
        "keyhatchd explain --secret {name} --peer {}",
        facts.join(",")
    )
}

/// A uid with the name of its account, where it has one.
fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{uid} ({})", user.name),
        _ => uid.to_string(),
    }
}
