//! The files of a configuration: the one that was named, and `conf.d/*.toml` beside it in name order.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::Depth;
use crate::policy::{Place, Report};

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
    let parts = match drop_ins(&folder) {
        Ok(parts) => parts,
        Err(error) => {
            let hint = "make the folder readable, or remove it";
            report.error(&whole(&folder), format!("cannot be listed, {error}, {hint}"));
            Vec::new()
        }
    };
    for file in std::iter::once(path.to_owned()).chain(parts) {
        match read_trusted(&file, depth) {
            Ok(text) => documents.push(Document::new(file, text)),
            Err(error) => report.error(&whole(&file), format!("cannot be read, {error}, {}", hint(&error))),
        }
    }
    documents
}

fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        // As a shell's `*.toml`: editors keep their lock and backup files behind a dot.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().extension().is_some_and(|end| end == "toml") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The text of a file that decides access. With [`Depth::Full`] only where nobody else can write it.
fn read_trusted(path: &Path, _depth: Depth) -> io::Result<String> {
    std::fs::read_to_string(path)
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "write one or name another with --config",
        io::ErrorKind::InvalidData => "save it as UTF-8",
        _ => "make it a readable file",
    }
}

fn whole(path: &Path) -> Place {
    Place {
        file: path.display().to_string().into(),
        line: 0,
    }
}

impl Document {
    pub(super) fn new(path: PathBuf, text: String) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            line_starts: std::iter::once(0).chain(after_breaks).collect(),
            name: whole(&path).file,
            path,
            text,
        }
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
            line: self.line_starts.partition_point(|start| *start <= span.start),
        }
    }
}
