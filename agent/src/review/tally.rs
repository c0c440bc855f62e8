//! Counts records, one line at a time; each worker its own, added up in the end.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::{
    Access, Alert, Ask, Bucket, Denied, EVIDENCE, Happened, Moment, ROWS, Review, Totals, Unrotated,
};
use crate::audit::{Brief, Record, sentence, time_text};

/// Pairs that are told apart by one worker; names that a peer makes up are endless.
const PAIRS: usize = 50_000;
/// The most alerts, and other events, that are kept in full.
const KEPT: usize = 500;
/// More buckets than this are added up to days.
const BUCKETS: u64 = 24 * 8;
/// No timeline is longer, whatever a clock said that was set wrong.
const MOST_BUCKETS: u64 = 4_000;
const HOURS: usize = 7 * 24;
const DAY: u64 = 24 * 60 * 60;

/// What was counted.
#[derive(Default)]
pub(super) struct Tally {
    totals: Totals,
    first: Option<Moment>,
    last: Option<Moment>,
    /// The first record of the log, however long ago.
    begins: Option<String>,
    /// By bot and secret.
    reads: HashMap<String, HashMap<String, Access>>,
    /// By bot and route.
    routes: HashMap<String, BTreeSet<String>>,
    /// Bots that listed names.
    lists: BTreeSet<String>,
    denied: HashMap<(String, Option<String>, String), Denied>,
    pairs: usize,
    rotated: HashMap<String, String>,
    /// Each with the first records that it points to.
    alerts: BTreeMap<u64, (Alert, Vec<u64>)>,
    heat: HashMap<String, Vec<u64>>,
    hours: HashMap<String, [u64; 3]>,
    happened: BTreeMap<u64, Happened>,
    day: (String, usize),
}

/// What of the grants was used, by bot.
#[derive(Debug, Default)]
pub(super) struct Used<'a> {
    /// Secrets, and what was done with each.
    pub secrets: BTreeMap<&'a str, Vec<&'a Access>>,
    /// Routes.
    pub routes: BTreeMap<&'a str, &'a BTreeSet<String>>,
    /// Bots that listed names.
    pub lists: BTreeSet<&'a str>,
}

impl Tally {
    /// Counts one line, if it is not before `from`.
    pub(super) fn count(&mut self, line: &[u8], from: &str) {
        let is_early = time_text(line).is_none_or(|time| time < from);
        if self.begins.is_none() || is_early {
            self.look_back(line);
        }
        if is_early {
            return;
        }
        let Some(record) = Brief::parse(line) else {
            return;
        };
        self.totals.records += 1;
        self.moment(&record);
        match &*record.decision {
            "allow" => self.allowed(&record, line),
            "deny" => self.refused(&record),
            _ => self.event(&record, line),
        }
    }

