//! `keyhatchd explain`: which rule decides, for a peer that runs now, a bot, an imagined peer, or a past request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyhatch_protocol::{Action, Name};

use super::{ConfigAt, exit, fail, say};
use crate::audit::{self, Filter};
use crate::config::{self, Config, Depth};
use crate::identity::{Images, Peer, accounts};
use crate::policy::{Accounts, BotId, BotMatch, Call, Decision, Facts, Policy};
use crate::routes::Target;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: ConfigAt,
    /// A past request, by the id that its answer named
    #[arg(long, value_name = "ID", conflicts_with_all = ["secret", "route", "pid", "bot", "peer"])]
    request: Option<String>,
    /// The secret that is asked for
    #[arg(long, value_name = "NAME", required_unless_present_any = ["request", "route"], value_parser = name)]
    secret: Option<Name>,
    /// The route that is used, instead of a secret
    #[arg(long, value_name = "NAME", conflicts_with = "secret")]
    route: Option<String>,
    /// What is asked of the route, as "GET /v1/models"
    #[arg(long, value_name = "CALL", requires = "route")]
    call: Option<String>,
    /// What is done with it: read, list, watch, rotate or use
    #[arg(long, default_value = "read", value_parser = action)]
    action: Action,
    /// A process that runs now
    #[arg(long)]
    pid: Option<i32>,
    /// A bot of the configuration
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    bot: Option<String>,
    /// An imagined peer, as user=U,unit=N with any selectors
    #[arg(long, value_name = "FACTS", conflicts_with_all = ["pid", "bot"])]
    peer: Option<String>,
}

pub fn explain(args: &Args) -> u8 {
    let config = match config::load(&args.at.config, Depth::ContentOnly) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return exit::CONFIG;
        }
    };
    if let Some(id) = &args.request {
        return explain_request(&config, id);
    }
    let policy = &config.policy;
    let found = match find(&config, args) {
        Ok(found) => found,
        Err(why) => return fail(exit::USAGE, why),
    };
    match (&args.secret, &args.route) {
        (Some(secret), _) => {
            let decision = policy.decide(&found, args.action, secret);
            explain_decision(
                policy,
                &found,
                &format!("{} {secret}", args.action),
                &decision,
            )
        }
        (None, Some(route)) => match decide_use(policy, &found, route, args.call.as_deref()) {
            Ok((what, decision)) => explain_decision(policy, &found, &what, &decision),
            Err(why) => fail(exit::USAGE, why),
        },
        (None, None) => fail(
            exit::USAGE,
            "name a secret with --secret, or a route with --route",
        ),
    }
}

/// What is decided about a route, or about one call of it.
fn decide_use(
    policy: &Policy,
    found: &BotMatch,
    route: &str,
    call: Option<&str>,
) -> Result<(String, Decision), String> {
    let Some(call) = call else {
        return Ok((format!("use {route:?}"), policy.decide_route(found, route)));
    };
    let (method, path) = call
        .split_once(' ')
        .ok_or_else(|| format!("{call:?} is not a method and a path, as \"GET /v1/models\""))?;
    let target = Target::parse(path, None).map_err(|why| format!("{path:?}: {why}"))?;
    let call = Call {
        route,
        method,
        path: &target.path,
    };
    let what = format!("use {route:?} for {method:?} {:?}", target.path);
    Ok((what, policy.decide_use(found, &call)))
}

/// A past request: what its record says.
fn explain_request(config: &Config, id: &str) -> u8 {
    let records = match audit::query(&config.audit.dir, &Filter::default()) {
        Ok(records) => records,
        Err(error) => return fail(exit::FAILED, error),
    };
    let of_request: Vec<_> = records
        .iter()
        .filter(|record| record.request_id.as_deref() == Some(id))
        .collect();
    let Some(last) = of_request.last() else {
        return fail(
            exit::NOT_FOUND,
            format_args!("no record of a request {id:?}"),
        );
    };
    for record in &of_request {
        say(audit::format_line(record, false));
        if let Some(rule) = &record.rule {
            say(format_args!(
                "  decided by {rule}: {}",
                line_at(rule).unwrap_or_default()
            ));
        }
        if let Some(nearest) = record
            .extra()
            .get("nearest")
            .and_then(|nearest| nearest.as_str())
        {
            say(format_args!("  {}", audit::safe(nearest)));
        }
    }
    if last.decision == "allow" {
        0
    } else {
        exit::DENIED
    }
}

