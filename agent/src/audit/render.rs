//! Turns an entry into the bytes of a record: pure, without allocating once the buffer has grown.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::chain::{Hash, Head, seal};
use super::entry::Entry;

/// Renders the record that follows `head` into `line` (with its newline) and returns its hash.
pub(super) fn record(
    line: &mut Vec<u8>,
    head: &Head,
    entry: &Entry<'_>,
    clock: &mut Clock,
    now: Now,
) -> Hash {
    begin(line, head, clock, now);
    common(line, entry);
    quoted_or_null(line, entry.request_id);
    if let Some(extra) = entry.extra.filter(|extra| !extra.is_empty()) {
        line.push(b',');
        members(line, extra);
    }
    seal(line, &head.hash)
}

/// The same from a phrase that was rendered before.
pub(super) fn record_again(
    line: &mut Vec<u8>,
    head: &Head,
    phrase: &Phrase,
    request_id: &str,
    clock: &mut Clock,
    now: Now,
) -> Hash {
    begin(line, head, clock, now);
    line.extend_from_slice(&phrase.0);
    quoted(line, request_id);
    seal(line, &head.hash)
}

/// What the records of one allowed request, made again and again, have in common.
#[derive(Debug)]
pub struct Phrase(Box<[u8]>);

impl Phrase {
    /// Renders it; the request id and further members of `entry` are not part of it.
    #[must_use]
    pub fn of(entry: &Entry<'_>) -> Self {
        let mut line = Vec::new();
        common(&mut line, entry);
        Self(line.into())
    }
}

/// A record up to its clocks.
fn begin(line: &mut Vec<u8>, head: &Head, clock: &mut Clock, now: Now) {
    line.clear();
    line.extend_from_slice(b"{\"seq\":");
    number(line, head.seq + 1);
    line.extend_from_slice(b",\"time\":\"");
    clock.stamp(line, now.wall);
    line.extend_from_slice(b"\",\"mono\":");
    number(line, now.mono.as_secs());
    line.push(b'.');
    micros(line, now.mono.subsec_micros());
}

/// A record from its event to the key of its request id.
fn common(line: &mut Vec<u8>, entry: &Entry<'_>) {
    line.extend_from_slice(b",\"event\":\"");
    line.extend_from_slice(entry.event.as_str().as_bytes());
    line.extend_from_slice(b"\",\"decision\":\"");
    line.extend_from_slice(entry.decision.as_str().as_bytes());
    line.extend_from_slice(b"\",\"reason\":");
    quoted_or_null(line, entry.reason);
    line.extend_from_slice(b",\"rule\":");
    quoted_or_null(line, entry.rule);
    line.extend_from_slice(b",\"secret\":");
    quoted_or_null(line, entry.secret);
    line.extend_from_slice(b",\"version\":");
    quoted_or_null(line, entry.version);
    line.push(b',');
    line.extend_from_slice(
        entry
            .who
            .map_or(b"\"bot\":null,\"roles\":[]", |who| who.named()),
    );
    line.extend_from_slice(b",\"surface\":");
    quoted(line, entry.surface);
    line.push(b',');
    line.extend_from_slice(entry.who.map_or(b"\"peer\":null", |who| who.peer()));
    line.extend_from_slice(b",\"request_id\":");
}

