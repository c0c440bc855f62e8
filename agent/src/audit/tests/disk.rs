//! What someone else or the disk does to the segment while it is written.

use super::*;
use std::process::Command;

/// Waits until the log has noticed a change and gone on.
fn noticed(dir: &Dir, log: &Log, times: usize) {
    wait("noticing", || {
        events(dir, "alert.chain_broken").len() == times
    });
    wait("going on", || log.available().is_ok());
}

#[test]
fn a_deleted_or_renamed_segment_comes_back_whole() {
    let dir = Dir::new();
    let log = open(&dir);
    let seq = keep(&log, 10);
    wait("the sync", || log.stats().synced >= seq);
    fs::remove_file(dir.current()).unwrap();
    noticed(&dir, &log, 1);
    keep(&log, 10);
    fs::rename(dir.current(), dir.0.join("elsewhere")).unwrap();
    noticed(&dir, &log, 2);
    keep(&log, 10);
    log.close();
    assert_eq!(whole(&dir, log.head()).len(), 32);
    let alerts = events(&dir, "alert.chain_broken");
    assert_eq!(alerts[0].extra()["what"], "it was deleted");
    assert_eq!(alerts[1].extra()["what"], "it was renamed");
}

#[test]
fn a_replaced_segment_is_put_aside() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 10);
    let path = dir.current();
    fs::write(dir.0.join("fake"), b"fake\n").unwrap();
    fs::rename(dir.0.join("fake"), &path).unwrap();
    noticed(&dir, &log, 1);
    keep(&log, 1);
    log.close();
    let report = verify(&dir.0, Some(log.head())).unwrap();
    assert_eq!(report.head, Some(log.head()));
    assert_eq!(
        (&report.bad[0].why, report.bad[0].noticed),
        (&Why::NotARecord, Some(11))
    );
    assert!(report.bad[0].file.ends_with(".broken"));
    let seqs: Vec<_> = query(&dir.0, &Filter::default())
        .unwrap()
        .iter()
        .map(|r| r.seq)
        .collect();
    assert_eq!(seqs, (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_truncated_segment_is_noticed_and_named() {
    let dir = Dir::new();
    let log = open(&dir);
    let seq = keep(&log, 10);
    wait("the sync", || log.stats().synced >= seq);
    let path = dir.current();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(100)
        .unwrap();
    noticed(&dir, &log, 1);
    keep(&log, 1);
    log.close();
    let report = verify(&dir.0, Some(log.head())).unwrap();
    assert!(!report.is_whole());
    assert_eq!(
        (report.bad[0].seq, report.bad[0].noticed),
        (1, Some(11)),
        "{:?}",
        report.bad
    );
    assert_eq!(report.head, Some(log.head()));
}

#[test]
fn a_write_by_someone_else_is_noticed() {
    use std::os::unix::fs::FileExt;
    for mapped in [true, false] {
        let dir = Dir::new();
        let settings = Settings {
            mapped,
            ..settings(&dir.0)
        };
        let (log, _) = Log::open(settings).unwrap();
        let seq = keep(&log, 10);
        wait("the sync", || log.stats().synced >= seq);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(dir.current())
            .unwrap();
        file.write_at(b"X", 150).unwrap();
        drop(file);
        noticed(&dir, &log, 1);
        keep(&log, 1);
        log.close();
        let report = verify(&dir.0, Some(log.head())).unwrap();
        assert_eq!((report.bad[0].seq, &report.bad[0].why), (1, &Why::Edited));
        assert_eq!(report.bad[0].noticed, Some(11));
        assert_eq!(
            report.bad.len(),
            1,
            "all others are whole: {:?}",
            report.bad
        );
    }
}

#[test]
fn after_a_failed_sync_what_was_not_on_disk_is_written_again() {
    use super::super::writer::Down;
    let dir = Dir::new();
    let log = open(&dir);
    let seq = keep(&log, 10);
    wait("the sync", || log.stats().synced >= seq);
    keep(&log, 45);
    log.inner.fail(
        &mut log.inner.writer(),
        Down::Broken("the disk said EIO".to_owned()),
    );
    wait("going on", || log.available().is_ok());
    keep(&log, 1);
    log.close();
    let records = whole(&dir, log.head());
    assert_eq!(
        records.len(),
        56,
        "no gap, no alert: nobody changed anything"
    );
    assert!(
        segments(&dir.0)
            .unwrap()
            .iter()
            .any(|file| (2..=11).contains(&file.first))
    );
    assert_eq!(log.stats().last_error.as_deref(), Some("the disk said EIO"));
}

/// A small file system that can be filled; `None` (said aloud) where it cannot be mounted.
struct Small(Dir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = Dir::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(&dir.0)
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED: mounting a small tmpfs needs root; the full disk is not tested");
        }
        mounted.then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

fn full_disk(mapped: bool) {
    let Some(disk) = Small::mount() else { return };
    let dir = &disk.0;
    let settings = Settings {
        mapped,
        segment: 1 << 20,
        ..settings(&dir.0)
    };
    let ballast = dir.0.join("ballast");
    fs::write(&ballast, vec![1; 128 << 10]).unwrap();
    let (log, _) = Log::open(settings).unwrap();
    keep(&log, 1);
    let who = who();
    let mut kept = 1;
    while let Ok(receipt) = log.keep(&read(&who, "app/db")) {
        kept += 1;
        assert_eq!(receipt.seq(), Some(kept));
        assert!(kept < 10_000, "the disk never filled");
    }
    for _ in 0..100 {
        assert!(
            log.available().is_err(),
            "it must not seem well while the disk is full"
        );
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_eq!(log.head().seq, kept, "what was refused is not in the log");
    fs::remove_file(&ballast).unwrap();
    wait("going on", || log.keep(&read(&who, "app/db")).is_ok());
    log.close();
    assert_eq!(whole(dir, log.head()).len() as u64, kept + 1);
}

#[test]
fn a_full_disk_refuses_then_goes_on() {
    full_disk(true);
}

#[test]
fn a_full_disk_refuses_written_records_too() {
    full_disk(false);
}

#[test]
fn on_failure_allow_serves_without_a_record_and_says_so() {
    let Some(disk) = Small::mount() else { return };
    let dir = &disk.0;
    let allow = Settings {
        on_failure: OnFailure::Allow,
        ..settings(&dir.0)
    };
    let (log, _) = Log::open(allow).unwrap();
    let _ = fs::write(dir.0.join("ballast"), vec![1; 256 << 10]);
    let who = who();
    wait("filling", || {
        log.keep(&read(&who, "app/db")).unwrap().is_unrecorded()
    });
    assert!(log.stats().unrecorded > 0);
}
