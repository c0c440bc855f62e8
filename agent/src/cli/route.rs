//! `keyhatchd route try`: what a route would send for a call. Nothing is sent, and no secret is read.

use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method};
use serde_json::json;

use super::{ConfigAt, exit, fail, say};
use crate::audit::safe;
use crate::config::{self, Config, Depth};
use crate::policy::Call;
use crate::routes::{Outgoing, Preview, Target, preview};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show what would be sent, the credential masked; exit 0 where the route allows it, 77 where not
    #[command(after_help = "Example: keyhatchd route try openai /v1/models")]
    Try(Args),
}

#[derive(clap::Args)]
pub struct Args {
    /// The route
    #[arg(value_name = "NAME")]
    name: String,
    /// The path at the upstream, with a query where there is one
    #[arg(value_name = "PATH")]
    path: String,
    /// The method
    #[arg(long, default_value = "GET")]
    method: Method,
    /// A header of the bot's; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ConfigAt,
}

/// What the route says of a call.
enum Verdict {
    Allowed,
    Waits,
    Denied { reason: String, rule: String },
}

pub fn route(verb: Verb) -> u8 {
    let Verb::Try(args) = verb;
    match config::load(&args.at.config, Depth::ContentOnly) {
        Ok(config) => attempt(&config, args),
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            exit::CONFIG
        }
    }
}

fn attempt(config: &Config, args: Args) -> u8 {
    let Some(route) = config.routes.iter().find(|route| route.name == args.name) else {
        return fail(
            exit::USAGE,
            format_args!("there is no route {:?}", args.name),
        );
    };
    let (path, query) = match args.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*args.path, None),
    };
    let target = match Target::parse(path, query) {
        Ok(target) => target,
        Err(why) => return fail(exit::USAGE, format_args!("{path:?}: {why}")),
    };
    let outgoing = Outgoing {
        method: args.method,
        target,
        headers: args.header.into_iter().collect::<HeaderMap>(),
        websocket: false,
    };
    let call = Call {
        route: &route.name,
        method: outgoing.method.as_str(),
        path: &outgoing.target.path,
    };
    let verdict = judge(config, route, &call);
    let preview = preview(route, &outgoing);
    if args.json {
        say(as_json(route, &preview, &verdict));
    } else {
        tell(route, &preview, &verdict);
    }
    match verdict {
        Verdict::Denied { .. } => exit::DENIED,
        _ => 0,
    }
}

fn judge(config: &Config, route: &config::Route, call: &Call<'_>) -> Verdict {
    if let Some(refused) = config.policy.refuses(call) {
        return Verdict::Denied {
            reason: refused.reason().to_string(),
            rule: refused.rule().map(ToString::to_string).unwrap_or_default(),
        };
    }
    let mut waits = route.approve.iter();
    if waits.any(|waits| waits.may_mean(call.method, call.path)) {
        Verdict::Waits
    } else {
        Verdict::Allowed
    }
}

fn tell(route: &config::Route, preview: &Preview, verdict: &Verdict) {
    for line in preview.to_string().lines() {
        say(safe(line));
    }
    let proxy = route.proxy.as_ref();
    say(format_args!(
        "\nto {}{}, nothing was sent",
        route.upstream.authority(),
        proxy
            .map(|proxy| format!(" through {proxy}"))
            .unwrap_or_default()
    ));
    match verdict {
        Verdict::Denied { reason, rule } => say(format_args!("denied, {reason}, by {rule}")),
        Verdict::Waits => say("allowed by the route, once an operator approves of it"),
        Verdict::Allowed => say("allowed by the route"),
    }
}

fn as_json(route: &config::Route, preview: &Preview, verdict: &Verdict) -> serde_json::Value {
    let (decision, reason, rule) = match verdict {
        Verdict::Denied { reason, rule } => ("deny", Some(reason), Some(rule)),
        _ => ("allow", None, None),
    };
    json!({
        "method": preview.method, "target": preview.target, "headers": preview.headers, "besides": preview.besides,
        "upstream": route.upstream.to_string(), "proxy": route.proxy.as_ref().map(ToString::to_string),
        "decision": decision, "reason": reason, "rule": rule, "waits_for": matches!(verdict, Verdict::Waits).then_some("approve"),
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("write a header as \"NAME: VALUE\"")?;
    let name = name.trim().parse().map_err(|_| "no header is named so")?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| "no header has such a value")?;
    Ok((name, value))
}
