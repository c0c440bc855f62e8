//! Compressing closed segments, on a thread that runs only while nobody else wants the core.
//!
//! It takes no lock, so nobody ever waits for it. What it made is put in place by the archive.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use nix::libc;

use super::archive::Job;
use super::files::SegmentFile;
use super::segment::readable_by_adm;

/// The quickest level: on records it is also the smallest (a tenth; level 3 takes twice as long for a seventh more).
const LEVEL: i32 = 1;
const CHUNK: usize = 256 * 1024;

/// A segment to compress.
pub(super) struct Order {
    pub file: SegmentFile,
    pub plain: File,
    /// Of the plain file, to notice when its name has gone to another one.
    pub inode: u64,
    pub temporary: PathBuf,
}

/// The packer's thread, until the archive has no more orders.
pub(super) fn run(stopping: &AtomicBool, orders: &Receiver<Order>, done: &Sender<Job>) {
    crate::sys::map::run_when_idle();
    for mut order in orders {
        let result = compress(stopping, &mut order);
        // The archive may be gone: then the next start does it again.
        let _ = done.send(Job::Packed { order, result });
    }
}

fn compress(stopping: &AtomicBool, order: &mut Order) -> io::Result<()> {
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&order.temporary)?;
    readable_by_adm(&target, 0o640);
    let mut encoder = zstd::Encoder::new(&target, LEVEL)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        if stopping.load(Ordering::SeqCst) {
            return Err(io::Error::other("the agent is stopping"));
        }
        match order.plain.read(&mut chunk)? {
            0 => break,
            read => encoder.write_all(&chunk[..read])?,
        }
    }
    encoder.finish()?;
    target.sync_all()
}
