//! The files of a configuration as they stood when it was read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Device, inode, size and time of change of one file; `None` where it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Tells whether the files on disk are still those that run.
pub struct Stamps(Vec<(PathBuf, Stamp)>);

impl Stamps {
    /// The files of a configuration, and the folder in which more may appear.
    #[must_use]
    pub fn of(files: &[PathBuf]) -> Self {
        let folder = files
            .first()
            .and_then(|main| main.parent())
            .map(|above| above.join("conf.d"));
        let all = files.iter().cloned().chain(folder);
        Self(all.map(|path| (path.clone(), stamp(&path))).collect())
    }

    /// Whether one of them is not as it was.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.0.iter().any(|(path, then)| stamp(path) != *then)
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime(),
        meta.ctime_nsec(),
    ))
}
