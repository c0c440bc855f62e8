//! Opening a log: finds the last good record and says where to go on.

use std::fs;
use std::time::SystemTime;

use serde_json::json;

use super::chain::{Head, Link};
use super::files::{Kind, Lines, SegmentFile, Tail, broken_path, plain_path, segments};
use super::keeper::put_aside;
use super::log::Down;
use super::record::time_of;
use super::render::extra;
use super::segment::{Failure, Mark, Segment};
use super::{AuditError, Settings};

/// Where the log goes on.
pub(super) struct Recovered {
    pub segment: Segment,
    pub head: Head,
    /// What a kill left behind, for the operator.
    pub notes: Vec<String>,
    /// Members of `alert.chain_broken` records to keep first.
    pub alerts: Vec<String>,
}

/// What one segment holds.
struct Scan {
    base: Option<Head>,
    end: Mark,
    tail: Tail,
    /// Why the line after the last good record is not the next one.
    bad: Option<&'static str>,
    since: Option<SystemTime>,
}

/// Opens the last segment, or a new one after it.
pub(super) fn recover(settings: &Settings) -> Result<Recovered, AuditError> {
    let dir = &settings.dir;
    let mut files = segments(dir).map_err(AuditError::io("list", dir))?;
    files.retain(|file| file.kind != Kind::SetAside);
    let (mut notes, mut alerts) = (Vec::new(), Vec::new());
    while let Some(file) = files.pop() {
        let found = scan(&file).map_err(AuditError::io("read", &file.path))?;
        let what = match (found.bad, found.tail) {
            (Some(bad), _) => Some(bad),
            (None, Tail::Gap) => Some("there is data behind a gap"),
            (None, Tail::Torn | Tail::Clean) => None,
        };
        if let Some(what) = what {
            let bad = found.base.map_or(file.first, |_| found.end.head.seq + 1);
            alerts.push(extra(&[
                ("segment", json!(file.name())),
                ("what", json!(what)),
                ("bad_seq", json!(bad)),
            ]));
            notes.push(format!(
                "{}: {what}, at record {bad}; it is kept as it is",
                file.name()
            ));
        }
        let Some(base) = found.base else {
            discard(&file, what.is_some())?;
            continue;
        };
        if found.tail == Tail::Torn {
            notes.push(format!(
                "{}: a record that was cut off by a kill was removed",
                file.name()
            ));
        }
        let segment = if what.is_none() && file.kind == Kind::Plain {
            resume(settings, &file, base, &found)
        } else {
            create(settings, found.end.head)
        };
        let segment =
            segment.map_err(|why| AuditError::NotWritable(Down::from(why).to_string()))?;
        return Ok(Recovered {
            segment,
            head: found.end.head,
            notes,
            alerts,
        });
    }
    let segment = create(settings, Head::START)
        .map_err(|why| AuditError::NotWritable(Down::from(why).to_string()))?;
    Ok(Recovered {
        segment,
        head: Head::START,
        notes,
        alerts,
    })
}

/// Reads a segment up to the first line that is not the next record.
fn scan(file: &SegmentFile) -> std::io::Result<Scan> {
    let mut lines = Lines::open(file)?;
    let mut found = Scan {
        base: None,
        end: Mark {
            offset: 0,
            head: Head::START,
        },
        tail: Tail::Clean,
        bad: None,
        since: None,
    };
    while let Some(line) = lines.next_line()? {
        let link = Link::read(line);
        let good = link.filter(|link| match found.base {
            Some(_) => link.follows(&found.end.head),
            None => link.intact && link.seq == file.first,
        });
        let Some(good) = good else {
            found.bad = Some("a record does not follow the one before");
            return Ok(found);
        };
        if found.base.is_none() {
            found.base = Some(good.before());
            found.since = time_of(line);
        }
        let head = good.head();
        found.end = Mark {
            offset: lines.offset(),
            head,
        };
    }
    found.tail = lines.tail()?;
    Ok(found)
}

/// A segment without one good record is in the way of the one that takes its place.
fn discard(file: &SegmentFile, keep: bool) -> Result<(), AuditError> {
    if keep {
        let dir = file.path.parent().unwrap_or(&file.path);
        fs::rename(&file.path, broken_path(dir, file.first))
            .map_err(AuditError::io("rename", &file.path))
    } else {
        fs::remove_file(&file.path).map_err(AuditError::io("remove the empty", &file.path))
    }
}

fn resume(
    settings: &Settings,
    file: &SegmentFile,
    base: Head,
    found: &Scan,
) -> Result<Segment, Failure> {
    let mut segment = Segment::resume(
        &file.path,
        base,
        found.end,
        settings.segment,
        settings.mapped,
    )?;
    let age = found
        .since
        .and_then(|since| SystemTime::now().duration_since(since).ok());
    segment.set_age(age.unwrap_or_default());
    Ok(segment)
}

fn create(settings: &Settings, head: Head) -> Result<Segment, Failure> {
    let dir = &settings.dir;
    put_aside(dir, head.seq + 1).map_err(|why| Failure::from("put aside segments in", dir, why))?;
    let path = plain_path(dir, head.seq + 1);
    Segment::create(&path, head, settings.segment, settings.mapped)
}
