//! Recovery after a kill, tampering named, and the readers.

use super::*;

/// A closed log of 20 records in one file, and its lines.
fn log_of_20(dir: &Dir) -> (PathBuf, Vec<Vec<u8>>, Head) {
    let (log, _) = Log::open(Settings {
        segment: 1 << 20,
        ..settings(&dir.0)
    })
    .unwrap();
    keep(&log, 20);
    log.close();
    let path = dir.current();
    let bytes = fs::read(&path).unwrap();
    let lines = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    (path, lines, log.head())
}

fn first_bad(dir: &Dir, path: &Path, lines: &[Vec<u8>], head: Option<Head>) -> (u64, u64, Why) {
    fs::write(path, lines.concat()).unwrap();
    let bad = verify(&dir.0, head)
        .unwrap()
        .bad
        .into_iter()
        .next()
        .expect("it was not noticed");
    (bad.line, bad.seq, bad.why)
}

/// The line with another secret, and the hash that then belongs to it.
fn forged(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(line.to_vec())
        .unwrap()
        .replace("app/", "bad/");
    let (hashed, _) = text.rsplit_once(",\"hash\"").unwrap();
    format!("{hashed},\"hash\":\"{}\"}}\n", Hash::of(hashed.as_bytes())).into_bytes()
}

#[test]
fn each_kind_of_tampering_is_named() {
    let dir = Dir::new();
    let (path, good, head) = log_of_20(&dir);
    let check = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines = good.clone();
        change(&mut lines);
        first_bad(&dir, &path, &lines, Some(head))
    };
    assert_eq!(check(&|lines| lines[9][100] ^= 1), (10, 10, Why::Edited));
    assert_eq!(
        check(&|lines| drop(lines.remove(9))),
        (10, 10, Why::Removed { to: 10 })
    );
    assert_eq!(
        check(&|lines| drop(lines.drain(4..9))),
        (5, 5, Why::Removed { to: 9 })
    );
    assert_eq!(check(&|lines| lines.swap(9, 10)), (10, 10, Why::Swapped));
    assert_eq!(
        check(&|lines| lines.insert(9, good[8].clone())),
        (10, 9, Why::Duplicate)
    );
    assert_eq!(
        check(&|lines| lines[9] = forged(&good[9])),
        (10, 10, Why::Rewritten)
    );
    assert_eq!(
        check(&|lines| lines[19] = forged(&good[19])),
        (20, 20, Why::Rewritten)
    );
    assert_eq!(
        check(&|lines| lines[9] = b"hello\n".to_vec()),
        (10, 10, Why::NotARecord)
    );
    assert_eq!(check(&|lines| drop(lines.remove(0))), (1, 1, Why::Misnamed));
    assert_eq!(check(&|lines| lines.truncate(15)), (0, 16, Why::CutTail));
    assert_eq!(
        check(&|lines| lines[9] = vec![0; good[9].len()]),
        (10, 10, Why::BadTail)
    );
    fs::write(&path, good.concat()).unwrap();
    assert!(verify(&dir.0, Some(head)).unwrap().is_whole());
}

#[test]
fn a_missing_first_or_middle_segment_is_named() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 200);
    log.close();
    let files = segments(&dir.0).unwrap();
    let name = |at: usize| files[at].name();
    fs::rename(&files[1].path, dir.0.join("gone")).unwrap();
    let bad = verify(&dir.0, None).unwrap().bad.remove(0);
    assert_eq!((bad.file, bad.seq), (name(2), files[1].first));
    assert_eq!(
        bad.why,
        Why::SegmentGap {
            to: files[2].first - 1
        }
    );
    fs::rename(dir.0.join("gone"), &files[1].path).unwrap();
    fs::remove_file(&files[0].path).unwrap();
    let bad = verify(&dir.0, None).unwrap().bad.remove(0);
    assert_eq!((bad.file, bad.why), (name(1), Why::BeginsLate));
}

#[test]
fn a_torn_last_line_is_cut_wherever_it_ends() {
    let dir = Dir::new();
    let (path, lines, _) = log_of_20(&dir);
    let (whole, last) = (lines[..19].concat(), &lines[19]);
    for len in 0..=last.len() {
        // A kill leaves the reserved zeros behind the part that was copied.
        for zeros in [0, 4096] {
            let mut bytes = whole.clone();
            bytes.extend_from_slice(&last[..len]);
            bytes.resize(bytes.len() + zeros, 0);
            fs::write(&path, bytes).unwrap();
            let (log, notes) = Log::open(settings(&dir.0)).unwrap();
            let kept = if len == last.len() { 20 } else { 19 };
            assert_eq!(log.head().seq, kept, "cut at {len}");
            let torn = len > 0 && len < last.len();
            assert_eq!(notes.len(), usize::from(torn), "{notes:?}");
            log.close();
            assert_eq!(events(&dir, "alert.*").len(), 0);
        }
    }
    // A line whose first byte was not published yet, and one with a hole.
    for hole in [0..1, 40..80, 0..200] {
        let mut torn = last.clone();
        torn[hole].fill(0);
        fs::write(&path, [whole.clone(), torn].concat()).unwrap();
        let log = open(&dir);
        assert_eq!(keep(&log, 1), 20);
        log.close();
        assert_eq!(self::whole(&dir, log.head()).len(), 20);
    }
}

