//! Sealed checkpoints: the key's file in the state folder, the records that it seals, and going on after a kill.
//!
//! A checkpoint is a record like any other. Its key is wiped in memory as it is written, and on disk once it is
//! synced: so the file is never ahead of the log, and after a kill the log's last checkpoint says where to go on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::AuditError;
use super::entry::Entry;
use super::event::Event;
use super::files::{Kind, Lines, SegmentFile, segments};
use super::ratchet::{MOST, Ratchet, Seal};
use super::record::Record;
use super::render::{Now, extra, record};
use super::segment::Failure;
use super::writer::{Inner, Writer, held};
use crate::files::{self, FileError, Holds, Trust};

/// Room that a segment keeps for the checkpoint at its end.
pub(super) const ROOM: usize = 1024;
/// The first word of the key's file.
const MAGIC: &str = "keyhatch-checkpoint-1";
/// No key's file is longer.
const LONGEST: u64 = 256;
/// What the alert says of a log that was sealed and whose key is gone.
const GONE: &str = "the key of checkpoints is gone; records are not sealed any more";

/// What tells one file from another: the inode, which alone may be that of a file that is gone, and when its
/// content was written, which unlike the inode's own change a link leaves alone.
type Mark = (u64, i64, i64);

/// The file with the key of the next checkpoint.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    /// The file that was read or written last: another one is a new key.
    seen: Option<Mark>,
    /// The key and the number of its checkpoint that the file has.
    has: Option<(String, u64)>,
}

impl KeyFile {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: None,
            has: None,
        }
    }

    /// The key, where the file is another one than that of the last look.
    fn look(&mut self) -> Result<Option<Ratchet>, FileError> {
        let mark = self.mark();
        if mark.is_none() || mark == self.seen {
            return Ok(None);
        }
        // Whatever is wrong with it is told once.
        self.seen = mark;
        let key = load_key(&self.path, Trust::own())?;
        self.has = key.as_ref().map(|key| (key.id().to_owned(), key.index()));
        Ok(key)
    }

    fn mark(&self) -> Option<Mark> {
        let meta = fs::symlink_metadata(&self.path).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Replaces the key; what the old file held is written over.
    fn store(&mut self, key: &Ratchet) -> io::Result<()> {
        let now = (key.id().to_owned(), key.index());
        // A file that someone else has put there is a new key, which the next look takes up.
        if self.has.as_ref() == Some(&now) || self.mark().is_some_and(|is| Some(is) != self.seen) {
            return Ok(());
        }
        let old = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&self.path);
        files::replace(&self.path, text(key).as_bytes())?;
        (self.seen, self.has) = (self.mark(), Some(now));
        let Ok(old) = old else { return Ok(()) };
        let len = old.metadata()?.len().min(LONGEST);
        old.write_all_at(&vec![0; usize::try_from(len).unwrap_or(0)], 0)?;
        old.sync_data()
    }
}

fn text(key: &Ratchet) -> Zeroizing<String> {
    let secret = key.reveal();
    let text = format!("{MAGIC} {} {} {}\n", key.id(), key.index(), secret.as_str());
    Zeroizing::new(text)
}

/// The key of the next checkpoint as the file at `path` has it; `None` where there is no file.
pub fn load_key(path: &Path, trust: Trust) -> Result<Option<Ratchet>, FileError> {
    let mut looks = 0;
    let bytes = loop {
        let bytes = match files::read(path, Holds::Secrets, trust, LONGEST) {
            Err(why) if why.is_absent() => return Ok(None),
            bytes => Zeroizing::new(bytes?),
        };
        looks += 1;
        // Who opened the file just before another took its place reads zeros that were written over it.
        if looks == 3 || !bytes.contains(&0) {
            break bytes;
        }
    };
    let words = std::str::from_utf8(&bytes).unwrap_or_default();
    let mut words = words.split_ascii_whitespace();
    let (magic, id, index, key) = (words.next(), words.next(), words.next(), words.next());
    let key = match (magic, id, index.and_then(|index| index.parse().ok()), key) {
        (Some(MAGIC), Some(id), Some(index), Some(key)) => Ratchet::resume(id, index, key),
        _ => None,
    };
    key.map(Some).ok_or_else(|| FileError::Loose {
        path: path.into(),
        what: "is no key of checkpoints".into(),
        remedy: "make a new one with `keyhatchd audit keygen --replace`".into(),
    })
}

