//! A review as text for a terminal.

use std::fmt::Write;

use super::{Moment, Review};
use crate::audit::safe;

/// Rows of one table on a terminal; all are in JSON and HTML.
const SHOWN: usize = 40;

/// The review as lines, nothing in it that a terminal acts on.
#[must_use]
pub fn text(review: &Review) -> String {
    let mut out = String::new();
    head(&mut out, review);
    reads(&mut out, review);
    denied(&mut out, review);
    grants(&mut out, review);
    unrotated(&mut out, review);
    alerts(&mut out, review);
    hours(&mut out, review);
    timeline(&mut out, review);
    out
}

/// A table; its widest cells decide. Everything in it is made safe to show.
fn table(out: &mut String, title: &str, columns: &[&str], rows: &[Vec<String>]) {
    let _ = writeln!(out, "\n{title}");
    if rows.is_empty() {
        out.push_str("  none\n");
        return;
    }
    let shown: Vec<Vec<String>> =
        std::iter::once(columns.iter().map(ToString::to_string).collect())
            .chain(rows.iter().take(SHOWN).cloned())
            .map(|row: Vec<String>| row.iter().map(|cell| safe(cell)).collect())
            .collect();
    let width = |at: usize| {
        let cells = shown.iter().map(|row| row[at].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for row in &shown {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    if rows.len() > SHOWN {
        let _ = writeln!(
            out,
            "  and {} more; see --json or --html",
            rows.len() - SHOWN
        );
    }
}

fn head(out: &mut String, review: &Review) {
    let totals = &review.totals;
    let at = |moment: &Option<Moment>| match moment {
        Some(moment) => format!("{} (record {})", second(&moment.time), moment.seq),
        None => "no record".to_owned(),
    };
    let _ = writeln!(out, "Audit report, made {}", second(&review.made));
    let _ = writeln!(out, "  from {} to {}", at(&review.first), at(&review.last));
    let _ = writeln!(
        out,
        "  {} records: {} allowed, {} denied and {} more counted in floods, {} alerts",
        totals.records, totals.allowed, totals.denied, totals.flooded, totals.alerts
    );
    if totals.left_out > 0 {
        let _ = writeln!(
            out,
            "  {} requests are in no row: too many names",
            totals.left_out
        );
    }
}

fn reads(out: &mut String, review: &Review) {
    let rows: Vec<Vec<String>> = review
        .reads
        .iter()
        .map(|access| {
            vec![
                access.bot.clone(),
                access.secret.clone(),
                access.reads.to_string(),
                access.uses.to_string(),
                access.watches.to_string(),
                second(&access.first),
                second(&access.last),
            ]
        })
        .collect();
    let columns = ["bot", "secret", "reads", "uses", "watches", "first", "last"];
    table(out, "Who read what", &columns, &rows);
}

fn denied(out: &mut String, review: &Review) {
    let rows: Vec<Vec<String>> = review
        .denied
        .iter()
        .map(|denied| {
            vec![
                denied.who.clone(),
                denied.secret.clone().unwrap_or_default(),
                denied.reason.clone(),
                denied.count.to_string(),
                second(&denied.first),
                second(&denied.last),
            ]
        })
        .collect();
    let columns = ["who", "secret", "reason", "count", "first", "last"];
    table(out, "Denied", &columns, &rows);
}

fn grants(out: &mut String, review: &Review) {
    let Some(policy) = &review.smaller_policy else {
        return;
    };
    let rows: Vec<Vec<String>> = review
        .unused
        .iter()
        .map(|unused| {
            vec![
                unused.grant.role.clone(),
                unused.grant.pattern.clone(),
                unused.grant.actions.join(" "),
                unused.says(),
                unused.grant.place.clone(),
            ]
        })
        .collect();
    let columns = ["role", "grant", "actions", "what", "where"];
    table(out, "Grants that were not used", &columns, &rows);
    out.push_str("\nRoles that grant what was used in this time, and no more\n");
    for line in policy.lines() {
        let _ = writeln!(out, "  {}", safe(line));
    }
}

fn unrotated(out: &mut String, review: &Review) {
    let rows: Vec<Vec<String>> = review
        .unrotated
        .iter()
        .map(|one| {
            let rotated = match &one.rotated {
                Some(time) => second(time),
                None => "not since the log begins".to_owned(),
            };
            vec![one.secret.clone(), one.days.to_string(), rotated]
        })
        .collect();
    let title = format!(
        "Read, and not rotated for {} days",
        review.rotate_within_days
    );
    table(out, &title, &["secret", "days", "rotated"], &rows);
}

fn alerts(out: &mut String, review: &Review) {
    let _ = writeln!(out, "\nAlerts");
    if review.alerts.is_empty() {
        out.push_str("  none\n");
    }
    for alert in review.alerts.iter().take(SHOWN) {
        let _ = writeln!(
            out,
            "  {} {} {}",
            second(&alert.time),
            alert.seq,
            safe(&alert.says)
        );
        for one in &alert.evidence {
            let _ = writeln!(
                out,
                "    {} {} {}",
                second(&one.time),
                one.seq,
                safe(&one.says)
            );
        }
        if alert.evidence_count > alert.evidence.len() {
            let more = alert.evidence_count - alert.evidence.len();
            let _ = writeln!(out, "    and {more} more records");
        }
    }
    if review.alerts.len() > SHOWN {
        let _ = writeln!(
            out,
            "  and {} more; see --json or --html",
            review.alerts.len() - SHOWN
        );
    }
}

/// The heat map: a shade for each hour of the week.
fn hours(out: &mut String, review: &Review) {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
    let sums = review.week();
    let most = sums.iter().max().copied().unwrap_or(0);
    if most == 0 {
        return;
    }
    out.push_str("\nReads by hour of the week, UTC\n       0     6     12    18\n");
    for (day, name) in DAYS.iter().enumerate() {
        let shade = |count: &u64| SHADES[super::shade(*count, most, SHADES.len())];
        let row: String = sums[day * 24..][..24].iter().map(shade).collect();
        let _ = writeln!(out, "  {name}  {row}");
    }
    let _ = writeln!(out, "  {} is none, {} is {most}", SHADES[0], SHADES[4]);
}

fn timeline(out: &mut String, review: &Review) {
    let rows: Vec<Vec<String>> = review
        .happened
        .iter()
        .map(|one| vec![second(&one.time), one.seq.to_string(), one.says.clone()])
        .collect();
    table(
        out,
        "What else happened, newest first",
        &["time", "record", "what"],
        &rows,
    );
}

/// A time to the second, which is how people read it.
fn second(time: &str) -> String {
    match time.get(..19) {
        Some(second) => safe(second).replace('T', " "),
        None => safe(time),
    }
}