    /// Of records before the time that is asked for, rotations count.
    fn look_back(&mut self, line: &[u8]) {
        if let Some(time) = time_text(line) {
            earlier(&mut self.begins, time);
        }
        if memchr::memmem::find(line, br#","event":"secret.rotated","#).is_some()
            && let Some(record) = Brief::parse(line)
        {
            self.rotation(&record);
        }
    }

    fn rotation(&mut self, record: &Brief<'_>) {
        if let Some(secret) = record.secret.as_deref()
            && &*record.event == "secret.rotated"
        {
            let rotated = self.rotated.entry(secret.to_owned()).or_default();
            if rotated.as_str() < record.time {
                record.time.clone_into(rotated);
            }
        }
    }

    fn moment(&mut self, record: &Brief<'_>) {
        let own = || Moment {
            seq: record.seq,
            time: record.time.to_owned(),
        };
        if self
            .first
            .as_ref()
            .is_none_or(|first| record.seq < first.seq)
        {
            self.first = Some(own());
        }
        match &mut self.last {
            Some(last) if last.seq < record.seq => {
                last.seq = record.seq;
                record.time.clone_into(&mut last.time);
            }
            Some(_) => {}
            None => self.last = Some(own()),
        }
    }

    fn allowed(&mut self, record: &Brief<'_>, line: &[u8]) {
        let (Some(bot), Some(what)) = (record.bot.as_deref(), record.event.strip_prefix("secret."))
        else {
            // What operators asked for.
            return self.happened_in_full(record.seq, line);
        };
        if what == "used" {
            return;
        }
        self.totals.allowed += 1;
        self.at_hour(record, 0, 1);
        if what == "list" {
            if !self.lists.contains(bot) {
                self.lists.insert(bot.to_owned());
            }
            return;
        }
        if let Some(route) = record.route.as_deref()
            && !self
                .routes
                .get(bot)
                .is_some_and(|routes| routes.contains(route))
        {
            let routes = self.routes.entry(bot.to_owned()).or_default();
            routes.insert(route.to_owned());
        }
        if let Some(secret) = record.secret.as_deref()
            && self.access(bot, secret, what, record.time)
            && what == "read"
        {
            self.at_hour_of_week(bot, record.time);
        }
    }

    /// Whether the pair of bot and secret could be told apart from the others.
    fn access(&mut self, bot: &str, secret: &str, what: &str, time: &str) -> bool {
        if !self.reads.contains_key(bot) {
            self.reads.insert(bot.to_owned(), HashMap::new());
        }
        let Some(of_bot) = self.reads.get_mut(bot) else {
            return false;
        };
        if !of_bot.contains_key(secret) {
            if self.pairs >= PAIRS {
                self.totals.left_out += 1;
                return false;
            }
            self.pairs += 1;
            let access = Access {
                bot: bot.to_owned(),
                secret: secret.to_owned(),
                first: time.to_owned(),
                last: time.to_owned(),
                ..Access::default()
            };
            of_bot.insert(secret.to_owned(), access);
        }
        let Some(access) = of_bot.get_mut(secret) else {
            return false;
        };
        match what {
            "read" => access.reads += 1,
            "watch" => access.watches += 1,
            "use" => access.uses += 1,
            "rotate" => access.rotations += 1,
            _ => {}
        }
        span(&mut access.first, &mut access.last, time, time);
        true
    }

    fn refused(&mut self, record: &Brief<'_>) {
        self.totals.denied += 1;
        self.at_hour(record, 1, 1);
        let who = match (record.bot.as_deref(), &record.peer) {
            (Some(bot), _) => bot.to_owned(),
            (None, Some(peer)) => {
                let uid = peer.uid.map_or("?".to_owned(), |uid| uid.to_string());
                let unit = peer.unit.as_deref().map(|unit| format!(", {unit}"));
                format!("uid {uid}{} (no bot)", unit.unwrap_or_default())
            }
            (None, None) => "the agent".to_owned(),
        };
        let secret = record.secret.as_deref().map(str::to_owned);
        let reason = record.reason.as_deref().unwrap_or_default().to_owned();
        let denied = Denied {
            who: who.clone(),
            secret: secret.clone(),
            reason: reason.clone(),
            count: 1,
            first: record.time.to_owned(),
            last: record.time.to_owned(),
            seq: record.seq,
        };
        self.add_denied((who, secret, reason), denied);
    }

    fn add_denied(&mut self, key: (String, Option<String>, String), denied: Denied) {
        let full = self.denied.len() >= PAIRS;
        match self.denied.entry(key) {
            Slot::Occupied(mut slot) => {
                let old = slot.get_mut();
                old.count += denied.count;
                old.seq = old.seq.max(denied.seq);
                span(&mut old.first, &mut old.last, &denied.first, &denied.last);
            }
            Slot::Vacant(_) if full => self.totals.left_out += denied.count,
            Slot::Vacant(slot) => drop(slot.insert(denied)),
        }
    }

    /// What merely happened.
    fn event(&mut self, record: &Brief<'_>, line: &[u8]) {
        self.rotation(record);
        if record.event.starts_with("alert.") {
            self.totals.alerts += 1;
            self.at_hour(record, 2, 1);
            self.alert(record, line);
        } else if !matches!(&*record.event, "audit.checkpoint" | "secret.used") {
            self.happened_in_full(record.seq, line);
        }
    }

    fn alert(&mut self, brief: &Brief<'_>, line: &[u8]) {
        let Some(record) = Record::parse(line) else {
            return;
        };
        let extra = record.extra();
        let floods = extra.get("floods").and_then(Value::as_array);
        let flooded: u64 = floods
            .into_iter()
            .flatten()
            .filter_map(|flood| flood.get("count")?.as_u64())
            .fold(0, u64::saturating_add);
        self.totals.flooded = self.totals.flooded.saturating_add(flooded);
        self.at_hour(brief, 1, flooded);
        let evidence = extra.get("evidence").and_then(Value::as_array);
        let evidence = evidence.into_iter().flatten().filter_map(Value::as_u64);
        let alert = Alert {
            seq: record.seq,
            time: record.time.clone(),
            event: record.event.clone(),
            bot: record.bot.clone(),
            says: sentence(&record),
            evidence: Vec::new(),
            evidence_count: evidence.clone().count(),
        };
        let shown = evidence.take(EVIDENCE).collect();
        keep_newest(&mut self.alerts, record.seq, (alert, shown));
    }

    fn happened_in_full(&mut self, seq: u64, line: &[u8]) {
        let is_older = self.happened.len() >= KEPT
            && self
                .happened
                .first_key_value()
                .is_some_and(|(first, _)| seq < *first);
        if !is_older && let Some(record) = Record::parse(line) {
            keep_newest(&mut self.happened, seq, Happened::of(&record));
        }
    }

    fn at_hour(&mut self, record: &Brief<'_>, column: usize, count: u64) {
        let Some(hour) = record.time.get(..13) else {
            return;
        };
        if !self.hours.contains_key(hour) {
            self.hours.insert(hour.to_owned(), [0; 3]);
        }
        if let Some(counts) = self.hours.get_mut(hour) {
            counts[column] = counts[column].saturating_add(count);
        }
    }

    fn at_hour_of_week(&mut self, bot: &str, time: &str) {
        let (Some(date), Some(hour)) = (time.get(..10), time.get(11..13)) else {
            return;
        };
        if self.day.0 != date {
            self.day = (date.to_owned(), weekday(date));
        }
        let hour = hour.parse::<usize>().unwrap_or(0).min(23);
        if !self.heat.contains_key(bot) {
            self.heat.insert(bot.to_owned(), vec![0; HOURS]);
        }
        if let Some(hours) = self.heat.get_mut(bot) {
            hours[self.day.1 * 24 + hour] += 1;
        }
    }

    /// Adds what another worker counted.
    pub(super) fn merge(mut self, other: Self) -> Self {
        let totals = &mut self.totals;
        totals.records += other.totals.records;
        totals.allowed += other.totals.allowed;
        totals.denied += other.totals.denied;
        totals.flooded = totals.flooded.saturating_add(other.totals.flooded);
        totals.alerts += other.totals.alerts;
        totals.left_out += other.totals.left_out;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        if let Some(begins) = &other.begins {
            earlier(&mut self.begins, begins);
        }
        for (bot, secrets) in other.reads {
            let of_bot = self.reads.entry(bot).or_default();
            for (secret, access) in secrets {
                match of_bot.entry(secret) {
                    Slot::Occupied(mut slot) => slot.get_mut().add(&access),
                    Slot::Vacant(slot) => drop(slot.insert(access)),
                }
            }
        }
        for (bot, routes) in other.routes {
            self.routes.entry(bot).or_default().extend(routes);
        }
        self.lists.extend(other.lists);
        for (key, denied) in other.denied {
            self.add_denied(key, denied);
        }
        for (secret, time) in other.rotated {
            let own = self.rotated.entry(secret).or_default();
            *own = std::mem::take(own).max(time);
        }
        for (bot, hours) in other.heat {
            let own = self.heat.entry(bot).or_insert_with(|| vec![0; HOURS]);
            own.iter_mut()
                .zip(hours)
                .for_each(|(own, more)| *own += more);
        }
        for (hour, counts) in other.hours {
            let own = self.hours.entry(hour).or_default();
            *own = sums(*own, counts);
        }
        for (seq, alert) in other.alerts {
            keep_newest(&mut self.alerts, seq, alert);
        }
        for (seq, happened) in other.happened {
            keep_newest(&mut self.happened, seq, happened);
        }
        self
    }

    /// The records that alerts point to.
    pub(super) fn evidence(&self) -> impl Iterator<Item = u64> {
        let alerts = self.alerts.values();
        alerts.flat_map(|(_, seqs)| seqs.iter().copied())
    }

    pub(super) fn used(&self) -> Used<'_> {
        let reads = self.reads.iter();
        let routes = self.routes.iter();
        Used {
            secrets: reads
                .map(|(bot, of_bot)| (bot.as_str(), of_bot.values().collect()))
                .collect(),
            routes: routes.map(|(bot, routes)| (bot.as_str(), routes)).collect(),
            lists: self.lists.iter().map(String::as_str).collect(),
        }
    }

