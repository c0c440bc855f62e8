//! A seat in `system.slice/khbench.service` for the load, so that a bot can be selected by its unit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The unit that the load runs in while it sits here.
pub const UNIT: &str = "khbench.service";

/// Moves this process back, and removes what it made, when dropped.
pub struct Seat {
    home: PathBuf,
    made: Vec<PathBuf>,
}

impl Seat {
    /// Needs root and a mounted cgroup2.
    pub fn take() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = mount_point(&mounts).ok_or_else(|| io::Error::other("no cgroup2 is mounted"))?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = own.ok_or_else(|| io::Error::other("this process is in no cgroup2"))?;
        let mut seat = Self {
            home: root.join(own),
            made: Vec::new(),
        };
        let slice = root.join("system.slice");
        let unit = slice.join(UNIT);
        seat.make(&slice)?;
        seat.make(&unit)?;
        move_to(&unit)?;
        Ok(seat)
    }

    fn make(&mut self, folder: &Path) -> io::Result<()> {
        if !folder.exists() {
            fs::create_dir(folder).map_err(|error| naming(folder, &error))?;
            self.made.push(folder.to_owned());
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut outcome = move_to(&self.home);
        for folder in self.made.iter().rev() {
            outcome = outcome.and_then(|()| fs::remove_dir(folder).map_err(|e| naming(folder, &e)));
        }
        if let Err(error) = outcome {
            eprintln!("keyhatch-bench: leaving the cgroup: {error}");
        }
    }
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut fields| {
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

fn move_to(folder: &Path) -> io::Result<()> {
    let file = folder.join("cgroup.procs");
    fs::write(&file, std::process::id().to_string()).map_err(|error| naming(&file, &error))
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_the_old_hierarchies() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            mount_point(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }
}
