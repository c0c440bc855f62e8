//! Counts records, one line at a time; each worker its own, added up in the end.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::hours::{ALERTS, ALLOWED, DENIED, Hours};
use super::{Access, Alert, Denied, EVIDENCE, Happened, Moment, Totals};
use crate::audit::{Brief, Record, sentence, time_text};

/// Pairs that are told apart by one worker; names that a peer makes up are endless.
const PAIRS: usize = 50_000;
/// The most alerts, and other events, that are kept in full.
const KEPT: usize = 500;

/// What was counted.
#[derive(Default)]
pub(super) struct Tally {
    pub totals: Totals,
    pub first: Option<Moment>,
    pub last: Option<Moment>,
    /// The first record of the log, however long ago.
    pub begins: Option<String>,
    /// By bot and secret.
    pub reads: HashMap<String, HashMap<String, Access>>,
    /// By bot and route.
    routes: HashMap<String, BTreeSet<String>>,
    /// Bots that listed names.
    lists: BTreeSet<String>,
    pub denied: HashMap<(String, Option<String>, String), Denied>,
    pairs: usize,
    pub rotated: HashMap<String, String>,
    /// Each with the first records that it points to.
    pub alerts: BTreeMap<u64, (Alert, Vec<u64>)>,
    pub hours: Hours,
    pub happened: BTreeMap<u64, Happened>,
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
        self.hours.at_hour(record.time, ALLOWED, 1);
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
            self.hours.at_hour_of_week(bot, record.time);
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
        self.hours.at_hour(record.time, DENIED, 1);
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
            self.hours.at_hour(record.time, ALERTS, 1);
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
        self.hours.at_hour(brief.time, DENIED, flooded);
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
        self.hours.merge(other.hours);
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
