//! Checks a whole log and names the first bad record: a pure [`Verifier`] over lines, and its reading rim.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::AuditError;
use super::chain::{Hash, Head, Link};
use super::files::{Lines, Tail, segments};
use super::record::Record;
use super::report::{Bad, Report, Why};

#[derive(Clone, Debug, Default)]
struct Place {
    file: String,
    line: u64,
}

/// Checks lines as they come, in the order of the segments.
#[derive(Debug)]
pub struct Verifier {
    pinned: Option<Head>,
    at: Place,
    /// Records of this segment from this number on are in the next one again.
    until: u64,
    first: u64,
    start: Option<(Head, Place)>,
    head: Option<(Head, Place)>,
    /// The last line was no record, so that the next one may be further on.
    lost: bool,
    again: HashMap<u64, (Hash, Place)>,
    expired: Vec<Head>,
    report: Report,
}

impl Verifier {
    /// A new check; with `pinned`, the log must have that record.
    #[must_use]
    pub fn new(pinned: Option<Head>) -> Self {
        Self {
            pinned,
            at: Place::default(),
            until: u64::MAX,
            first: 0,
            start: None,
            head: None,
            lost: false,
            again: HashMap::new(),
            expired: Vec::new(),
            report: Report::default(),
        }
    }

    /// The lines that follow are of file `name`, whose first record is `first`; the file after it begins
    /// with `next`.
    pub fn segment(&mut self, name: &str, first: u64, next: Option<u64>) {
        self.report.segments += 1;
        self.at = Place {
            file: name.to_owned(),
            line: 0,
        };
        (self.first, self.until) = (first, next.unwrap_or(u64::MAX));
    }

    /// The next line.
    pub fn line(&mut self, bytes: &[u8]) {
        self.at.line += 1;
        let Some(link) = Link::read(bytes) else {
            self.bad(self.expected(), Why::NotARecord);
            self.lost = true;
            return;
        };
        self.report.records += 1;
        if self.at.line == 1 && link.seq != self.first {
            self.bad(self.first, Why::Misnamed);
        }
        if !link.intact {
            self.bad(link.seq, Why::Edited);
        }
        if link.seq >= self.until {
            self.again.insert(link.seq, (link.hash, self.at.clone()));
            return;
        }
        if let Some((hash, place)) = self.again.remove(&link.seq)
            && hash != link.hash
        {
            self.bad_at(place, link.seq, Why::Rewritten);
        }
        if self.follows(&link) {
            self.head = Some((link.head(), self.at.clone()));
            self.note(bytes);
        }
        if self
            .pinned
            .is_some_and(|pin| pin.seq == link.seq && pin.hash != link.hash)
        {
            self.bad(link.seq, Why::Rewritten);
        }
    }

    /// What follows the last line of the segment.
    pub fn tail(&mut self, tail: Tail, newest: bool) {
        let (expected, tail_is_ours) = (self.expected(), self.until > self.expected());
        match tail {
            Tail::Clean => {}
            Tail::Torn if newest => self.report.torn = true,
            // The next segment has what should be here.
            Tail::Torn if !tail_is_ours => {}
            Tail::Torn | Tail::Gap => {
                self.at.line += 1;
                self.bad(expected, Why::BadTail);
            }
        }
    }

    /// The segment cannot be read on.
    pub fn unreadable(&mut self, why: &str) {
        self.at.line += 1;
        let why = why.trim_end().to_owned();
        self.bad(self.expected(), Why::Unreadable { why });
    }

    /// Whether the record stands where it should.
    fn follows(&mut self, link: &Link) -> bool {
        let lost = std::mem::take(&mut self.lost);
        let Some((head, place)) = self.head.clone() else {
            self.start = Some((link.before(), self.at.clone()));
            self.report.first = Some(link.seq);
            return true;
        };
        if link.seq <= head.seq {
            self.out_of_order(link.seq);
            return false;
        }
        if link.seq > head.seq + 1 {
            let to = link.seq - 1;
            let why = if self.at.line == 1 {
                Why::SegmentGap { to }
            } else {
                Why::Removed { to }
            };
            if !lost || to > head.seq + 1 {
                self.bad(head.seq + 1, why);
            }
        } else if link.prev != head.hash && link.intact && !lost {
            self.bad_at(place, head.seq, Why::Rewritten);
        }
        true
    }

