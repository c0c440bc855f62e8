//! Segment files: their names, their order, and their lines, plain or compressed, also while one is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use zstd::stream::read::Decoder;

/// How many bytes are read at once.
const CHUNK: usize = 256 * 1024;
/// What a zstd frame begins with (RFC 8878); no record does.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// No record is longer; what is, is no record.
pub(super) const MAX_LINE: usize = 512 * 1024;

/// One segment file of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// The number of its first record, from its name.
    pub first: u64,
    /// Where it is.
    pub path: PathBuf,
    /// How it is kept.
    pub kind: Kind,
}

/// How a segment is kept; in the order in which files of one number are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Put aside because it was changed by someone else; a later file has its records again.
    SetAside,
    /// Closed and compressed with zstd.
    Packed,
    /// As it is written.
    Plain,
}

impl SegmentFile {
    /// The file's name, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Its size in bytes; 0 once it is gone.
    #[must_use]
    pub fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }
}

/// `audit-<first>.jsonl`
pub(super) fn plain_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("audit-{first:020}.jsonl"))
}

/// `audit-<first>.jsonl.zst`
pub(super) fn packed_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("audit-{first:020}.jsonl.zst"))
}

/// The next free `audit-<first>.<n>.broken`.
pub(super) fn broken_path(dir: &Path, first: u64) -> PathBuf {
    let name = |n| dir.join(format!("audit-{first:020}.{n}.broken"));
    (1..u32::MAX)
        .map(name)
        .find(|path| !path.exists())
        .unwrap_or_else(|| name(0))
}

fn parse(path: PathBuf) -> Option<SegmentFile> {
    let rest = path.file_name()?.to_str()?.strip_prefix("audit-")?;
    let (digits, suffix) = rest.split_at_checked(20)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let kind = match suffix {
        ".jsonl" => Kind::Plain,
        ".jsonl.zst" => Kind::Packed,
        other if other.ends_with(".broken") => Kind::SetAside,
        _ => return None,
    };
    Some(SegmentFile {
        first: digits.parse().ok()?,
        path,
        kind,
    })
}

/// Every segment of `dir`, in the order of the records. Where a kill left a segment both plain and
/// compressed, the plain one counts.
pub fn segments(dir: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        found.extend(parse(entry?.path()));
    }
    found.sort_by(|a, b| (a.first, a.kind, &a.path).cmp(&(b.first, b.kind, &b.path)));
    let plain: Vec<u64> = found
        .iter()
        .filter(|file| file.kind == Kind::Plain)
        .map(|file| file.first)
        .collect();
    found.retain(|file| file.kind != Kind::Packed || plain.binary_search(&file.first).is_err());
    Ok(found)
}

/// Opens for reading, never through a symbolic link.
pub(super) fn open_read(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// What follows the last whole line of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing, or zeros.
    Clean,
    /// One unfinished line: a kill in the middle of writing it.
    Torn,
    /// More than that: lines behind a gap, or something that is no record at all.
    Gap,
}

/// The lines of one segment file.
pub struct Lines {
    input: Input,
    /// What has been read, and not yet given out from `at` on.
    chunk: Vec<u8>,
    at: usize,
    /// Where in the (uncompressed) file `chunk` begins.
    start: u64,
    number: u64,
}

enum Input {
    Plain(File),
    Packed(Box<Decoder<'static, BufReader<File>>>),
}

impl Lines {
    /// Opens `file`.
    pub fn open(file: &SegmentFile) -> io::Result<Self> {
        let (file, packed) = match open_read(&file.path) {
            // It was compressed since it was listed.
            Err(why) if why.kind() == io::ErrorKind::NotFound && file.kind == Kind::Plain => {
                (open_read(&file.path.with_extension("jsonl.zst"))?, true)
            }
            // A compressed segment that was put aside has lost the end of its name.
            opened => {
                let mut magic = [0; 4];
                let opened = opened?;
                let packed = opened.read_at(&mut magic, 0)? == 4 && magic == ZSTD_MAGIC;
                (opened, packed)
            }
        };
        Ok(if packed {
            Self::over(Input::Packed(Box::new(Decoder::new(file)?)), 0)
        } else {
            Self::over(Input::Plain(file), 0)
        })
    }

    /// The lines of an open plain file from byte `start` on.
    pub(super) fn from(file: File, start: u64) -> Self {
        Self::over(Input::Plain(file), start)
    }

    fn over(input: Input, start: u64) -> Self {
        Self {
            input,
            chunk: Vec::new(),
            at: 0,
            start,
            number: 0,
        }
    }

    /// The number of the line given out last, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where in the uncompressed file the next line begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.start + self.at as u64
    }

