//! A review as one HTML file that needs no other, and that a browser lets load nothing.
//!
//! Names and paths come from bots: everything is escaped here, and the script makes no markup. Without scripts
//! the page shows all of it.

use std::fmt::{Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{Alert, Happened, Review, Unused, shade};
use crate::audit::safe;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Shades of the heat map in `style.css`.
const SHADES: usize = 6;

/// The whole file.
#[must_use]
pub fn html(review: &Review) -> String {
    let mut out = Page(String::with_capacity(64 * 1024));
    out.add("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.add(&format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{}'; script-src '{}'; \
         base-uri 'none'; form-action 'none'\">\n",
        digest(STYLE),
        digest(SCRIPT)
    ));
    out.add("<meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"referrer\" content=\"no-referrer\">\n");
    out.add("<title>Keyhatch audit report</title>\n");
    out.add(&format!("<style>{STYLE}</style>\n</head>\n<body>\n"));
    out.head(review);
    out.add("<main>\n");
    out.filters(review);
    out.alerts(&review.alerts);
    out.timeline(review);
    out.heat(review);
    out.reads(review);
    out.denied(review);
    out.unused(review);
    out.unrotated(review);
    out.happened(&review.happened);
    out.add("</main>\n<footer><p>Made by <code>keyhatchd audit report</code>; times are UTC.</p></footer>\n");
    out.heat_data(review);
    out.add(&format!("<script>{SCRIPT}</script>\n</body>\n</html>\n"));
    out.0
}

