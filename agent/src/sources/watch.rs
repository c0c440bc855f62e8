//! Tells when a file may have changed: itself, or any folder or link on the way to it.
//!
//! Each folder on the way is watched for the one name that leads on, links are followed and watched where
//! they stand, so a rename, a deletion and re-creation, and a swapped link above are all seen.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// How far a chain of links is followed.
const LINKS: usize = 40;

/// What an event says of a watched file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing of interest.
    None,
    /// It is being written in place: wait until that has ended.
    Writing,
    /// It stands whole: a rename, or the writer has closed it.
    Whole,
    /// A folder or link on the way changed: watch anew, then look.
    Moved,
}

/// The names in folders that lead to one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trail {
    file: Option<(PathBuf, OsString)>,
    steps: HashSet<(PathBuf, OsString)>,
    /// Device and inode of each folder: another one at the same path is another way, and not watched yet.
    ids: Vec<Option<(u64, u64)>>,
}

impl Trail {
    /// Follows the way to `path` as it is now.
    #[must_use]
    pub fn to(path: &Path) -> Self {
        let mut trail = Self::default();
        let mut todo: Vec<OsString> = segments(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(segment) = todo.pop() {
            if segment == ".." {
                at.pop();
                continue;
            }
            let step = (at.clone(), segment.clone());
            let here = at.join(&segment);
            if todo.is_empty() {
                trail.file = Some(step);
                break;
            }
            trail.steps.insert(step);
            match fs::read_link(&here) {
                Ok(target) if links < LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    todo.extend(segments(&target));
                }
                _ => at = here,
            }
        }
        trail.ids = trail.folders().into_iter().map(id).collect();
        trail
    }

    /// What `event` says of the file at the end of the trail.
    #[must_use]
    pub fn judge(&self, event: &Event) -> News {
        let mut news = News::None;
        for path in &event.paths {
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let step = (folder.to_owned(), name.to_owned());
            if self.steps.contains(&step) && !matches!(event.kind, EventKind::Access(_)) {
                return News::Moved;
            }
            if self.file.as_ref() == Some(&step) {
                news = match event.kind {
                    EventKind::Access(AccessKind::Close(AccessMode::Write)) => News::Whole,
                    EventKind::Access(_) => news,
                    // A file that is made here is written next; one that is renamed here is whole.
                    EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(_) => News::Writing,
                    _ => News::Whole,
                };
            }
        }
        news
    }

    fn folders(&self) -> BTreeSet<&Path> {
        self.steps
            .iter()
            .chain(&self.file)
            .map(|(folder, _)| folder.as_path())
            .collect()
    }
}

/// Watches the folders of all `trails`. `tell` is called on the watcher's own thread, and only with news:
/// a folder on the way may be as busy as /tmp.
pub fn watch(
    trails: &Arc<[Trail]>,
    tell: impl Fn(News) + Send + 'static,
) -> notify::Result<RecommendedWatcher> {
    let kept = Arc::clone(trails);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let news = match &event {
            Ok(event) if event.need_rescan() => News::Moved,
            Ok(event) => kept
                .iter()
                .map(|trail| trail.judge(event))
                .max()
                .unwrap_or(News::None),
            // Events were lost: look at everything.
            Err(_) => News::Moved,
        };
        if news != News::None {
            tell(news);
        }
    })?;
    let folders: BTreeSet<&Path> = trails.iter().flat_map(Trail::folders).collect();
    for folder in folders {
        // A folder that is not there yet is seen coming by the one above it.
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
            && folder.exists()
        {
            return Err(error);
        }
    }
    Ok(watcher)
}

fn id(folder: &Path) -> Option<(u64, u64)> {
    fs::metadata(folder)
        .ok()
        .map(|meta| (meta.dev(), meta.ino()))
}

fn segments(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}