    pub(super) fn into_review(self, evidence: &BTreeMap<u64, Happened>, ask: &Ask<'_>) -> Review {
        let unrotated = self.unrotated(ask);
        let mut totals = self.totals;
        let mut reads: Vec<Access> = self
            .reads
            .into_values()
            .flat_map(HashMap::into_values)
            .collect();
        reads.sort_by(|a, b| (&a.bot, &a.secret).cmp(&(&b.bot, &b.secret)));
        for access in reads.drain(reads.len().min(ROWS)..) {
            totals.left_out += access.reads + access.watches + access.uses + access.rotations;
        }
        let mut denied: Vec<Denied> = self.denied.into_values().collect();
        denied.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.seq.cmp(&b.seq)));
        for left_out in denied.drain(denied.len().min(ROWS)..) {
            totals.left_out += left_out.count;
        }
        let alerts = self.alerts.into_values().rev();
        let alerts = alerts.map(|(alert, seqs)| Alert {
            evidence: seqs
                .iter()
                .filter_map(|seq| evidence.get(seq).cloned())
                .collect(),
            ..alert
        });
        Review {
            first: self.first,
            last: self.last,
            totals,
            reads,
            denied,
            unrotated,
            rotate_within_days: ask.rotate_within.as_secs() / DAY,
            alerts: alerts.collect(),
            heat: self.heat.into_iter().collect(),
            timeline: timeline(self.hours),
            happened: self.happened.into_values().rev().collect(),
            ..Review::default()
        }
    }

    /// What was read in this time, and not rotated for too long.
    fn unrotated(&self, ask: &Ask<'_>) -> Vec<Unrotated> {
        let secrets: BTreeSet<&String> = self.reads.values().flat_map(HashMap::keys).collect();
        let age = |secret: &&String| {
            let rotated = self.rotated.get(*secret);
            let at = humantime::parse_rfc3339(rotated.or(self.begins.as_ref())?).ok()?;
            let age = ask.now.duration_since(at).ok()?;
            (age >= ask.rotate_within).then(|| Unrotated {
                secret: (*secret).clone(),
                rotated: rotated.cloned(),
                days: age.as_secs() / DAY,
            })
        };
        let mut found: Vec<Unrotated> = secrets.iter().filter_map(age).collect();
        found.sort_by(|a, b| b.days.cmp(&a.days).then_with(|| a.secret.cmp(&b.secret)));
        found.truncate(ROWS);
        found
    }
}