/// Begins sealing: puts the first key into the file at `path`, for the owner of its folder.
pub fn begin(path: &Path, key: &Ratchet, replace: bool) -> io::Result<()> {
    let fresh = path.with_extension("fresh");
    let folder = path.parent().unwrap_or(path);
    let owner = fs::metadata(folder)?;
    let _ = fs::remove_file(&fresh);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    let done = (|| {
        file.write_all_at(text(key).as_bytes(), 0)?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        file.sync_all()?;
        if replace {
            fs::rename(&fresh, path)
        } else {
            // Unlike a rename, a link takes nobody's place.
            fs::hard_link(&fresh, path)
        }
    })();
    let _ = fs::remove_file(&fresh);
    done?;
    File::open(folder)?.sync_all()
}

/// What the members of a checkpoint say; `None` where it is none.
pub(super) fn seal_of(members: &Map<String, Value>) -> Option<Seal> {
    let text = |key: &str| members.get(key)?.as_str().map(str::to_owned);
    Some(Seal {
        key: text("key")?,
        index: members.get("index")?.as_u64()?,
        hmac: text("hmac")?,
    })
}

fn newest_first(dir: &Path) -> io::Result<impl Iterator<Item = SegmentFile>> {
    let mut files = segments(dir)?;
    files.retain(|file| file.kind != Kind::SetAside);
    Ok(files.into_iter().rev())
}

