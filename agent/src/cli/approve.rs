//! `keyhatchd approve`: the calls that wait for an operator, and letting one go on.

use std::fmt::Write;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value as Json;

use super::admin::{self, Target};
use super::{exit, fail};
use crate::audit::safe;

/// More of a body is not printed as text.
const BODY: usize = 1000;

#[derive(clap::Args)]
pub struct Args {
    /// The call that is to go on; without it, all that wait are shown
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn approve(args: &Args) -> u8 {
    let Some(id) = &args.id else {
        let answer = args.target.ask(Method::GET, "/v1/approvals", Bytes::new());
        return admin::finish(answer, args.json, |listed| {
            let waiting = listed["waiting"].as_array().cloned();
            let lines: Vec<String> = waiting.unwrap_or_default().iter().map(lines).collect();
            lines.join("\n")
        });
    };
    if !id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return fail(exit::NOT_FOUND, "no call has such an id");
    }
    let path = format!("/v1/approvals/approve?id={id}");
    let answer = args.target.ask(Method::POST, &path, Bytes::new());
    admin::finish(answer, args.json, |_| format!("approved {id}"))
}

/// What a bot asks for. It chose the path, the query, the headers and the body.
fn lines(call: &Json) -> String {
    let word = |key: &str| safe(call[key].as_str().unwrap_or_default());
    let seconds = call["seconds"].as_u64().unwrap_or_default();
    let query = match call["query"].as_str() {
        Some(query) => format!("\n    ?{}", safe(query)),
        None => String::new(),
    };
    let mut headers = String::new();
    for header in call["headers"].as_array().into_iter().flatten() {
        let part = |at: usize| safe(header[at].as_str().unwrap_or_default());
        // Writing to a string does not fail.
        let _ = write!(headers, "\n    {}: {}", part(0), part(1));
    }
    let body = match call["body"].as_str() {
        Some("") => String::new(),
        Some(body) => {
            let cut: String = body.chars().take(BODY).collect();
            let more = if cut.len() < body.len() { " ..." } else { "" };
            format!("\n    {}{more}", safe(&cut))
        }
        None => "\n    with a body that is not here yet".to_owned(),
    };
    format!(
        "{}  {} wants {} of {}: {}, for {seconds} s{query}{headers}{body}",
        word("id"),
        word("bot"),
        word("method"),
        word("route"),
        word("path")
    )
}