#[test]
fn a_chain_that_does_not_verify_goes_on_in_a_new_segment() {
    let dir = Dir::new();
    let (path, mut lines, _) = log_of_20(&dir);
    lines[9][100] ^= 1;
    fs::write(&path, lines.concat()).unwrap();
    let log = open(&dir);
    keep(&log, 5);
    log.close();
    let alerts = events(&dir, "alert.chain_broken");
    assert_eq!(alerts.len(), 1);
    assert_eq!(
        (alerts[0].seq, &alerts[0].extra()["bad_seq"]),
        (10, &10.into())
    );
    let report = verify(&dir.0, Some(log.head())).unwrap();
    assert_eq!(report.bad[0].why, Why::Edited);
    assert_eq!((report.bad[0].seq, report.bad[0].noticed), (10, Some(10)));
    assert_eq!(report.head.unwrap().seq, 15);
    let seqs: Vec<_> = query(&dir.0, &Filter::default())
        .unwrap()
        .iter()
        .map(|r| r.seq)
        .collect();
    assert_eq!(seqs, (1..=15).collect::<Vec<_>>());
}

#[test]
fn data_behind_a_gap_and_a_bad_first_record_are_kept_as_they_are() {
    for bad in [0, 9] {
        let dir = Dir::new();
        let (path, mut lines, _) = log_of_20(&dir);
        lines[bad].fill(0);
        let bytes = lines.concat();
        fs::write(&path, &bytes).unwrap();
        let log = open(&dir);
        assert_eq!(keep(&log, 1), bad as u64 + 2, "the alert comes first");
        log.close();
        let files = segments(&dir.0).unwrap();
        let old = &files[0].path;
        let kept = if files[0].kind == Kind::Packed {
            Vec::new()
        } else {
            fs::read(old).unwrap()
        };
        assert!(kept.is_empty() || kept == bytes);
        assert_eq!(verify(&dir.0, None).unwrap().bad[0].why, Why::BadTail);
    }
}

#[test]
fn a_killed_writer_leaves_every_record() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 50);
    // What a kill leaves: no close, no cut. The copy has what other processes see.
    let copy = Dir::new();
    for file in segments(&dir.0).unwrap() {
        fs::copy(&file.path, copy.0.join(file.name())).unwrap();
    }
    let again = open(&copy);
    assert_eq!(again.head(), log.head());
    assert_eq!(keep(&again, 1), 51);
    again.close();
    whole(&copy, again.head());
}

#[test]
fn a_log_is_verified_while_it_is_written() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 1);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| keep(&log, 20_000));
        let mut looks = 0;
        while !writing.is_finished() || looks == 0 {
            let report = verify(&dir.0, None).unwrap();
            assert_eq!(report.bad, []);
            looks += 1;
        }
    });
}

#[test]
fn queries_select() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 100);
    log.close();
    let found = |filter: Filter| query(&dir.0, &filter).unwrap().len();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        found(Filter {
            secret: text("app/1*"),
            ..Filter::default()
        }),
        11
    );
    assert_eq!(
        found(Filter {
            bot: text("support-*"),
            uid: Some(1001),
            ..Filter::default()
        }),
        100
    );
    assert_eq!(
        found(Filter {
            uid: Some(1002),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        found(Filter {
            event: text("alert.*"),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        found(Filter {
            unit: text("*.service"),
            limit: Some(7),
            ..Filter::default()
        }),
        7
    );
    assert_eq!(
        found(Filter {
            seq: Some((40, 60)),
            ..Filter::default()
        }),
        21
    );
    let now = std::time::SystemTime::now();
    assert_eq!(
        found(Filter {
            since: Some(now),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        found(Filter {
            until: Some(now),
            ..Filter::default()
        }),
        100
    );
}

#[test]
fn a_tail_follows_over_segments() {
    let dir = Dir::new();
    let log = open(&dir);
    keep(&log, 60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..30 {
                keep(&log, 5);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let mut seen = Vec::new();
        tail(&dir.0, true, 10, |record| {
            seen.push(record.seq);
            record.seq < 210
        })
        .unwrap();
        let first = seen[0];
        assert!((51..=200).contains(&first));
        assert_eq!(seen, (first..=210).collect::<Vec<_>>());
    });
    let mut last = Vec::new();
    tail(&dir.0, false, 3, |record| {
        last.push(record.seq);
        true
    })
    .unwrap();
    assert_eq!(last, [208, 209, 210]);
}