impl Access {
    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.watches += other.watches;
        self.uses += other.uses;
        self.rotations += other.rotations;
        span(&mut self.first, &mut self.last, &other.first, &other.last);
    }
}

/// Widens a span of time; RFC 3339 of one length is in the order of time.
fn span(first: &mut String, last: &mut String, from: &str, to: &str) {
    if from < first.as_str() {
        from.clone_into(first);
    }
    if to > last.as_str() {
        to.clone_into(last);
    }
}

fn earlier(begins: &mut Option<String>, time: &str) {
    match begins {
        Some(begins) if begins.as_str() <= time => {}
        _ => *begins = Some(time.to_owned()),
    }
}

fn keep_newest<T>(all: &mut BTreeMap<u64, T>, seq: u64, one: T) {
    all.insert(seq, one);
    if all.len() > KEPT {
        all.pop_first();
    }
}

/// A flood's record may say any number.
fn sums(some: [u64; 3], more: [u64; 3]) -> [u64; 3] {
    [0, 1, 2].map(|at| some[at].saturating_add(more[at]))
}

/// From the first hour to the last, those without a request too.
fn timeline(hours: HashMap<String, [u64; 3]>) -> Vec<Bucket> {
    let hours: BTreeMap<u64, [u64; 3]> = hours
        .into_iter()
        .filter_map(|(hour, counts)| Some((number_of(&hour)?, counts)))
        .collect();
    let ends = hours.first_key_value().zip(hours.last_key_value());
    let Some((first, last)) = ends.map(|((first, _), (last, _))| (*first, *last)) else {
        return Vec::new();
    };
    let (step, len) = if last - first < BUCKETS {
        (1, 13)
    } else {
        (24, 10)
    };
    let most = first / step + MOST_BUCKETS;
    let bucket = |at: u64| {
        let [allowed, denied, alerts] = hours
            .range(at * step..(at + 1) * step)
            .fold([0; 3], |all, (_, counts)| sums(all, *counts));
        let begins = UNIX_EPOCH + Duration::from_secs(at * step * 3600);
        let mut begins = humantime::format_rfc3339_seconds(begins).to_string();
        begins.truncate(len);
        Bucket {
            begins,
            allowed,
            denied,
            alerts,
        }
    };
    (first / step..=(last / step).min(most))
        .map(bucket)
        .collect()
}

/// The hours since 1970 of `2026-01-31T12`.
fn number_of(hour: &str) -> Option<u64> {
    let at = humantime::parse_rfc3339(&format!("{hour}:00:00Z")).ok()?;
    Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs() / 3600)
}

/// The day of the week of `2026-01-31`, Monday first.
fn weekday(date: &str) -> usize {
    let midnight = humantime::parse_rfc3339(&format!("{date}T00:00:00Z")).ok();
    let since = midnight.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    // 1 January 1970 was a Thursday.
    let days = since.map_or(0, |since| since.as_secs() / DAY);
    usize::try_from((days + 3) % 7).unwrap_or(0)
}
