//! The rows of a report, from what was counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::tally::Tally;
use super::{Access, Alert, Ask, DAY, Denied, Happened, ROWS, Review, Unrotated};

impl Tally {
    /// The report, in which no table is longer than its rows; `evidence` is what alerts point to.
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
            timeline: self.hours.timeline(),
            heat: self.hours.heat(),
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