    /// The inode that is read, to notice when its name has gone to another file.
    pub(super) fn inode(&self) -> io::Result<u64> {
        let file = match &self.input {
            Input::Plain(file) => file,
            Input::Packed(decoder) => decoder.get_ref().get_ref(),
        };
        Ok(file.metadata()?.ino())
    }

    /// The next whole line, without its newline. `None` where there is none (yet): for a plain file
    /// asking again looks again.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        let mut seen = self.at;
        loop {
            if let Some(len) = memchr::memchr(b'\n', &self.chunk[seen..]) {
                let end = seen + len;
                if memchr::memchr(0, &self.chunk[self.at..end]).is_some() {
                    return Ok(self.none());
                }
                let line = self.at..end;
                self.at = end + 1;
                self.number += 1;
                return Ok(Some(&self.chunk[line]));
            }
            let rest = &self.chunk[self.at..];
            // Reading on moves the unfinished line to the front.
            seen = rest.len();
            if rest.first() == Some(&0) || rest.len() > MAX_LINE || self.fill()? == 0 {
                return Ok(self.none());
            }
        }
    }

    /// Forgets what was read past the last line of a plain file: it may be written just now.
    fn none(&mut self) -> Option<&[u8]> {
        if matches!(self.input, Input::Plain(_)) {
            self.chunk.truncate(self.at);
        }
        None
    }

    /// Reads on; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.at > 0 {
            self.chunk.drain(..self.at);
            self.start += self.at as u64;
            self.at = 0;
        }
        let old = self.chunk.len();
        self.chunk.resize(old + CHUNK, 0);
        let read = loop {
            let read = match &mut self.input {
                Input::Plain(file) => file.read_at(&mut self.chunk[old..], self.start + old as u64),
                Input::Packed(decoder) => decoder.read(&mut self.chunk[old..]),
            };
            match read {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.chunk.truncate(old + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Looks at what follows, after [`Lines::next_line`] gave `None`. A plain file can be read on after it.
    pub fn tail(&mut self) -> io::Result<Tail> {
        let end = self.offset();
        let mut survey = Survey::default();
        loop {
            survey.add(&self.chunk[self.at..]);
            self.at = self.chunk.len();
            if survey.gap || self.fill()? == 0 {
                break;
            }
        }
        self.chunk.clear();
        (self.start, self.at) = (end, 0);
        Ok(survey.tail())
    }
}

/// What the bytes past the last line amount to.
#[derive(Default)]
struct Survey {
    data: bool,
    len: usize,
    ended: bool,
    gap: bool,
}

impl Survey {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.len += usize::from(!self.ended);
            match byte {
                0 => {}
                // Anything after the end of one line, or too far on to belong to it.
                _ if self.ended || self.len > MAX_LINE => self.gap = true,
                b'\n' => (self.data, self.ended) = (true, true),
                _ => self.data = true,
            }
        }
    }

    fn tail(&self) -> Tail {
        match (self.gap, self.data) {
            (true, _) => Tail::Gap,
            (false, true) => Tail::Torn,
            (false, false) => Tail::Clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<String>, u64, Tail) {
        let path = std::env::temp_dir().join(format!(
            "keyhatch-lines-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::write(&path, bytes).unwrap();
        let mut lines = Lines::from(open_read(&path).unwrap(), 0);
        fs::remove_file(&path).unwrap();
        let mut out = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            out.push(String::from_utf8(line.to_vec()).unwrap());
        }
        let offset = lines.offset();
        (out, offset, lines.tail().unwrap())
    }

    #[test]
    fn a_zero_tail_is_the_end() {
        let mut bytes = b"one\ntwo\n".to_vec();
        assert_eq!(
            read(&bytes),
            (vec!["one".into(), "two".into()], 8, Tail::Clean)
        );
        bytes.resize(CHUNK * 2, 0);
        assert_eq!(
            read(&bytes),
            (vec!["one".into(), "two".into()], 8, Tail::Clean)
        );
    }

    #[test]
    fn a_torn_line_and_a_gap_differ() {
        for torn in [
            &b"one\ntw"[..],
            b"one\n\0wo\n\0\0",
            b"one\nt\0o\n",
            b"one\n\0\0\0o",
        ] {
            assert_eq!(read(torn), (vec!["one".into()], 4, Tail::Torn), "{torn:?}");
        }
        for gap in [&b"one\n\0\0\ntwo\n"[..], b"one\nt\0\ntwo\nthree"] {
            assert_eq!(read(gap), (vec!["one".into()], 4, Tail::Gap), "{gap:?}");
        }
    }

    #[test]
    fn long_lines_cross_chunks() {
        let long = "x".repeat(CHUNK + 10);
        let (lines, ..) = read(format!("a\n{long}\nb\n").as_bytes());
        assert_eq!(lines, ["a", &long, "b"]);
    }
}
