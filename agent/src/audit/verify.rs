//! Checks a whole log and names the first bad record: a pure [`Verifier`] over lines, and its reading rim.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::AuditError;
use super::chain::{Hash, Head, Link};
use super::files::{Lines, Tail, segments};
use super::record::{Record, time_text};
use super::report::{Bad, Report, Why};
use super::sealed::{Sealing, Seals};

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
    seals: Option<Seals>,
    /// The first record that the last good checkpoint does not seal.
    unsealed: Option<(u64, Place)>,
    /// The latest time in a record that the last good checkpoint does not seal.
    latest: String,
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
            seals: None,
            unsealed: None,
            latest: String::new(),
            report: Report::default(),
        }
    }

    /// The same; what was sealed must be as it was.
    #[must_use]
    pub fn with_key(self, sealing: Option<Sealing>) -> Self {
        let seals = sealing.map(Seals::new);
        Self { seals, ..self }
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
        if self.seals.is_some()
            && let Some(time) = time_text(bytes)
            && self.latest.as_str() < time
        {
            time.clone_into(&mut self.latest);
        }
        if self.follows(&link) {
            self.head = Some((link.head(), self.at.clone()));
            self.note(link.seq, bytes);
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

    /// Some records speak of the log itself.
    fn note(&mut self, seq: u64, line: &[u8]) {
        if self.seals.is_some() {
            self.unsealed.get_or_insert_with(|| (seq, self.at.clone()));
        }
        let Some(event) = event_of_log(line) else {
            return;
        };
        let Some(record) = Record::parse(line).filter(|record| record.event == event) else {
            return;
        };
        match event {
            EXPIRED => self.expired.extend(expired(&record.extra())),
            CHECKPOINT => self.checkpoint(&record),
            _ => self.noticed(&record),
        }
    }

    fn noticed(&mut self, record: &Record) {
        let extra = record.extra();
        let Some(file) = extra.get("segment").and_then(Value::as_str) else {
            return;
        };
        let first = file.get(..26).unwrap_or(file);
        for bad in &mut self.report.bad {
            if bad.file.starts_with(first) {
                bad.noticed.get_or_insert(record.seq);
            }
        }
    }

    fn checkpoint(&mut self, record: &Record) {
        let first = self.report.first.unwrap_or(1);
        let Some(seals) = &mut self.seals else { return };
        let sealed = seals.last();
        let why = seals.checkpoint(record, first);
        if seals.last() != sealed {
            self.unsealed = None;
            self.latest.clear();
        }
        if let (Some(why), Some((seq, place))) = (why, self.unsealed.clone()) {
            self.bad_seal(place, seq..=record.seq, why);
        }
    }

    /// A seal says that something is wrong among `records`; where the chain says what, that is enough.
    fn bad_seal(&mut self, place: Place, records: RangeInclusive<u64>, why: Why) {
        if !self.report.bad.iter().any(|bad| records.contains(&bad.seq)) {
            self.bad_at(place, *records.start(), why);
        }
    }

    fn finish_seals(&mut self, end: u64) {
        let Some(seals) = &mut self.seals else { return };
        let why = seals.finish(&self.latest);
        self.report.sealed = seals.last();
        let Some(why) = why else { return };
        let (seq, place) = match (&why, self.unsealed.take()) {
            (Why::SealsCut { .. }, _) | (_, None) => (end + 1, Place::default()),
            (_, Some((seq, place))) => (seq, place),
        };
        self.bad_seal(place, seq..=u64::MAX, why);
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
        self.finish_seals(end);
        if self.pinned.is_some_and(|pin| pin.seq > end) {
            self.bad_at(Place::default(), end + 1, Why::CutTail);
        }
        self.report.head = self.head.map(|(head, _)| head);
        self.report.bad.sort_by_key(|bad| bad.seq);
        self.report
    }
}

const EXPIRED: &str = "audit.expired";
const CHECKPOINT: &str = "audit.checkpoint";
const BROKEN: &str = "alert.chain_broken";

/// The event of a line, if it is about the log itself. Most are not, and need no parsing to tell.
fn event_of_log(line: &[u8]) -> Option<&'static str> {
    const KEY: &[u8] = br#","event":"a"#;
    let at = memchr::memmem::find(line, KEY)? + KEY.len() - 1;
    let rest = line.get(at..)?;
    [EXPIRED, CHECKPOINT, BROKEN]
        .into_iter()
        .find(|event| rest.starts_with(event.as_bytes()))
}

fn expired(extra: &Map<String, Value>) -> Option<Head> {
    Some(Head {
        seq: extra.get("last_seq")?.as_u64()?,
        hash: extra.get("last_hash")?.as_str()?.parse().ok()?,
    })
}

/// Checks the log in `dir`, also while it is written and its oldest segments expire.
pub fn verify(dir: &Path, pinned: Option<Head>) -> Result<Report, AuditError> {
    verify_sealed(dir, pinned, None)
}

/// The same, and what was sealed must be as it was.
pub fn verify_sealed(
    dir: &Path,
    pinned: Option<Head>,
    sealing: Option<&Sealing>,
) -> Result<Report, AuditError> {
    let list = || segments(dir).map_err(AuditError::io("list", dir));
    let new = || Verifier::new(pinned).with_key(sealing.cloned());
    let mut verifier = new();
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
                verifier = new();
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
