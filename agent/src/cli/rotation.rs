//! `keyhatchd rotation status`: how each rotation stands, one line each.

use std::fmt::Write;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value as Json;

use super::admin;
use crate::audit::safe;

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show of each rotation: when the last one ended and how, when the next one begins, and by what
    #[command(after_help = "Example: keyhatchd rotation status --json")]
    Status(admin::Args),
}

pub fn rotation(verb: &Verb) -> u8 {
    let Verb::Status(args) = verb;
    let answer = args.ask(Method::GET, "/v1/rotation", Bytes::new());
    admin::finish(answer, args.json, render)
}

/// The daemon's answer as text.
fn render(answer: &Json) -> String {
    let all = answer["rotations"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if all.is_empty() {
        return "no [[rotation]] is configured".into();
    }
    let head = ["SECRET", "DRIVER", "LAST", "RESULT", "NEXT", "STATE"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
        let Some(one) = at.checked_sub(1).map(|at| &all[at]) else {
            continue;
        };
        if let Some(why) = one["why"].as_str() {
            let step = one["step"].as_str();
            let at_step = step.map_or(String::new(), |step| format!("at {step}: "));
            let _ = writeln!(out, "  ! {at_step}{}", safe(why));
        }
        if let Some(why) = one["not_told"].as_str() {
            let _ = writeln!(out, "  ! not told of it: {}", safe(why));
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn row(one: &Json) -> [String; 6] {
    let text = |key: &str| safe(one[key].as_str().unwrap_or("-"));
    let state = match (one["state"].as_str(), one["host"].as_str()) {
        (Some("elsewhere"), Some(host)) => format!("on host {}", safe(host)),
        (Some("in_grace"), _) => format!("in grace until {}", text("grace_until")),
        (Some("failing"), _) => format!("failing, {} times", one["failures"]),
        _ => text("state"),
    };
    let cells = ["secret", "driver", "last", "result", "next"].map(text);
    let [secret, driver, last, result, next] = cells;
    [secret, driver, last, result, next, state]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_rotation_is_a_line_and_trouble_follows_it() {
        let answer = json!({ "rotations": [
            { "secret": "app/key", "driver": "generate", "last": "2026-01-01T00:00:00Z", "result": "done",
              "next": "2026-01-31T00:00:00Z", "state": "waiting", "failures": 0, "not_told": "reload of bot.service: no" },
            { "secret": "app/db", "driver": "exec", "last": null, "next": "2026-01-01T00:01:00Z", "state": "failing",
              "failures": 2, "step": "set", "why": "it ended with exit code 1" },
            { "secret": "x", "driver": "exec", "state": "elsewhere", "host": "db-1" },
        ]});
        let expected = "\
SECRET   DRIVER    LAST                  RESULT  NEXT                  STATE
app/key  generate  2026-01-01T00:00:00Z  done    2026-01-31T00:00:00Z  waiting
  ! not told of it: reload of bot.service: no
app/db   exec      -                     -       2026-01-01T00:01:00Z  failing, 2 times
  ! at set: it ended with exit code 1
x        exec      -                     -       -                     on host db-1";
        assert_eq!(render(&answer), expected);
        assert_eq!(render(&json!({})), "no [[rotation]] is configured");
    }
}