fn explain_decision(policy: &Policy, found: &BotMatch, what: &str, decision: &Decision) -> u8 {
    match found {
        BotMatch::Bot(id) => {
            if let Some(bot) = policy.bot(*id) {
                say(format_args!(
                    "bot: {}, at {}, roles: {}",
                    bot.name,
                    bot.place,
                    bot.roles.join(" ")
                ));
            }
        }
        BotMatch::NoBot { nearest } => {
            let nearest = nearest.as_deref().unwrap_or("the configuration has no bot");
            say(format_args!("bot: none; {}", audit::safe(nearest)));
        }
        BotMatch::Ambiguous(bots) => {
            let names: Vec<&str> = bots.iter().map(|id| bot_name(policy, *id)).collect();
            say(format_args!(
                "bot: ambiguous, equally specific: {}",
                names.join(", ")
            ));
        }
    }
    let word = if decision.allowed() {
        "allowed"
    } else {
        "denied"
    };
    say(format_args!("{what}: {word}, {}", decision.reason()));
    if let Some(rule) = decision.rule() {
        say(format_args!(
            "decided by {rule}: {}",
            line_at(rule).unwrap_or_default()
        ));
    }
    if decision.allowed() { 0 } else { exit::DENIED }
}

fn bot_name(policy: &Policy, id: BotId) -> &str {
    policy.bot(id).map_or("", |bot| &*bot.name)
}

/// The line of the configuration that a rule stands on, if it can be read.
fn line_at(rule: &str) -> Option<String> {
    let (file, line) = rule.rsplit_once(':')?;
    let number: usize = line.parse().ok()?;
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.lines().nth(number.checked_sub(1)?)?.trim().to_owned())
}

fn find(config: &Config, args: &Args) -> Result<BotMatch, String> {
    let policy = &config.policy;
    if let Some(bot) = &args.bot {
        let id = policy
            .bot_by_name(bot)
            .ok_or_else(|| format!("there is no bot {bot:?}"))?;
        return Ok(BotMatch::Bot(id));
    }
    let accounts = accounts::look_up(policy);
    let facts = match (&args.pid, &args.peer) {
        (Some(pid), _) => facts_of_process(*pid, policy, &config.agent.state_dir)?,
        (None, Some(text)) => imagined(text, policy, &accounts)?,
        (None, None) => return Err("say who asks: --pid, --bot or --peer".into()),
    };
    Ok(policy.match_bot(&facts, &accounts))
}

fn facts_of_process(pid: i32, policy: &Arc<Policy>, state_dir: &Path) -> Result<Facts, String> {
    let peer = Peer::of_process(pid).map_err(|error| format!("process {pid}: {error}"))?;
    let images = Images::open(state_dir);
    let mut facts = peer.facts();
    if let (Some(proc_dir), Some(image)) = (peer.proc_dir(), peer.image()) {
        let paths: Vec<PathBuf> = policy.exe_paths().into_iter().map(Path::to_owned).collect();
        facts.exe = images.proven_without_learning(proc_dir, image, &paths);
        facts.exe_sha256 = images.running_content(proc_dir, image);
    }
    Ok(facts)
}

/// Facts from words such as `user=U,unit=N`.
fn imagined(text: &str, policy: &Policy, accounts: &Accounts) -> Result<Facts, String> {
    let mut facts = Facts::default();
    for pair in text.split(',') {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("{key} is a number, not {value:?}"))
        };
        match key {
            "uid" => facts.uid = Some(number()?),
            "gid" => facts.gid = Some(number()?),
            "user" => facts.uid = Some(uid_of(value, accounts)?),
            "group" => facts.groups.push(gid_of(value, accounts)?),
            "unit" => facts.unit = Some(value.into()),
            "user_unit" => facts.user_unit = Some(value.into()),
            "cgroup" => facts.cgroup = Some(value.into()),
            "exe" => facts.exe.extend(
                policy
                    .exe_paths()
                    .get(Path::new(value))
                    .map(|path| path.to_path_buf()),
            ),
            other => {
                return Err(format!(
                    "no such fact {other:?}; there is user, uid, group, gid, unit, user_unit, cgroup, exe"
                ));
            }
        }
    }
    Ok(facts)
}

fn uid_of(name: &str, accounts: &Accounts) -> Result<u32, String> {
    let known = accounts.users.get(name).copied();
    let looked_up = || {
        nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw())
    };
    known
        .or_else(looked_up)
        .ok_or_else(|| format!("there is no user {name:?}"))
}

fn gid_of(name: &str, accounts: &Accounts) -> Result<u32, String> {
    let known = accounts.groups.get(name).copied();
    let looked_up = || {
        nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    };
    known
        .or_else(looked_up)
        .ok_or_else(|| format!("there is no group {name:?}"))
}

fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|why| why.to_string())
}

fn action(text: &str) -> Result<Action, String> {
    text.parse()
        .map_err(|()| "an action is read, list, watch, rotate or use".into())
}
