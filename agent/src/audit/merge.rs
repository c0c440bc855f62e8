//! Equal reads told as one, for a journald that is far behind.

use std::collections::HashMap;

use super::journald::Together;
use super::record::Record;

/// Records on their way to the journal.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<(Record, Option<Together>)>,
    /// Where the first of some equal reads is.
    first: HashMap<Vec<u8>, usize>,
    same: Vec<u8>,
}

impl Batch {
    /// Adds a record; with `merge`, one that equals an allowed read of the same second only counts there.
    pub(super) fn add(&mut self, seq: u64, line: &[u8], merge: bool) {
        if merge && what_is_same(&mut self.same, line) {
            let known = self
                .first
                .get(&self.same)
                .and_then(|at| self.entries.get_mut(*at));
            if let Some((_, together)) = known {
                let count = together.map_or(1, |together| together.count) + 1;
                *together = Some(Together { count, last: seq });
                return;
            }
            self.first.insert(self.same.clone(), self.entries.len());
        }
        self.entries
            .extend(Record::parse(line).map(|record| (record, None)));
    }
}

/// What equal allowed reads of one second have in common, as bytes; false for any other record.
///
/// A quote inside a JSON string is escaped, so these keys are found nowhere but where they belong.
fn what_is_same(out: &mut Vec<u8>, line: &[u8]) -> bool {
    let find = |what: &[u8]| line.windows(what.len()).position(|window| window == what);
    let read = find(br#","event":"secret.read","decision":"allow","#);
    let (Some(from), Some(to), Some(time)) =
        (read, find(br#","request_id":"#), find(br#","time":""#))
    else {
        return false;
    };
    let second = line.get(time..time + br#","time":"2026-01-02T03:04:05"#.len());
    let (Some(second), Some(rest)) = (second, line.get(from..to)) else {
        return false;
    };
    out.clear();
    out.extend_from_slice(second);
    out.extend_from_slice(rest);
    true
}

#[cfg(test)]
mod tests {
    use super::super::render::{Clock, Now, record};
    use super::super::{Entry, Event, Verdict};
    use super::*;
    use crate::audit::Head;

    fn read(seq: u64, secret: &str, time: &str, decision: Verdict) -> Vec<u8> {
        let entry = Entry {
            decision,
            secret: Some(secret),
            ..Entry::of(Event::SecretRead)
        };
        let head = Head {
            seq: seq - 1,
            ..Head::START
        };
        let now = Now {
            wall: humantime::parse_rfc3339(time).unwrap(),
            ..Now::read()
        };
        let mut line = Vec::new();
        record(&mut line, &head, &entry, &mut Clock::new(), now);
        line.pop();
        line
    }

    #[test]
    fn only_equal_reads_of_one_second_are_told_together() {
        let (one, two) = ("2026-01-01T00:00:00.1Z", "2026-01-01T00:00:01.1Z");
        let records = [
            (1, read(1, "a", one, Verdict::Allow)),
            (2, read(2, "b", one, Verdict::Allow)),
            (3, read(3, "a", one, Verdict::Allow)),
            (4, read(4, "a", one, Verdict::Deny)),
            (5, read(5, "a", two, Verdict::Allow)),
            (6, read(6, "a", one, Verdict::Allow)),
        ];
        let told = |merge| {
            let mut batch = Batch::default();
            for (seq, line) in &records {
                batch.add(*seq, line, merge);
            }
            let told = batch.entries.into_iter();
            told.map(|(r, t)| (r.seq, t.map(|t| (t.count, t.last))))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(true),
            [(1, Some((3, 6))), (2, None), (4, None), (5, None)]
        );
        assert_eq!(told(false).len(), 6);
    }
}