/// The source that a policy of content names inline text by.
fn digest(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// Text in HTML, also in a quoted attribute, without what turns or hides other text.
fn escaped(text: impl Display) -> String {
    let text = safe(&text.to_string());
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn second(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

/// One cell of a table: its class and text.
struct Cell(&'static str, String);

fn text(text: impl Display) -> Cell {
    Cell("", escaped(text))
}

fn number(count: impl Display) -> Cell {
    Cell("n", escaped(count))
}

fn time(time: &str) -> Cell {
    Cell("t", escaped(second(time)))
}

struct Page(String);

impl Page {
    fn add(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn head(&mut self, review: &Review) {
        let (totals, none) = (&review.totals, String::new());
        let first = review.first.as_ref().map_or(&none, |first| &first.time);
        let last = review.last.as_ref().map_or(&none, |last| &last.time);
        self.add("<header>\n<h1>Keyhatch audit report</h1>\n");
        let _ = writeln!(
            self.0,
            "<p>{} to {}, made {}</p>\n<ul class=\"tiles\">",
            escaped(second(first)),
            escaped(second(last)),
            escaped(second(&review.made))
        );
        let tiles = [
            ("", totals.records, "records"),
            ("", totals.allowed, "requests allowed"),
            (
                "deny",
                totals.denied.saturating_add(totals.flooded),
                "denied",
            ),
            ("alert", totals.alerts, "alerts"),
            ("", review.heat.len() as u64, "bots that read"),
            ("", review.unrotated.len() as u64, "secrets to rotate"),
        ];
        for (class, count, what) in tiles {
            let _ = writeln!(self.0, "<li class=\"{class}\"><b>{count}</b>{what}</li>");
        }
        self.add("</ul>\n");
        if totals.left_out > 0 {
            let _ = writeln!(
                self.0,
                "<p>{} requests are in no row: too many names.</p>",
                totals.left_out
            );
        }
        self.add("</header>\n");
    }

    fn filters(&mut self, review: &Review) {
        self.add("<form id=\"filters\" role=\"search\" hidden>\n<label>Search <input id=\"search\" type=\"search\" autocomplete=\"off\"></label>\n");
        self.add("<label>Bot <select id=\"bot\"><option value=\"\">all</option>");
        let names = review.reads.iter().map(|access| &access.bot);
        let names = names.chain(review.denied.iter().map(|denied| &denied.who));
        let names: std::collections::BTreeSet<&String> = names.collect();
        for name in names {
            let name = escaped(name);
            let _ = write!(self.0, "<option value=\"{name}\">{name}</option>");
        }
        self.add("</select></label>\n<label>Show <select id=\"kind\"><option value=\"\">everything</option>");
        for (kind, title) in [
            ("alerts", "alerts"),
            ("activity", "activity"),
            ("reads", "reads"),
            ("denied", "denied"),
            ("unused", "unused grants"),
            ("unrotated", "secrets to rotate"),
            ("happened", "other events"),
        ] {
            let _ = write!(self.0, "<option value=\"{kind}\">{title}</option>");
        }
        self.add("</select></label>\n<button type=\"reset\">Clear</button>\n<output id=\"shown\" aria-live=\"polite\"></output>\n</form>\n");
    }

    fn section(&mut self, kind: &str, title: &str, body: impl FnOnce(&mut Self)) {
        let _ = writeln!(
            self.0,
            "<section data-kind=\"{kind}\" aria-label=\"{title}\">\n<h2>{title}</h2>"
        );
        body(self);
        self.add("</section>\n");
    }

    /// A table whose columns can be sorted; each row says which bots it is about.
    fn table(&mut self, columns: &[&str], rows: impl Iterator<Item = (String, Vec<Cell>)>) {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return self.add("<p>None.</p>\n");
        }
        self.add("<table><thead><tr>");
        let is_number =
            |cells: &Vec<Cell>, at: usize| cells.get(at).is_some_and(|cell| cell.0 == "n");
        for (at, column) in columns.iter().enumerate() {
            let class = match rows.peek() {
                Some((_, cells)) if is_number(cells, at) => " class=\"n\"",
                _ => "",
            };
            let _ = write!(
                self.0,
                "<th scope=\"col\"{class}><button type=\"button\">{column}</button></th>"
            );
        }
        self.add("</tr></thead>\n<tbody>\n");
        for (bots, cells) in rows {
            let _ = write!(self.0, "<tr data-row=\"{bots}\">");
            for Cell(class, content) in cells {
                let _ = match class {
                    "" => write!(self.0, "<td>{content}</td>"),
                    class => write!(self.0, "<td class=\"{class}\">{content}</td>"),
                };
            }
            self.add("</tr>\n");
        }
        self.add("</tbody></table>\n");
    }

    fn reads(&mut self, review: &Review) {
        let columns = ["Bot", "Secret", "Reads", "Uses", "Watches", "First", "Last"];
        self.section("reads", "Who read what", |page| {
            page.table(
                &columns,
                review.reads.iter().map(|access| {
                    let cells = vec![
                        text(&access.bot),
                        text(&access.secret),
                        number(access.reads),
                        number(access.uses),
                        number(access.watches),
                        time(&access.first),
                        time(&access.last),
                    ];
                    (escaped(&access.bot), cells)
                }),
            );
        });
    }

    fn denied(&mut self, review: &Review) {
        let columns = ["Who", "Secret", "Reason", "Count", "First", "Last"];
        self.section("denied", "Denied", |page| {
            page.table(
                &columns,
                review.denied.iter().map(|denied| {
                    let cells = vec![
                        text(&denied.who),
                        text(denied.secret.as_deref().unwrap_or_default()),
                        Cell("deny", escaped(&denied.reason)),
                        number(denied.count),
                        time(&denied.first),
                        time(&denied.last),
                    ];
                    (escaped(&denied.who), cells)
                }),
            );
        });
    }

    fn unused(&mut self, review: &Review) {
        let Some(policy) = &review.smaller_policy else {
            return;
        };
        let columns = ["Role", "Grant", "Actions", "What", "Where"];
        self.section("unused", "Grants that were not used", |page| {
            let row = |unused: &Unused| {
                let grant = &unused.grant;
                let cells = vec![
                    text(&grant.role),
                    text(&grant.pattern),
                    text(grant.actions.join(" ")),
                    text(unused.says()),
                    text(&grant.place),
                ];
                let bots: Vec<String> = unused.unused_by.iter().map(escaped).collect();
                (bots.join("\n"), cells)
            };
            page.table(&columns, review.unused.iter().map(row));
            page.add("<p>Roles that grant what was used in this time, and no more:</p>\n<pre tabindex=\"0\">");
            let lines: Vec<String> = policy.lines().map(escaped).collect();
            page.add(&lines.join("\n"));
            page.add("</pre>\n");
        });
    }

    fn unrotated(&mut self, review: &Review) {
        let title = format!(
            "Read, and not rotated for {} days",
            review.rotate_within_days
        );
        self.section("unrotated", &title, |page| {
            page.table(
                &["Secret", "Days", "Rotated"],
                review.unrotated.iter().map(|one| {
                    let rotated = match &one.rotated {
                        Some(at) => time(at),
                        None => text("not since the log begins"),
                    };
                    let readers = review.reads.iter().filter(|read| read.secret == one.secret);
                    let readers: Vec<String> = readers.map(|read| escaped(&read.bot)).collect();
                    let cells = vec![text(&one.secret), number(one.days), rotated];
                    (readers.join("\n"), cells)
                }),
            );
        });
    }

    fn alerts(&mut self, alerts: &[Alert]) {
        self.section("alerts", "Alerts", |page| {
            page.table(
                &[
                    "Time",
                    "Record",
                    "Alert",
                    "What, and the records that show it",
                ],
                alerts.iter().map(|alert| {
                    let mut says = escaped(&alert.says);
                    if !alert.evidence.is_empty() {
                        says.push_str("<ul class=\"evidence\">");
                        for one in &alert.evidence {
                            let (at, seq, what) =
                                (escaped(second(&one.time)), one.seq, escaped(&one.says));
                            let _ = write!(says, "<li>{at} · {seq} · {what}</li>");
                        }
                        let more = alert.evidence_count - alert.evidence.len();
                        if more > 0 {
                            let _ = write!(says, "<li>and {more} more</li>");
                        }
                        says.push_str("</ul>");
                    }
                    let cells = vec![
                        time(&alert.time),
                        number(alert.seq),
                        Cell("alert", escaped(&alert.event)),
                        Cell("", says),
                    ];
                    (escaped(alert.bot.as_deref().unwrap_or_default()), cells)
                }),
            );
        });
    }

    fn happened(&mut self, happened: &[Happened]) {
        self.section("happened", "What else happened", |page| {
            page.table(
                &["Time", "Record", "What"],
                happened.iter().map(|one| {
                    let cells = vec![time(&one.time), number(one.seq), text(&one.says)];
                    (String::new(), cells)
                }),
            );
        });
    }

    /// Bars of requests over time; the same as a table for who cannot see them.
    fn timeline(&mut self, review: &Review) {
        let buckets = &review.timeline;
        let most = buckets
            .iter()
            .map(|bucket| bucket.allowed.saturating_add(bucket.denied))
            .max();
        let Some(most) = most.filter(|most| *most > 0) else {
            return;
        };
        let height = |count: u64| count as f64 * 90.0 / most as f64;
        self.section("activity", "Activity", |page| {
            let width = buckets.len().max(24) * 10;
            let _ = writeln!(
                page.0,
                "<svg viewBox=\"0 0 {width} 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Requests over time, at most {most}\">\
                 <line class=\"axis\" x1=\"0\" y1=\"99.5\" x2=\"{width}\" y2=\"99.5\"/>"
            );
            for (at, bucket) in buckets.iter().enumerate() {
                let (x, allowed, denied) = (at * 10 + 1, height(bucket.allowed), height(bucket.denied));
                let _ = writeln!(
                    page.0,
                    "<g><title>{}: {} allowed, {} denied, {} alerts</title>\
                     <rect class=\"allowed\" x=\"{x}\" y=\"{:.2}\" width=\"8\" height=\"{allowed:.2}\"/>\
                     <rect class=\"denied\" x=\"{x}\" y=\"{:.2}\" width=\"8\" height=\"{denied:.2}\"/>{}</g>",
                    escaped(&bucket.begins),
                    bucket.allowed,
                    bucket.denied,
                    bucket.alerts,
                    99.0 - allowed,
                    99.0 - allowed - denied,
                    if bucket.alerts > 0 {
                        format!("<rect class=\"alerts\" x=\"{x}\" y=\"0\" width=\"8\" height=\"4\"/>")
                    } else {
                        String::new()
                    }
                );
            }
            page.add("</svg>\n<ul class=\"key\">");
            for what in ["allowed", "denied", "alerts"] {
                let _ = write!(
                    page.0,
                    "<li><svg viewBox=\"0 0 1 1\" aria-hidden=\"true\"><rect class=\"{what}\" width=\"1\" height=\"1\"/></svg>{what}</li>"
                );
            }
            page.add("</ul>\n<details><summary>As a table</summary><table><thead><tr><th scope=\"col\">From</th><th scope=\"col\">Allowed</th><th scope=\"col\">Denied</th><th scope=\"col\">Alerts</th></tr></thead><tbody>\n");
            for bucket in buckets {
                let _ = writeln!(
                    page.0,
                    "<tr><td class=\"t\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                    escaped(&bucket.begins), bucket.allowed, bucket.denied, bucket.alerts
                );
            }
            page.add("</tbody></table></details>\n");
        });
    }

    fn heat(&mut self, review: &Review) {
        let sums = review.week();
        let most = sums.iter().max().copied().unwrap_or(0);
        self.section("activity", "Reads by hour of the week", |page| {
            page.add("<table class=\"heat\" id=\"heat\"><caption>UTC; the stronger the colour, the more reads</caption><thead><tr><th></th>");
            for hour in 0..24 {
                let _ = write!(page.0, "<th scope=\"col\">{hour}</th>");
            }
            page.add("</tr></thead><tbody>\n");
            for (day, name) in DAYS.iter().enumerate() {
                let _ = write!(page.0, "<tr><th scope=\"row\">{name}</th>");
                for count in &sums[day * 24..][..24] {
                    let _ = write!(page.0, "<td class=\"s{}\">{count}</td>", shade(*count, most, SHADES));
                }
                page.add("</tr>\n");
            }
            page.add("</tbody></table>\n");
        });
    }

    /// What the script needs to show the hours of one bot. No text can end the element.
    fn heat_data(&mut self, review: &Review) {
        let json = serde_json::to_string(&review.heat).unwrap_or_else(|_| "{}".to_owned());
        let json = json
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026");
        let _ = writeln!(
            self.0,
            "<script type=\"application/json\" id=\"heat-data\">{json}</script>"
        );
    }
}
