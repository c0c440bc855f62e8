//! `keyhatchd status` for people: one screen, plain words, trouble first.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::audit::safe;

/// The daemon's answer as text.
pub fn render(status: &Json) -> String {
    let mut out = String::new();
    let troubles = troubles(status);
    let agent = &status["agent"];
    let state = match (
        flag(&status["sealed"]),
        flag(&status["ready"]),
        troubles.is_empty(),
    ) {
        (true, ..) => "is SEALED: nothing is served",
        (_, false, _) => "is NOT READY: not everything is served",
        (_, _, false) => "serves, but needs a look",
        _ => "serves",
    };
    let _ = writeln!(out, "keyhatchd {} {state}", text(&agent["version"]));
    for trouble in troubles {
        let _ = writeln!(out, "  ! {}", safe(&trouble));
    }
    for missing in texts(&status["missing"]) {
        let _ = writeln!(out, "  on this host: {}", safe(missing));
    }
    let _ = writeln!(out);
    let mut line = |label: &str, what: &str| {
        let _ = writeln!(out, "{label:<14} {}", safe(what));
    };
    line(
        "running since",
        &format!("{}, pid {}", text(&agent["started"]), number(&agent["pid"])),
    );
    line("configuration", text(&agent["config"]));
    line("socket", text(&agent["socket"]));
    line("bots", &of_bots(status));
    for source in list(&status["sources"]) {
        line(
            &format!("source {}", text(&source["name"])),
            &of_source(source),
        );
    }
    let memory = &status["secret_memory"];
    line(
        "secret memory",
        &format!("{} of {}", size(&memory["used"]), size(&memory["size"])),
    );
    let audit = &status["audit"];
    line(
        "audit log",
        &format!(
            "{} records, {}, {} of them not in journald yet",
            number(&audit["seq"]),
            size(&audit["bytes"]),
            number(&audit["journald_behind"])
        ),
    );
    if number(&audit["flooded"]) > 0 {
        line(
            "",
            &format!(
                "{} denials of a flood were only counted",
                number(&audit["flooded"])
            ),
        );
    }
    if let (Some(why), None) = (audit["last_error"].as_str(), audit["trouble"].as_str()) {
        line("", &format!("had trouble, which has passed: {why}"));
    }
    out.truncate(out.trim_end().len());
    out
}

/// What someone should do something about, the worst first.
fn troubles(status: &Json) -> Vec<String> {
    let mut found = Vec::new();
    let audit = &status["audit"];
    if let Some(why) = audit["trouble"].as_str() {
        found.push(format!(
            "no audit record can be kept, so nothing is given out: {why}"
        ));
    }
    if flag(&status["sealed"]) {
        found.push("sealed by an operator; `keyhatchd unseal` loads all values again".to_owned());
    }
    for source in list(&status["sources"]) {
        let name = text(&source["name"]);
        let withheld = number(&source["upstream"]["withheld"]);
        if withheld > 0 {
            found.push(format!(
                "source {name} no longer serves {withheld} of its secrets, which are too old"
            ));
        }
        match (source["trouble"].as_str(), flag(&source["loaded"])) {
            (Some(why), true) => {
                found.push(format!("source {name} serves its last good values: {why}"));
            }
            (Some(why), false) => found.push(format!("source {name} serves nothing: {why}")),
            (None, false) if !flag(&status["sealed"]) => {
                found.push(format!("source {name} has not loaded yet"));
            }
            _ => {}
        }
    }
    let unrecorded = number(&audit["unrecorded"]);
    if unrecorded > 0 {
        found.push(format!(
            "{unrecorded} requests were served without a record (on_failure = \"allow\")"
        ));
    }
    let failing = number(&status["rotations"]["failing"]);
    if failing > 0 {
        found.push(format!(
            "{failing} rotations fail and are tried again; `keyhatchd rotation status` says why"
        ));
    }
    let told = ["sealed", "no audit record", "source "];
    let others = texts(&status["reasons"])
        .filter(|reason| !told.iter().any(|start| reason.starts_with(start)));
    found.extend(others.map(str::to_owned));
    if flag(&status["config_changed_on_disk"]) {
        let text = "the configuration on disk is not the one that runs; `keyhatchd check`, then `keyhatchd reload`";
        found.push(text.to_owned());
    }
    if let Some(why) = audit["journald_error"].as_str() {
        let behind = number(&audit["journald_behind"]);
        found.push(format!(
            "journald is not reached, {behind} records wait in the audit log: {why}"
        ));
    }
    found
}

/// Who asks, and what they were answered since the daemon started.
fn of_bots(status: &Json) -> String {
    let requests = &status["requests"];
    let mut told = format!(
        "{} configured, {} connections; {} allowed, {} denied",
        number(&status["bots"]),
        number(&status["connections"]),
        number(&requests["allowed"]),
        number(&requests["denied"])
    );
    for (word, count) in [
        ("over a limit", number(&requests["limited"])),
        (
            "refused for want of a record",
            number(&status["audit"]["refused"]),
        ),
    ] {
        if count > 0 {
            let _ = write!(told, ", {count} {word}");
        }
    }
    told
}

