//! Records for people: one line each, safe to show on a terminal.

use std::fmt::Write;

use serde_json::Value;

use super::record::Record;

/// One line about a record, with colours where asked. Whatever a peer chose is escaped.
#[must_use]
pub fn format_line(record: &Record, color: bool) -> String {
    let paint = match (color, record.decision.as_str()) {
        (true, _) if record.event.starts_with("alert.") => ("\x1b[1;31m", "\x1b[0m"),
        (true, "deny") => ("\x1b[33m", "\x1b[0m"),
        (true, "allow") => ("\x1b[32m", "\x1b[0m"),
        _ => ("", ""),
    };
    let mut out = format!("{} {:>6} ", safe(&record.time), record.seq);
    let _ = write!(
        out,
        "{}{:<5}{} {}",
        paint.0,
        safe(&record.decision),
        paint.1,
        safe(&sentence(record))
    );
    if let Some(rule) = &record.rule {
        let _ = write!(out, " [{}]", safe(rule));
    }
    if let Some(id) = &record.request_id {
        let _ = write!(out, " {}", safe(id));
    }
    out
}

/// What a record says, in words; not escaped.
#[must_use]
pub fn sentence(record: &Record) -> String {
    let mut out = record.event.clone();
    if let Some(secret) = &record.secret {
        let _ = write!(out, " {secret}");
    }
    if let Some(version) = &record.version {
        let _ = write!(out, " ({version})");
    }
    match (&record.bot, &record.peer) {
        (Some(bot), _) => {
            let _ = write!(out, " by {bot}");
        }
        (None, Some(_)) => out.push_str(" by no bot"),
        (None, None) => {}
    }
    out.push_str(&peer(record));
    match (record.decision.as_str(), &record.reason) {
        ("deny", Some(reason)) => {
            let _ = write!(out, ": denied, {reason}");
        }
        ("deny", None) => out.push_str(": denied"),
        _ => {}
    }
    let extra = record.extra();
    let text = |key: &str| extra.get(key).and_then(Value::as_str);
    if let Some(message) = text("message").or_else(|| text("nearest")) {
        let _ = write!(out, ": {message}");
    } else if record.decision == "info" && !extra.is_empty() {
        let _ = write!(out, ": {}", Value::Object(extra));
    }
    out
}

fn peer(record: &Record) -> String {
    let Some(peer) = &record.peer else {
        return String::new();
    };
    let mut facts = Vec::new();
    facts.extend(peer.pid.map(|pid| format!("pid {pid}")));
    facts.extend(peer.uid.map(|uid| format!("uid {uid}")));
    facts.extend(peer.unit.clone());
    facts.extend(peer.exe.clone());
    if facts.is_empty() {
        String::new()
    } else {
        format!(" ({})", facts.join(", "))
    }
}

/// Text without anything that a terminal acts on or that turns the reading direction.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let bidi = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || bidi {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let mut record = Record::parse(&line(7)).unwrap();
        record.decision = "deny".to_owned();
        record.secret = Some("x\x1b]0;owned\x07\u{9b}31m\u{202e}\n".to_owned());
        record.rule = Some("\x1b[2J".to_owned());
        record.request_id = Some("\r".to_owned());
        let shown = format_line(&record, false);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(!shown.contains('\u{202e}') && shown.contains("\\u{1b}]0;owned"));
        let coloured = format_line(&record, true);
        assert_eq!(
            coloured.matches('\x1b').count(),
            2,
            "only our own: {coloured:?}"
        );
    }
}
