//! Metrics in the `OpenMetrics` text format (1.0). Never a value, a name or a peer: only counts.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::context::Context;
use crate::routes::Counters;

/// The media type of the text.
pub const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Renders all metrics.
pub fn render(context: &Context) -> String {
    let mut out = Text(String::new());
    let counts = &context.counts;
    out.head("keyhatch_decisions", "counter", "Decisions about secrets.");
    for (decision, count) in [("allow", &counts.allowed), ("deny", &counts.denied)] {
        let labels = format!("{{decision=\"{decision}\"}}");
        out.sample("keyhatch_decisions_total", &labels, count.load(Relaxed));
    }
    out.counter(
        "keyhatch_requests_limited",
        "Requests over a limit.",
        counts.limited.load(Relaxed),
    );
    out.counter(
        "keyhatch_requests_bad",
        "Requests that did not parse.",
        counts.bad.load(Relaxed),
    );
    out.gauge(
        "keyhatch_connections",
        "Open connections.",
        context.limits.connections().into(),
    );
    out.gauge(
        "keyhatch_ready",
        "1 where requests are served.",
        context.status().reasons.is_empty().into(),
    );
    out.gauge(
        "keyhatch_sealed",
        "1 where the agent is sealed.",
        context.cache.is_sealed().into(),
    );
    let stale = context.config_files.load().changed();
    out.gauge(
        "keyhatch_config_changed",
        "1 where the configuration on disk is not the running one.",
        stale.into(),
    );
    out.gauge(
        "keyhatch_promises_missing",
        "Promises that this host does not let the agent keep.",
        context.health.missing().len() as u64,
    );
    rotations(&mut out, context);
    memory(&mut out, context);
    sources(&mut out, context);
    routes(&mut out, context);
    audit(&mut out, context);
    out.0.push_str("# EOF\n");
    out.0
}

fn rotations(out: &mut Text, context: &Context) {
    let (done, failed) = context.rotations.counts();
    out.head(
        "keyhatch_rotations",
        "counter",
        "Steps of rotations that failed, and rotations that are done.",
    );
    for (result, count) in [("done", done), ("failed", failed)] {
        let labels = format!("{{result=\"{result}\"}}");
        out.sample("keyhatch_rotations_total", &labels, count);
    }
    let all = context.rotations.all();
    let failing = all.iter().filter(|rotation| rotation.state == "failing");
    out.gauge(
        "keyhatch_rotations_failing",
        "Rotations whose last step failed and is tried again.",
        failing.count() as u64,
    );
}

fn memory(out: &mut Text, context: &Context) {
    let arena = context.cache.arena();
    out.gauge(
        "keyhatch_secret_memory_used_bytes",
        "Secret memory in use.",
        arena.used() as u64,
    );
    out.gauge(
        "keyhatch_secret_memory_size_bytes",
        "Secret memory in all.",
        arena.size() as u64,
    );
}

fn sources(out: &mut Text, context: &Context) {
    let sources = context.sources.all_by_name();
    out.head(
        "keyhatch_source_healthy",
        "gauge",
        "1 where the source's newest values are served.",
    );
    for (name, source) in &sources {
        let healthy = u64::from(source.loaded && source.trouble.is_none());
        out.sample(
            "keyhatch_source_healthy",
            &format!("{{source=\"{name}\"}}"),
            healthy,
        );
    }
    out.head(
        "keyhatch_source_secrets",
        "gauge",
        "Secrets that are served from the source.",
    );
    for (name, source) in &sources {
        out.sample(
            "keyhatch_source_secrets",
            &format!("{{source=\"{name}\"}}"),
            source.secrets as u64,
        );
    }
    let upstreams: Vec<_> = sources
        .iter()
        .filter_map(|(name, source)| Some((name, source.upstream?)))
        .collect();
    if upstreams.is_empty() {
        return;
    }
    out.head(
        "keyhatch_source_oldest_value_seconds",
        "gauge",
        "Since when the upstream has not stood behind its oldest value.",
    );
    for (name, upstream) in &upstreams {
        let labels = format!("{{source=\"{name}\"}}");
        let age = upstream.oldest_age().unwrap_or(0);
        out.sample("keyhatch_source_oldest_value_seconds", &labels, age);
    }
    out.head(
        "keyhatch_source_next_try_seconds",
        "gauge",
        "Until the upstream is asked again.",
    );
    for (name, upstream) in &upstreams {
        let labels = format!("{{source=\"{name}\"}}");
        let pause = upstream.next_try().unwrap_or(0);
        out.sample("keyhatch_source_next_try_seconds", &labels, pause);
    }
}

/// What is counted of a route.
type Count = fn(&Counters) -> &AtomicU64;

fn routes(out: &mut Text, context: &Context) {
    let counters: [(&str, &str, Count); 6] = [
        ("requests", "Requests that were passed on.", |c| &c.requests),
        (
            "failed",
            "Requests without a whole answer of the upstream.",
            |c| &c.failed,
        ),
        ("limited", "Requests over a limit of the route.", |c| {
            &c.limited
        }),
        (
            "masked",
            "Answers in which the secret was written over.",
            |c| &c.masked,
        ),
        ("sent_bytes", "Bytes of bodies to the upstream.", |c| {
            &c.sent
        }),
        (
            "received_bytes",
            "Bytes of bodies from the upstream.",
            |c| &c.received,
        ),
    ];
    let routes = context.routes.load();
    let all = routes.all();
    if all.is_empty() {
        return;
    }
    for (name, help, count) in counters {
        let name = format!("keyhatch_route_{name}");
        out.head(&name, "counter", help);
        for route in &all {
            let labels = format!("{{route=\"{}\"}}", route.name());
            let count = count(route.counters()).load(Relaxed);
            out.sample(&format!("{name}_total"), &labels, count);
        }
    }
    out.head("keyhatch_route_open", "gauge", "Requests under way.");
    for route in &all {
        let labels = format!("{{route=\"{}\"}}", route.name());
        let open = route.counters().open.load(Relaxed);
        out.sample("keyhatch_route_open", &labels, open);
    }
}

fn audit(out: &mut Text, context: &Context) {
    let audit = context.audit.stats();
    out.counter(
        "keyhatch_audit_records",
        "Records kept, by the number of the last.",
        audit.seq,
    );
    out.gauge(
        "keyhatch_audit_available",
        "1 where records can be kept.",
        context.audit.available().is_ok().into(),
    );
    out.counter(
        "keyhatch_audit_refused",
        "Requests refused because no record could be kept.",
        audit.refused,
    );
    out.counter(
        "keyhatch_audit_unrecorded",
        "Requests served without a record (on_failure = \"allow\").",
        audit.unrecorded,
    );
    out.gauge(
        "keyhatch_audit_journald_backlog",
        "Records that journald has not been given.",
        audit.journal_behind,
    );
}

/// Metrics as text.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(&format!("{name}_total"), "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }
}