fn of_source(source: &Json) -> String {
    let secrets = match number(&source["secrets"]) {
        1 => "1 secret".to_owned(),
        count => format!("{count} secrets"),
    };
    let loaded = source["last_success"]
        .as_str()
        .map_or_else(|| "not loaded".to_owned(), |at| format!("loaded {at}"));
    let upstream = &source["upstream"];
    if upstream.is_object() {
        let seconds = |value: &Json| value.as_u64().map_or("-".into(), |s| format!("{s} s"));
        return format!(
            "{secrets}, {}, {loaded}, oldest value {} old, next look in {}",
            text(&source["state"]),
            seconds(&upstream["oldest_age"]),
            seconds(&upstream["next_try"])
        );
    }
    format!(
        "{secrets}, generation {}, {loaded}",
        number(&source["generation"])
    )
}

fn flag(value: &Json) -> bool {
    value.as_bool().unwrap_or_default()
}

fn number(value: &Json) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or("-")
}

fn list(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Json) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Json::as_str)
}

/// Bytes in the unit that people read most easily, rounded down to a tenth.
fn size(value: &Json) -> String {
    let bytes = number(value);
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        None => format!("{bytes} bytes"),
        Some((shift, unit)) => {
            let tenths = ((bytes & ((1 << shift) - 1)) * 10) >> shift;
            format!("{}.{tenths} {unit}", bytes >> shift)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Json {
        json!({
            "agent": { "version": "1.2.3", "pid": 7, "started": "2026-01-01T00:00:00Z", "config": "/c", "socket": "/s" },
            "ready": true, "reasons": [], "missing": [], "sealed": false, "config_changed_on_disk": false,
            "connections": 2, "bots": 3, "requests": { "allowed": 5, "denied": 1, "limited": 0 },
            "rotations": { "all": 1, "failing": 0 }, "secret_memory": { "used": 1536, "size": 1 << 30 },
            "sources": [{ "name": "local", "loaded": true, "trouble": null, "secrets": 1, "generation": 3,
                          "last_success": "2026-01-01T00:00:01Z" }],
            "audit": { "seq": 9, "trouble": null, "bytes": 100, "journald_behind": 0, "journald_error": null,
                       "flooded": 0, "last_error": null },
        })
    }

    #[test]
    fn a_healthy_daemon_is_one_screen_without_trouble() {
        assert_eq!(
            render(&status()),
            "keyhatchd 1.2.3 serves\n\n\
             running since  2026-01-01T00:00:00Z, pid 7\n\
             configuration  /c\n\
             socket         /s\n\
             bots           3 configured, 2 connections; 5 allowed, 1 denied\n\
             source local   1 secret, generation 3, loaded 2026-01-01T00:00:01Z\n\
             secret memory  1.5 KiB of 1.0 GiB\n\
             audit log      9 records, 100 bytes, 0 of them not in journald yet"
        );
    }

    #[test]
    fn trouble_stands_first_and_drives_no_terminal() {
        let mut bad = status();
        bad["ready"] = false.into();
        bad["config_changed_on_disk"] = true.into();
        bad["reasons"] = json!(["source local has not loaded", "stopping"]);
        bad["sources"][0]["loaded"] = false.into();
        bad["sources"][0]["trouble"] = "no \x1b[2Jstore".into();
        bad["missing"] = json!(["no memfd_secret"]);
        let text = render(&bad);
        let lines: Vec<&str> = text.lines().take(5).collect();
        assert_eq!(
            lines,
            [
                "keyhatchd 1.2.3 is NOT READY: not everything is served",
                "  ! source local serves nothing: no \\u{1b}[2Jstore",
                "  ! stopping",
                "  ! the configuration on disk is not the one that runs; `keyhatchd check`, then `keyhatchd reload`",
                "  on this host: no memfd_secret",
            ]
        );
        bad["sealed"] = true.into();
        assert!(render(&bad).starts_with("keyhatchd 1.2.3 is SEALED"));
    }

    #[test]
    fn what_was_limited_refused_or_unrecorded_is_told_and_so_is_a_rotation_that_fails() {
        let mut bad = status();
        bad["requests"]["limited"] = 4.into();
        bad["audit"]["refused"] = 6.into();
        bad["audit"]["unrecorded"] = 7.into();
        bad["rotations"]["failing"] = 1.into();
        let text = render(&bad);
        assert!(text.starts_with("keyhatchd 1.2.3 serves, but needs a look\n  ! 7 requests"));
        assert!(text.contains("  ! 1 rotations fail"));
        assert!(text.contains("1 denied, 4 over a limit, 6 refused for want of a record\n"));
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(render(&json!({})).starts_with("keyhatchd - is NOT READY"));
    }
}
