//! `[audit]`: where records are kept, for how long, and what happens when they cannot be.

use std::path::PathBuf;
use std::time::Duration;

use super::section::{Section, duration, one_of};
use crate::policy::{At, Report};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A segment is reserved and mapped whole, and holds at least some hundred records.
const SEGMENT: std::ops::RangeInclusive<u64> = 64 * KIB..=GIB;

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The folder of the segments.
    pub dir: PathBuf,
    /// Whether records are streamed to journald.
    pub journald: bool,
    /// What happens to requests when no record can be kept.
    pub on_failure: OnFailure,
    /// When records reach the disk.
    pub sync: SyncMode,
    /// Bytes at which a segment is closed.
    pub segment: u64,
    /// Bytes that all segments have together at most.
    pub keep: u64,
    /// How long a closed segment should stay.
    pub keep_for: Duration,
}

/// What happens to requests when no record can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Deny,
    /// They are answered.
    Allow,
}

/// When records reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Once a second.
    Second,
    /// Before every answer.
    Always,
}

pub(super) fn read(section: &Section<'_>, report: &mut Report) -> Audit {
    let keys = [
        "dir",
        "journald",
        "on_failure",
        "sync",
        "segment",
        "keep",
        "keep_for",
    ];
    section.check_keys(&keys, report);
    let audit = Audit {
        dir: section
            .path("dir", report)
            .map_or_else(|| "/var/lib/keyhatch/audit".into(), |at| at.value),
        journald: section.boolean("journald", report).unwrap_or(true),
        on_failure: word(
            section,
            "on_failure",
            &[("deny", OnFailure::Deny), ("allow", OnFailure::Allow)],
            report,
        )
        .unwrap_or(OnFailure::Deny),
        sync: word(
            section,
            "sync",
            &[("second", SyncMode::Second), ("always", SyncMode::Always)],
            report,
        )
        .unwrap_or(SyncMode::Second),
        segment: size(section, "segment", report).unwrap_or(64 * MIB),
        keep: size(section, "keep", report).unwrap_or(4 * GIB),
        keep_for: duration(section, "keep_for", report)
            .unwrap_or(Duration::from_secs(90 * 24 * 60 * 60)),
    };
    check_sizes(&audit, section, report);
    audit
}

fn check_sizes(audit: &Audit, section: &Section<'_>, report: &mut Report) {
    if let Some(value) = section.get("segment")
        && !SEGMENT.contains(&audit.segment)
    {
        let text = "`segment` must be from \"64KiB\" to \"1GiB\", it is reserved ahead and mapped, change it";
        report.error(&value.place(), text);
    }
    if audit.keep / 2 < audit.segment
        && let Some(value) = section.get("keep").or_else(|| section.get("segment"))
    {
        let text = format!(
            "`keep` is less than two times `segment` ({} < 2 * {} bytes), one that is closed and one that is written, make it larger",
            audit.keep, audit.segment
        );
        report.error(&value.place(), text);
    }
}

fn word<T: Copy>(
    section: &Section<'_>,
    key: &str,
    words: &[(&str, T)],
    report: &mut Report,
) -> Option<T> {
    one_of(&section.string(key, report)?, key, words, report)
}

pub(super) fn size(section: &Section<'_>, key: &str, report: &mut Report) -> Option<u64> {
    let At { value: text, place } = section.string(key, report)?;
    let size = parse_size(text);
    if size.is_none() {
        let why = "a size is a whole number with KiB, MiB or GiB";
        report.error(
            &place,
            format!("`{key}` is {text:?}, {why}, write it as \"64MiB\""),
        );
    }
    size
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.strip_prefix(digits)?.trim_start() {
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    // `parse` would take a sign too.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| plain)?
        .checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("64KiB", Some(65_536)),
            ("1 MiB", Some(1_048_576)),
            ("4GiB", Some(4_294_967_296)),
            ("0MiB", Some(0)),
            ("64", None),
            ("64MB", None),
            ("MiB", None),
            ("-1MiB", None),
            ("+1MiB", None),
            ("1.5MiB", None),
            ("99999999999GiB", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}
