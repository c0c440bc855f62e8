//! Finds records.

use std::collections::VecDeque;
use std::path::Path;
use std::time::SystemTime;

use memchr::memmem::Finder;

use super::AuditError;
use super::chain::seq_of;
use super::record::{Brief, Record};
use super::render::quoted;
use super::scan::{self, Span};

/// Which records are wanted: all that is given must match. Patterns are as in grants: `*` stays within a
/// segment, `**` crosses them; in an event `*` stands for any text.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The bot's name.
    pub bot: Option<String>,
    /// The secret's name.
    pub secret: Option<String>,
    /// The event, such as `alert.*`.
    pub event: Option<String>,
    /// The decision.
    pub decision: Option<String>,
    /// The peer's system unit.
    pub unit: Option<String>,
    /// The peer's user id.
    pub uid: Option<u32>,
    /// The peer's process id.
    pub pid: Option<u32>,
    /// The path of the peer's program, as it is in the record.
    pub exe: Option<String>,
    /// Not before.
    pub since: Option<SystemTime>,
    /// Before.
    pub until: Option<SystemTime>,
    /// The first and last sequence number.
    pub seq: Option<(u64, u64)>,
    /// Only the last so many.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether a record is wanted.
    #[must_use]
    pub fn matches(&self, record: &Brief<'_>) -> bool {
        let peer = record.peer.as_ref();
        let is = |wanted: Option<u32>, has: Option<u64>| {
            wanted.is_none_or(|wanted| has == Some(u64::from(wanted)))
        };
        let names = [
            (&self.bot, record.bot.as_deref()),
            (&self.secret, record.secret.as_deref()),
            (&self.decision, Some(&*record.decision)),
            (&self.unit, record.unit()),
            (&self.exe, peer.and_then(|peer| peer.exe.as_deref())),
        ];
        let event = self.event.as_ref();
        names.iter().all(|(pattern, text)| match (pattern, text) {
            (None, _) => true,
            (Some(pattern), Some(text)) => names_match(pattern.as_bytes(), text.as_bytes()),
            (Some(_), None) => false,
        }) && event.is_none_or(|event| glob(event.as_bytes(), record.event.as_bytes()))
            && is(self.uid, peer.and_then(|peer| peer.uid))
            && is(self.pid, peer.and_then(|peer| peer.pid))
            && self.in_time(record)
    }

    fn in_time(&self, record: &Brief<'_>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        humantime::parse_rfc3339(record.time).is_ok_and(|when| {
            self.since.is_none_or(|since| when >= since)
                && self.until.is_none_or(|until| when < until)
        })
    }
}

/// Whether `text` matches `pattern`, where `*` stands for any text, slashes too.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether `text` matches `pattern` as a name matches in a grant: `*` is any bytes but a slash, `**` any
/// bytes, `**/` at the start of a segment any number of whole segments. The policy's own patterns are in
/// another core, which this one does not know.
fn names_match(pattern: &[u8], text: &[u8]) -> bool {
    let mut now = vec![false; pattern.len() + 1];
    now[0] = true;
    skip_empty(pattern, &mut now, true);
    for byte in text {
        let mut next = vec![false; pattern.len() + 1];
        for at in (0..pattern.len()).filter(|at| now[*at]) {
            if pattern[at] == b'*' {
                next[at] |= *byte != b'/' || pattern.get(at + 1) == Some(&b'*');
            } else {
                next[at + 1] |= pattern[at] == *byte;
            }
        }
        skip_empty(pattern, &mut next, *byte == b'/');
        now = next;
    }
    now[pattern.len()]
}

/// Goes on past wildcards that may match nothing; `**/` only where a segment begins.
fn skip_empty(pattern: &[u8], states: &mut [bool], segment_begins: bool) {
    for at in 0..pattern.len() {
        if !states[at] || pattern[at] != b'*' {
            continue;
        }
        states[at + 1] = true;
        let whole = at == 0 || pattern[at - 1] == b'/';
        if whole && segment_begins && pattern[at..].starts_with(b"**/") {
            states[at + 3] = true;
        }
    }
}

