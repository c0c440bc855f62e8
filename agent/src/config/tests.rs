//! What a configuration says, and every message about what it should not say.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyhatch_protocol::{Action, Name};
use proptest::prelude::*;

use super::*;
use crate::policy::{Accounts, BotMatch, Facts, Pattern};

mod host;
mod reading;
mod wrong;

const BOT: &str = r#"
[[bot]]
name = "b"
match = { uid = 1000 }
roles = ["r"]
[role.r]
grants = [{ secrets = ["a/*"] }]
"#;

fn read(files: &[(&str, &str)]) -> Result<Config, Vec<Diagnostic>> {
    let document = |(name, text): &(&str, &str)| Document::new(name.into(), (*text).to_owned());
    let documents: Vec<Document> = files.iter().map(document).collect();
    assemble(&documents, Depth::ContentOnly, Report::default())
}

fn full() -> Depth {
    Depth::Full(Trust::own())
}

fn lines(found: &[Diagnostic]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

fn errors(text: &str) -> Vec<String> {
    lines(&read(&[("k.toml", text)]).unwrap_err())
}

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("keyhatch-config-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
