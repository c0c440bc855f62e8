//! `keyhatchd quarantine`: the bots that detection holds, and letting them out.

use bytes::Bytes;
use hyper::Method;
use serde_json::Value as Json;

use super::admin::{self, Target};
use super::{exit, fail};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show the bots that are quarantined, since when and why
    #[command(after_help = "Example: keyhatchd quarantine list")]
    List(admin::Args),
    /// Let a bot have its secrets again
    #[command(after_help = "Example: keyhatchd quarantine release support-bot")]
    Release(Release),
}

#[derive(clap::Args)]
struct Release {
    /// The bot's name in the configuration
    #[arg(value_name = "BOT")]
    bot: String,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn quarantine(args: &Args) -> u8 {
    match &args.verb {
        Verb::List(args) => list(args),
        Verb::Release(args) => release(args),
    }
}

fn list(args: &admin::Args) -> u8 {
    let answer = args.target.ask(Method::GET, "/v1/quarantine", Bytes::new());
    admin::finish(answer, args.json, |listed| {
        let bots = listed["quarantined"].as_array().cloned();
        let lines: Vec<String> = bots.unwrap_or_default().iter().map(line).collect();
        lines.join("\n")
    })
}

fn line(bot: &Json) -> String {
    let word = |key: &str| bot[key].as_str().unwrap_or_default().to_owned();
    let seq = bot["seq"].as_u64();
    let seq = seq.map_or_else(String::new, |seq| format!(", record {seq}"));
    format!(
        "{} since {}: {}{seq}",
        word("bot"),
        word("since"),
        word("rule")
    )
}

fn release(args: &Release) -> u8 {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    let bot = args.bot.replace('+', "%2B");
    if !args.bot.bytes().all(|byte| fits(byte) || byte == b'+') {
        return fail(exit::NOT_FOUND, "no bot has such a name");
    }
    let path = format!("/v1/quarantine/release?bot={bot}");
    let answer = args.target.ask(Method::POST, &path, Bytes::new());
    admin::finish(answer, args.json, |_| format!("released {}", args.bot))
}