impl Filter {
    /// What a line must have somewhere, as bytes, to be worth parsing. A quote inside a JSON string is escaped,
    /// so that these are found nowhere but where a member begins.
    fn needles(&self) -> Vec<Finder<'static>> {
        let texts = [
            ("bot", &self.bot),
            ("secret", &self.secret),
            ("event", &self.event),
            ("decision", &self.decision),
            ("unit", &self.unit),
            ("exe", &self.exe),
        ];
        let mut needles: Vec<Vec<u8>> = Vec::new();
        for (key, pattern) in texts {
            let Some(pattern) = pattern else { continue };
            let literal = pattern.split('*').next().unwrap_or_default();
            let mut needle = format!("\"{key}\":").into_bytes();
            quoted(&mut needle, literal);
            if literal.len() < pattern.len() {
                needle.pop();
            }
            needles.push(needle);
        }
        needles.extend(self.uid.map(|uid| format!("\"uid\":{uid},").into_bytes()));
        needles.extend(self.pid.map(|pid| format!("\"pid\":{pid},").into_bytes()));
        // The longest is the rarest, more or less.
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        let finder = |needle: &Vec<u8>| Finder::new(needle).into_owned();
        needles.iter().map(finder).collect()
    }

    fn span(&self) -> Span {
        Span {
            seq: self.seq.unwrap_or(Span::ALL.seq),
            since: self.since,
            until: self.until,
        }
    }
}

/// Gives the lines of the records in `dir` that match to `each`, in their order, until that says false. With a
/// limit they are collected first.
pub fn lines(
    dir: &Path,
    filter: &Filter,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), AuditError> {
    let (low, high) = filter.span().seq;
    let needles = filter.needles();
    let is_all = needles.is_empty() && filter.since.is_none() && filter.until.is_none();
    let wanted = |line: &[u8]| {
        seq_of(line).is_some_and(|seq| (low..=high).contains(&seq))
            && needles.iter().all(|needle| needle.find(line).is_some())
            && Brief::parse(line).is_some_and(|brief| is_all || filter.matches(&brief))
    };
    let mut parts = scan::parts(dir, filter.span())?;
    let Some(limit) = filter.limit else {
        return scan::stream(&parts, wanted, each);
    };
    // The newest are in the last parts.
    let mut found: VecDeque<Vec<u8>> = VecDeque::new();
    while let Some(part) = parts.pop().filter(|_| found.len() < limit) {
        let mut here: VecDeque<Vec<u8>> = VecDeque::new();
        let room = limit - found.len();
        scan::stream(&[part], wanted, |line| {
            here.push_back(line.to_vec());
            here.drain(..here.len().saturating_sub(room));
            true
        })?;
        here.append(&mut found);
        found = here;
    }
    let _ = found.iter().all(|line| each(line));
    Ok(())
}

/// The records of the log in `dir` that match, in their order.
pub fn query(dir: &Path, filter: &Filter) -> Result<Vec<Record>, AuditError> {
    let mut records = Vec::new();
    lines(dir, filter, |line| {
        records.extend(Record::parse(line));
        true
    })?;
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_grants() {
        for (pattern, text, want) in [
            ("app/*", "app/key", true),
            ("app/*", "app/deep/key", false),
            ("app/**", "app/deep/key", true),
            ("app/**", "apple", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("**/key", "key", true),
            ("**/key", "monkey", false),
            ("*-bot", "support-bot", true),
            ("*", "", true),
            ("", "x", false),
        ] {
            let got = names_match(pattern.as_bytes(), text.as_bytes());
            assert_eq!(got, want, "{pattern} {text}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, want) in [
            ("openai/*", "openai/a/b", true),
            ("*key", "openai/api-key", true),
            ("a*b*c", "a/x/b/b/c", true),
            ("a*b*c", "a/x/c/b", false),
            ("secret.*", "secret.read", true),
            ("read", "secret.read", false),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                want,
                "{pattern} {text}"
            );
        }
    }
}
