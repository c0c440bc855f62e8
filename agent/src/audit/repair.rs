//! Repairs a log that is down: waits for space, or goes on in a new segment.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::chain::{Head, Link};
use super::entry::Entry;
use super::event::Event;
use super::files::{Kind, Lines, broken_path, plain_path, segments};
use super::render::extra;
use super::segment::{Change, Failure, Segment};
use super::writer::{Down, Inner, Part, held};

impl Inner {
    /// Tries to serve again; true when it went on in a new segment.
    pub(super) fn repair(&self) -> bool {
        let down = self.writer().down.clone();
        let done = match down {
            None | Some(Down::Closed) => return false,
            Some(Down::Full(_)) => self.find_room().map(|()| false),
            Some(Down::Broken(_)) => self.restart(None).map(|()| true),
            Some(Down::Changed(change)) => self.restart(Some(change)).map(|()| true),
        };
        match done {
            Ok(restarted) => {
                tracing::warn!("audit records can be kept again");
                restarted
            }
            Err(failure) => {
                *held(&self.last_error) = Some(Down::from(failure).to_string());
                false
            }
        }
    }

    fn find_room(&self) -> Result<(), Failure> {
        let mut writer = self.writer();
        // What comes due while the disk is full is closed once there is space for the next.
        if writer.segment.is_due(1, crate::sys::map::monotonic()) {
            writer.switch(&self.settings)?;
        }
        writer.segment.find_room()?;
        writer.down = None;
        Ok(())
    }

    /// Goes on in a new segment, with what is not known to be on disk written again. Nobody else writes
    /// while the log is down, so the slow part needs no lock.
    fn restart(&self, change: Option<Change>) -> Result<(), Failure> {
        let _one = held(&self.syncing);
        let (parts, head, old) = {
            let writer = self.writer();
            // A file without its name would be lost whole with the last descriptor.
            let whole = matches!(change, Some(Change::Name(_)));
            (
                writer.unsynced(whole),
                writer.head,
                writer.segment.path.clone(),
            )
        };
        let start = parts.first().map_or(head, |part| part.from.head);
        let (mut segment, lost) = match self.rewrite(&parts, start, head) {
            Ok(segment) => (segment, None),
            Err(Unwritten::Unreadable(why)) => (
                self.fresh(head)?,
                Some(json!({"from": start.seq + 1, "to": head.seq, "why": why})),
            ),
            Err(Unwritten::Failed(failure)) => return Err(failure),
        };
        if let Err(failure) = segment.make_room(4096) {
            let _ = std::fs::remove_file(&segment.path);
            return Err(failure);
        }
        let mut writer = self.writer();
        writer.segment = segment;
        writer.pending.clear();
        writer.created = true;
        if change.is_some() || lost.is_some() {
            let what = match change {
                Some(Change::Name(what) | Change::Content(what)) => what,
                None => "it could not be synced".to_owned(),
            };
            let name = old.file_name().unwrap_or_default().to_string_lossy();
            let members = extra(&[
                ("segment", json!(name)),
                ("what", json!(what)),
                ("lost", json!(lost)),
            ]);
            let entry = Entry {
                extra: Some(&members),
                ..Entry::of(Event::AlertChainBroken)
            };
            match writer.put(&entry, &self.settings) {
                Ok(seq) => self.head.store(seq, Ordering::Release),
                Err(down) => {
                    // The new segment stands; what is wrong with it is repaired next.
                    self.fail(&mut writer, down);
                    return Ok(());
                }
            }
        }
        writer.down = None;
        Ok(())
    }

    /// A new segment after `start` with the records of `parts`, up to `head`.
    fn rewrite(&self, parts: &[Part], start: Head, head: Head) -> Result<Segment, Unwritten> {
        let mut segment = self.fresh(start).map_err(Unwritten::Failed)?;
        let done = copy(parts, start, head, &mut segment);
        if done.is_err() {
            let _ = std::fs::remove_file(&segment.path);
        }
        done.map(|()| segment)
    }

    /// An empty segment after `base`. Files with records from there on are put aside: the new one has them.
    fn fresh(&self, base: Head) -> Result<Segment, Failure> {
        let _names = held(&self.names);
        let (dir, first) = (&self.settings.dir, base.seq + 1);
        put_aside(dir, first).map_err(|why| Failure::from("put aside segments in", dir, why))?;
        let path = plain_path(dir, first);
        Segment::create(&path, base, self.settings.segment, self.settings.mapped)
    }
}

/// Why records were not written again.
enum Unwritten {
    /// They cannot be read back as they were.
    Unreadable(String),
    /// The new segment cannot be written (yet).
    Failed(Failure),
}

fn copy(parts: &[Part], start: Head, head: Head, segment: &mut Segment) -> Result<(), Unwritten> {
    let unreadable = |why: io::Error| Unwritten::Unreadable(why.to_string());
    let mut at = start;
    let mut copied = Vec::new();
    for part in parts {
        let mut lines = Lines::from(part.file.try_clone().map_err(unreadable)?, part.from.offset);
        while at.seq < part.end.head.seq {
            let Some(bytes) = lines.next_line().map_err(unreadable)? else {
                return Err(Unwritten::Unreadable("records are missing".to_owned()));
            };
            match Link::read(bytes).filter(|link| link.follows(&at)) {
                Some(link) => at = link.head(),
                None => return Err(Unwritten::Unreadable("records were changed".to_owned())),
            }
            copied.clear();
            copied.extend_from_slice(bytes);
            copied.push(b'\n');
            segment.append(&copied).map_err(Unwritten::Failed)?;
        }
    }
    if at == head {
        Ok(())
    } else {
        Err(Unwritten::Unreadable("records were changed".to_owned()))
    }
}

/// Renames every segment whose first record is `first` or later to `.broken`.
pub(super) fn put_aside(dir: &Path, first: u64) -> io::Result<()> {
    for file in segments(dir)? {
        if file.first >= first && file.kind != Kind::SetAside {
            std::fs::rename(&file.path, broken_path(dir, file.first))?;
        }
    }
    Ok(())
}