    /// A record that was thought missing has moved; any other is there twice.
    fn out_of_order(&mut self, seq: u64) {
        let moved = self.report.bad.iter_mut().find(|bad| match bad.why {
            Why::Removed { to } | Why::SegmentGap { to } => (bad.seq..=to).contains(&seq),
            _ => false,
        });
        match moved {
            Some(bad) => bad.why = Why::Swapped,
            None => self.bad(seq, Why::Duplicate),
        }
    }

    /// Two kinds of records speak of the log itself.
    fn note(&mut self, line: &[u8]) {
        let has = |event: &[u8]| line.windows(event.len()).any(|window| window == event);
        if !has(br#""event":"audit.expired""#) && !has(br#""event":"alert.chain_broken""#) {
            return;
        }
        let Some(record) = Record::parse(line) else {
            return;
        };
        let extra = record.extra();
        if record.event == "audit.expired" {
            self.expired.extend(expired(&extra));
        } else if let Some(file) = extra.get("segment").and_then(Value::as_str) {
            let first = file.get(..26).unwrap_or(file);
            for bad in self
                .report
                .bad
                .iter_mut()
                .filter(|bad| bad.file.starts_with(first))
            {
                bad.noticed.get_or_insert(record.seq);
            }
        }
    }

    fn expected(&self) -> u64 {
        self.head
            .as_ref()
            .map_or(self.first, |(head, _)| head.seq + 1)
    }

    fn bad(&mut self, seq: u64, why: Why) {
        self.bad_at(self.at.clone(), seq, why);
    }

    fn bad_at(&mut self, place: Place, seq: u64, why: Why) {
        let Place { file, line } = place;
        // One record may be wrong in several ways; the first says it.
        if !self
            .report
            .bad
            .iter()
            .any(|bad| bad.seq == seq && bad.file == file && bad.line == line)
        {
            self.report.bad.push(Bad {
                file,
                line,
                seq,
                why,
                noticed: None,
            });
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(mut self) -> Report {
        if let Some((before, place)) = self.start.take()
            && before != Head::START
            && !self.expired.contains(&before)
        {
            self.bad_at(place, before.seq + 1, Why::BeginsLate);
        }
        let end = self.head.as_ref().map_or(0, |(head, _)| head.seq);
        if self.pinned.is_some_and(|pin| pin.seq > end) {
            self.bad_at(Place::default(), end + 1, Why::CutTail);
        }
        self.report.head = self.head.map(|(head, _)| head);
        self.report.bad.sort_by_key(|bad| bad.seq);
        self.report
    }
}

fn expired(extra: &Map<String, Value>) -> Option<Head> {
    Some(Head {
        seq: extra.get("last_seq")?.as_u64()?,
        hash: extra.get("last_hash")?.as_str()?.parse().ok()?,
    })
}

/// Checks the log in `dir`, also while it is written and its oldest segments expire.
pub fn verify(dir: &Path, pinned: Option<Head>) -> Result<Report, AuditError> {
    let list = || segments(dir).map_err(AuditError::io("list", dir));
    let mut verifier = Verifier::new(pinned);
    let mut files = VecDeque::from(list()?);
    while let Some(file) = files.pop_front() {
        let next = files.front().map(|next| next.first);
        match Lines::open(&file) {
            Ok(lines) => {
                verifier.segment(&file.name(), file.first, next);
                read(&mut verifier, lines, next.is_none());
            }
            // It expired since it was listed, and all before it: the log begins later now. The record that
            // tells of it may be in a segment begun since, so the rest is listed anew. If it went in another
            // way, no `audit.expired` names it, which shows.
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                verifier = Verifier::new(pinned);
                files = list()?.into();
                files.retain(|other| (other.first, other.kind) > (file.first, file.kind));
            }
            Err(why) => return Err(AuditError::io("read", &file.path)(why)),
        }
    }
    Ok(verifier.finish())
}

fn read(verifier: &mut Verifier, mut lines: Lines, newest: bool) {
    let mut looks = 0;
    let tail = loop {
        let end = loop {
            match lines.next_line() {
                Ok(Some(line)) => {
                    verifier.line(line);
                    looks = 0;
                }
                Ok(None) => break lines.tail(),
                Err(why) => break Err(why),
            }
        };
        looks += 1;
        match end {
            // What looks unfinished at the end of a log may be a record that is written just now, or several:
            // then the next look finds them whole.
            Ok(tail) if tail == Tail::Clean || !newest || looks == 5 => break tail,
            Ok(_) => std::thread::sleep(Duration::from_millis(2)),
            Err(why) => return verifier.unreadable(&why.to_string()),
        }
    };
    verifier.tail(tail, newest);
}
