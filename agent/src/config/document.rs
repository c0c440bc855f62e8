//! The files of a configuration: the one that was named, and `conf.d/*.toml` beside it in name order.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use toml::de::DeTable;

use super::Depth;
use crate::files::{self, FileError, Holds};
use crate::policy::{Place, Report};

/// A file larger than this is no configuration.
const LARGEST: u64 = 4 << 20;

/// One file's text, and where its lines begin.
#[derive(Debug)]
pub(super) struct Document {
    pub path: PathBuf,
    name: Arc<str>,
    text: String,
    line_starts: Vec<usize>,
}

/// Reads every file of the configuration; what cannot be read is reported and left out.
pub(super) fn read_all(path: &Path, depth: Depth, report: &mut Report) -> Vec<Document> {
    let mut documents = Vec::new();
    let folder = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let parts = drop_ins(&folder, depth).unwrap_or_else(|why| {
        report.error(&whole(&folder), why);
        Vec::new()
    });
    for file in std::iter::once(path.to_owned()).chain(parts) {
        match read_trusted(&file, depth) {
            Ok(bytes) => documents.extend(Document::of_bytes(file, bytes, report)),
            Err(why) => report.error(&whole(&file), why),
        }
    }
    documents
}

/// What `conf.d` adds; with [`Depth::Full`] only where nobody else can put a file there.
fn drop_ins(folder: &Path, depth: Depth) -> Result<Vec<PathBuf>, String> {
    if std::fs::symlink_metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        return Ok(Vec::new());
    }
    let listed = match depth {
        Depth::Full(trust) => match files::open_folder(folder, Holds::Access, trust) {
            Ok(open) => list(
                folder,
                &Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()),
            ),
            Err(error) => return Err(refused(folder, &error)),
        },
        Depth::ContentOnly => list(folder, folder),
    };
    listed.map_err(|error| {
        format!("cannot be listed, {error}, make the folder readable, or remove it")
    })
}

/// The files of `folder`, which is listed as `open`, in name order.
fn list(folder: &Path, open: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(open)? {
        let file = folder.join(entry?.file_name());
        // As a shell's `*.toml`: editors keep their lock and backup files behind a dot.
        let hidden = file
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|end| end == "toml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// A file that decides access. With [`Depth::Full`] only where nobody else can write it.
fn read_trusted(path: &Path, depth: Depth) -> Result<Vec<u8>, String> {
    if let Depth::Full(trust) = depth {
        return files::read(path, Holds::Access, trust, LARGEST)
            .map_err(|error| refused(path, &error));
    }
    let bytes = read_plainly(path).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!(
            "is larger than {LARGEST} bytes, name the right file"
        ));
    }
    Ok(bytes)
}

/// Whatever can be read, a shell's `<(...)` too. A pipe that nobody writes to is empty, and not waited for.
fn read_plainly(path: &Path) -> io::Result<Vec<u8>> {
    let waits_for_no_writer = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(waits_for_no_writer)
        .open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn refused(path: &Path, error: &FileError) -> String {
    match error {
        FileError::Io { path: at, source } if at == path => unreadable(source),
        FileError::Io { source, path: at } => {
            format!("{}, at {}", unreadable(source), at.display())
        }
        FileError::Loose {
            path: at,
            what,
            remedy,
        } if at == path => format!("{what}, {remedy}"),
        FileError::Loose {
            path: at,
            what,
            remedy,
        } => {
            format!(
                "cannot be trusted, since {}: {what}, {remedy}",
                at.display()
            )
        }
    }
}

fn unreadable(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "write one or name another with --config",
        _ => "make it a readable file",
    };
    format!("cannot be read, {error}, {hint}")
}

fn whole(path: &Path) -> Place {
    Place {
        file: path.display().to_string().into(),
        line: 0,
    }
}

impl Document {
    /// The file as text, or the line on which it stops to be.
    fn of_bytes(path: PathBuf, bytes: Vec<u8>, report: &mut Report) -> Option<Self> {
        String::from_utf8(bytes)
            .map_err(|error| {
                let good = error
                    .as_bytes()
                    .iter()
                    .take(error.utf8_error().valid_up_to());
                let line = 1 + good.filter(|byte| **byte == b'\n').count();
                let text = "cannot be read, this line is not UTF-8, save the file as UTF-8";
                report.error(
                    &Place {
                        line,
                        ..whole(&path)
                    },
                    text,
                );
            })
            .ok()
            .map(|text| Self::new(path, text))
    }

    pub(super) fn new(path: PathBuf, text: String) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            line_starts: std::iter::once(0).chain(after_breaks).collect(),
            name: whole(&path).file,
            path,
            text,
        }
    }

    /// The file as places name it.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The file as a table; what is no TOML is reported.
    pub(super) fn parse(&self, report: &mut Report) -> Option<DeTable<'_>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        for error in &errors {
            let place = self.place(&error.span().unwrap_or_default());
            report.error(&place, format!("not valid TOML: {}", error.message()));
        }
        errors.is_empty().then(|| table.into_inner())
    }

    /// The line on which `span` begins.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        Place {
            file: self.name.clone(),
            line: self
                .line_starts
                .partition_point(|start| *start <= span.start),
        }
    }
}