fn is_checkpoint(line: &[u8]) -> bool {
    memchr::memmem::find(line, br#","event":"audit.checkpoint","#).is_some()
}

/// Whether the newest records were sealed, and no alert after that has told that it ended.
fn was_sealed(dir: &Path) -> io::Result<bool> {
    let told = format!("\"what\":\"{GONE}\"");
    for file in newest_first(dir)? {
        let (mut lines, mut any, mut sealed) = (Lines::open(&file)?, false, false);
        while let Some(line) = lines.next_line()? {
            any = true;
            sealed = is_checkpoint(line)
                || sealed && memchr::memmem::find(line, told.as_bytes()).is_none();
        }
        if any {
            return Ok(sealed);
        }
    }
    Ok(false)
}

/// The last checkpoint of `key` in the log, and the head that it seals.
fn last_of(dir: &Path, key: &str) -> io::Result<Option<(Record, Seal)>> {
    for file in newest_first(dir)? {
        let (mut lines, mut last) = (Lines::open(&file)?, None);
        while let Some(line) = lines.next_line()? {
            if is_checkpoint(line) {
                last = Record::parse(line)
                    .and_then(|record| seal_of(&record.extra()).map(|seal| (record, seal)))
                    .filter(|(_, seal)| seal.key == key)
                    .or(last);
            }
        }
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Where the log goes on: after its last checkpoint, if that is ours and the file has not followed yet; else
/// what is wrong.
fn catch_up(key: &mut Ratchet, dir: &Path) -> Result<Option<String>, AuditError> {
    let last = last_of(dir, key.id()).map_err(AuditError::io("look for checkpoints in", dir))?;
    let Some((record, seal)) = last else {
        return Ok((key.index() > 0).then(|| "the log has no checkpoint any more".to_owned()));
    };
    if seal.index.saturating_add(1) < key.index() {
        let gone = seal.index + 1..key.index();
        return Ok(Some(format!(
            "checkpoints {} to {} are missing at the end",
            gone.start,
            gone.end - 1
        )));
    }
    if seal.index < key.index() {
        return Ok(None);
    }
    let mut ahead = key.clone();
    if seal.index - key.index() <= MOST {
        ahead.forward_to(seal.index);
        if record
            .before()
            .is_some_and(|head| ahead.seal(&head) == seal)
        {
            ahead.forward();
            *key = ahead;
            return Ok(None);
        }
    }
    Ok(Some(format!(
        "the checkpoint in record {} is not by this host's key",
        record.seq
    )))
}

/// The key for a log that is opened, and the members of an alert where the log does not fit it.
pub(super) fn open(
    file: &mut KeyFile,
    dir: &Path,
) -> Result<(Option<Ratchet>, Option<String>), AuditError> {
    let Some(mut key) = file.look().map_err(AuditError::Key)? else {
        // A log that cannot be read is told of elsewhere, and can be written all the same.
        let alert = was_sealed(dir)
            .unwrap_or(false)
            .then(|| extra(&[("what", json!(GONE))]));
        return Ok((None, alert));
    };
    let wrong = catch_up(&mut key, dir)?;
    let alert = wrong.map(|what| extra(&[("what", json!(what))]));
    Ok((Some(key), alert))
}

impl Writer {
    /// Seals with that key from now on; where it is an older state of the one that is held, with that.
    fn take_key(&mut self, key: Ratchet) {
        if self.key.as_ref().is_none_or(|held| held.id() != key.id()) {
            self.key = Some(key);
        }
    }

    /// Seals all records so far, where there is a key and something that it has not sealed.
    pub(super) fn checkpoint(&mut self) -> Result<(), Failure> {
        let Some(key) = self.key.as_mut().filter(|_| self.head.seq != self.sealed) else {
            return Ok(());
        };
        let seal = key.seal(&self.head);
        let members = extra(&[
            ("key", json!(seal.key)),
            ("index", json!(seal.index)),
            ("hmac", json!(seal.hmac)),
        ]);
        let entry = Entry {
            extra: Some(&members),
            ..Entry::of(Event::AuditCheckpoint)
        };
        let now = Now::read();
        let hash = record(&mut self.line, &self.head, &entry, &mut self.clock, now);
        self.segment.append(&self.line)?;
        key.forward();
        self.advance(hash);
        self.sealed = self.head.seq;
        Ok(())
    }

    /// How much room the segment must keep for its last record.
    pub(super) fn reserve(&self) -> usize {
        self.key.as_ref().map_or(0, |_| ROOM)
    }
}

impl Inner {
    /// Writes a checkpoint where one is due, and takes up a key that is new; the key of the next checkpoint and the
    /// record that must be on disk before its file may have it.
    pub(super) fn seal_records(&self) -> Option<(Ratchet, u64)> {
        match held(&self.key_file).as_mut()?.look() {
            Ok(Some(key)) => self.writer().take_key(key),
            Ok(None) => {}
            Err(why) => tracing::warn!(%why, "no checkpoint can be sealed"),
        }
        self.writer().key.as_ref()?;
        // A failure has already stopped service.
        let _ = self.append_with(|writer| {
            writer.checkpoint()?;
            Ok(writer.head.seq)
        });
        // Not the head that requests see: of a segment whose successor could not be made it lacks the checkpoint.
        let writer = self.writer();
        Some((writer.key.clone()?, writer.head.seq))
    }

    /// Puts a key into its file whose checkpoints before are on disk.
    pub(super) fn store_key(&self, key: &Ratchet) {
        let mut file = held(&self.key_file);
        if let Some(Err(why)) = file.as_mut().map(|file| file.store(key)) {
            tracing::warn!(%why, "the key of the next checkpoint was not stored; an older one stays on disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::tests::Dir;
    use super::super::{Log, Settings};
    use super::*;

    fn key(byte: u8) -> Ratchet {
        Ratchet::start(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn a_new_key_in_the_inode_of_the_old_one_is_taken_up_and_not_written_over() {
        let dir = Dir::new();
        let path = dir.0.join("checkpoint.key");
        begin(&path, &key(1), false).unwrap();
        let mut file = KeyFile::new(&path);
        let mut held = file.look().unwrap().unwrap();
        held.forward();
        file.store(&held).unwrap();
        assert!(file.look().unwrap().is_none(), "it is what was stored");
        // As where the old file is removed and the new one is given its inode.
        fs::write(&path, text(&key(2)).as_bytes()).unwrap();
        let later = SystemTime::now() + Duration::from_secs(1);
        File::open(&path).unwrap().set_modified(later).unwrap();
        held.forward();
        file.store(&held).unwrap();
        assert!(file.look().unwrap().unwrap().is(&key(2)));
    }

    #[test]
    fn a_key_that_went_while_nobody_looked_is_told_once() {
        let dir = Dir::new();
        let path = dir.0.join("checkpoint.key");
        begin(&path, &key(1), false).unwrap();
        let open = || {
            let mut settings = Settings::new(&dir.0);
            (settings.journald, settings.key_file) = (false, Some(path.clone()));
            let (log, _) = Log::open(settings).unwrap();
            let _ = log.keep(&Entry::of(Event::PolicyLoaded)).unwrap();
            log.close();
        };
        let alerts = || {
            let [segment] = &segments(&dir.0).unwrap()[..] else {
                panic!("one segment")
            };
            let text = fs::read_to_string(&segment.path).unwrap();
            (text.matches(GONE).count(), text.matches("alert.").count())
        };
        open();
        assert_eq!(alerts(), (0, 0));
        fs::remove_file(&path).unwrap();
        open();
        open();
        assert_eq!(alerts(), (1, 1));
    }
}