/// A record is one line without control characters, whatever whitespace the members came with: those of
/// C0 stand between members only, DEL and those of C1 in strings only.
fn members(out: &mut Vec<u8>, extra: &str) {
    if extra.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
        return out.extend_from_slice(extra.as_bytes());
    }
    for c in extra.chars() {
        match c {
            '\0'..='\x1f' => out.push(b' '),
            '\x7f'..='\u{9f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Further members of a record as JSON text, for [`Entry::extra`].
#[must_use]
pub fn extra(members: &[(&str, serde_json::Value)]) -> String {
    let mut all = Members::default();
    for (key, value) in members {
        all.add(key, value);
    }
    all.as_str().to_owned()
}

/// Further members of a record, written as they are added.
pub struct Members(Vec<u8>);

impl Default for Members {
    /// With room for those of most records.
    fn default() -> Self {
        Self(Vec::with_capacity(192))
    }
}

impl Members {
    /// Adds one.
    pub fn add(&mut self, key: &str, value: impl Serialize) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        quoted(&mut self.0, key);
        self.0.push(b':');
        // Text and numbers into memory: there is nothing to fail.
        let _ = serde_json::to_writer(&mut self.0, &value);
        self
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub wall: SystemTime,
    pub mono: Duration,
}

impl Now {
    pub(super) fn read() -> Self {
        Self {
            wall: SystemTime::now(),
            // It tells that the other clock was set; a tick is fine enough for that.
            mono: crate::sys::map::monotonic_coarse(),
        }
    }
}

/// RFC 3339 in UTC with microseconds; the text of the second is kept while it lasts.
#[derive(Debug)]
pub(super) struct Clock {
    second: u64,
    text: [u8; Self::LEN],
}

impl Clock {
    /// `2026-01-02T03:04:05`
    const LEN: usize = 19;

    pub(super) fn new() -> Self {
        let mut clock = Self {
            second: 0,
            text: [b'0'; Self::LEN],
        };
        clock.render();
        clock
    }

    fn render(&mut self) {
        let at = UNIX_EPOCH + Duration::from_secs(self.second);
        // It ends in a `Z` that does not fit, so an error is expected here.
        let _ = write!(
            &mut self.text[..],
            "{}",
            humantime::format_rfc3339_seconds(at)
        );
    }

    fn stamp(&mut self, out: &mut Vec<u8>, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Past the year 9999 there is no such text.
        let second = since.as_secs().min(253_402_300_799);
        if second != self.second {
            self.second = second;
            self.render();
        }
        out.extend_from_slice(&self.text);
        out.push(b'.');
        micros(out, since.subsec_micros());
        out.push(b'Z');
    }
}

fn micros(out: &mut Vec<u8>, mut value: u32) {
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
    out.extend_from_slice(&digits);
}

pub(super) fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] += u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

pub(super) fn quoted_or_null(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => quoted(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// A JSON string.
pub(super) fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text.as_bytes());
    out.push(b'"');
}

/// A JSON string of any bytes: what is not UTF-8 becomes `\xNN`, a backslash `\\` (before JSON's own
/// escaping), so that [`unescape`] gives the same bytes back.
pub(super) fn quoted_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for (at, part) in chunk.valid().split('\\').enumerate() {
            if at > 0 {
                out.extend_from_slice(br"\\\\");
            }
            escape(out, part.as_bytes());
        }
        for byte in chunk.invalid() {
            let _ = write!(out, r"\\x{byte:02x}");
        }
    }
    out.push(b'"');
}

/// Escapes what JSON must, and the other controls that a terminal acts on: DEL, and C1 (`c2 80` to `c2 9f`).
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut done = 0;
    for (mut at, byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' | b'\\' => *byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f | 0x7f => 0,
            0x80..=0x9f if bytes[..at].ends_with(&[0xc2]) => {
                at -= 1;
                0
            }
            _ => continue,
        };
        let end = at + 1 + usize::from(*byte >= 0x80);
        out.extend_from_slice(&bytes[done..at]);
        done = end;
        if short == 0 {
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.extend_from_slice(&[b'\\', short]);
        }
    }
    out.extend_from_slice(&bytes[done..]);
}

/// The bytes that a record's `exe` stands for: `\\` is a backslash, `\xNN` a byte that is not UTF-8.
#[must_use]
pub fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        let byte = after
            .strip_prefix('x')
            .and_then(|hex| hex.get(..2))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = if let Some(byte) = byte {
            out.push(byte);
            &after[3..]
        } else {
            out.push(b'\\');
            after.strip_prefix('\\').unwrap_or(after)
        };
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(json: &[u8]) -> String {
        serde_json::from_slice(json).unwrap()
    }

    #[test]
    fn time_has_microseconds_and_follows_the_clock() {
        let mut clock = Clock::new();
        for (nanos, want) in [
            (1_000, "1970-01-01T00:00:00.000001Z"),
            (1_767_323_045_123_456_789, "2026-01-02T03:04:05.123456Z"),
            (999_999_999, "1970-01-01T00:00:00.999999Z"),
        ] {
            let mut out = Vec::new();
            clock.stamp(&mut out, UNIX_EPOCH + Duration::from_nanos(nanos));
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back_through_json(text in any::<String>()) {
            let mut out = Vec::new();
            quoted(&mut out, &text);
            prop_assert!(!String::from_utf8_lossy(&out).chars().any(char::is_control));
            prop_assert_eq!(read(&out), text);
        }

        #[test]
        fn any_bytes_come_back_through_json(bytes in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            quoted_bytes(&mut out, &bytes);
            prop_assert!(!out.contains(&b'\n') && !out.contains(&0));
            prop_assert_eq!(unescape(&read(&out)), bytes);
        }

        #[test]
        fn backslashes_come_back_too(text in r"[\\x0-9a-f]{0,12}") {
            let mut out = Vec::new();
            quoted_bytes(&mut out, text.as_bytes());
            prop_assert_eq!(unescape(&read(&out)), text.as_bytes());
        }

        #[test]
        fn numbers_are_decimal(value in any::<u64>()) {
            let mut out = Vec::new();
            number(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
