//! Reads a log behind its writer, over the change of segments.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AuditError;
use super::chain::seq_of;
use super::files::{Kind, Lines, SegmentFile, segments};
use super::record::Record;

/// A place in a log that moves forward.
pub struct Follower {
    dir: PathBuf,
    next: u64,
    open: Option<(Lines, u64)>,
}

/// What comes next in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The record with this number is in the buffer.
    Record(u64),
    /// Records up to before this number are gone; the next step goes on there.
    Skipped(u64),
    /// There is no more yet.
    End,
}

impl Follower {
    /// Begins at record `next`, or at the first one after it that is there.
    #[must_use]
    pub fn new(dir: &Path, next: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            next,
            open: None,
        }
    }

    /// The number of the record that it waits for.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Takes one step; a record's line goes to `line`.
    pub fn step(&mut self, line: &mut Vec<u8>) -> io::Result<Step> {
        loop {
            if let Some(seq) = self.read(line)? {
                self.next = seq + 1;
                return Ok(Step::Record(seq));
            }
            let picked = self.pick()?;
            // More may have come before the files were listed: what is final is only what they say now.
            if let Some(seq) = self.read(line)? {
                self.next = seq + 1;
                return Ok(Step::Record(seq));
            }
            let file = match picked {
                Pick::None => return Ok(Step::End),
                Pick::Later(first) => {
                    self.next = first;
                    return Ok(Step::Skipped(first));
                }
                Pick::File(file) => file,
            };
            match Lines::open(&file) {
                Ok(lines) => {
                    let inode = lines.inode()?;
                    if self.open.as_ref().is_some_and(|(_, old)| *old == inode) {
                        return Ok(Step::End);
                    }
                    self.open = Some((lines, inode));
                }
                // Compressed or expired since it was listed.
                Err(why) if why.kind() == io::ErrorKind::NotFound => self.open = None,
                Err(why) => return Err(why),
            }
        }
    }

    /// The next record of the open file, past those that come before the one waited for.
    fn read(&mut self, line: &mut Vec<u8>) -> io::Result<Option<u64>> {
        let Some((lines, _)) = &mut self.open else {
            return Ok(None);
        };
        while let Some(bytes) = lines.next_line()? {
            if let Some(seq) = seq_of(bytes).filter(|seq| *seq >= self.next) {
                line.clear();
                line.extend_from_slice(bytes);
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// The file that has the record waited for, if it is there: the last one that begins at or before it.
    fn pick(&self) -> io::Result<Pick> {
        let mut files = segments(&self.dir)?;
        files.retain(|file| file.kind != Kind::SetAside);
        let later = files.iter().find(|file| file.first > self.next).cloned();
        let file = files.into_iter().rfind(|file| file.first <= self.next);
        let read = file.as_ref().is_some_and(|file| self.is_open(file));
        Ok(match (file, later) {
            // It was read to its end, and the log goes on past what is waited for.
            (None, Some(later)) => Pick::Later(later.first),
            (Some(_), Some(later)) if read => Pick::Later(later.first),
            (Some(file), _) => Pick::File(file),
            (None, None) => Pick::None,
        })
    }

    fn is_open(&self, file: &SegmentFile) -> bool {
        let inode = fs::metadata(&file.path).map(|meta| meta.ino()).ok();
        self.open
            .as_ref()
            .is_some_and(|(_, open)| Some(*open) == inode)
    }
}

enum Pick {
    None,
    Later(u64),
    File(SegmentFile),
}

/// The last `n` records of the log in `dir`, then, with `follow`, each new one as it comes. `each` says
/// whether to go on.
pub fn tail(
    dir: &Path,
    follow: bool,
    n: usize,
    mut each: impl FnMut(&Record) -> bool,
) -> Result<(), AuditError> {
    let fail = |why| AuditError::io("read the audit log in", dir)(why);
    let mut follower = Follower::new(dir, start_of_tail(dir, n).map_err(fail)?);
    let mut line = Vec::new();
    let mut last: VecDeque<Record> = VecDeque::new();
    let mut behind = true;
    loop {
        match follower.step(&mut line).map_err(fail)? {
            Step::Record(_) => {
                let Some(record) = Record::parse(&line) else {
                    continue;
                };
                if behind {
                    last.push_back(record);
                    last.drain(..last.len().saturating_sub(n));
                } else if !each(&record) {
                    return Ok(());
                }
            }
            Step::Skipped(_) => {}
            Step::End => {
                behind = false;
                if !last.drain(..).all(|record| each(&record)) || !follow {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// A record to read on from for the last `n`: those before it are surely too old.
fn start_of_tail(dir: &Path, n: usize) -> io::Result<u64> {
    let files = segments(dir)?;
    let Some(newest) = files.last() else {
        return Ok(1);
    };
    // The newest segment is short just after a change: then the one before counts too.
    let back = newest.first.saturating_sub(n as u64).max(1);
    Ok(back)
}
