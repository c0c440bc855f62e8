//! The feed against a journald of our own.

use super::super::journald::tests::decode;
use super::*;
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

fn fed(dir: &Dir) -> Settings {
    Settings {
        journald: true,
        journal_socket: dir.0.join("journal.socket"),
        segment: 64 << 10,
        ..settings(&dir.0)
    }
}

fn listen(dir: &Dir) -> UnixDatagram {
    let path = dir.0.join("journal.socket");
    let _ = fs::remove_file(&path);
    let socket = UnixDatagram::bind(path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket
}

type Fields = BTreeMap<String, String>;

fn receive(socket: &UnixDatagram) -> Fields {
    let mut buffer = vec![0; 1 << 20];
    let mut space = nix::cmsg_space!([i32; 1]);
    let (len, memfd) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        );
        let got = got.expect("no entry came");
        let memfd = got.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        (got.bytes, memfd)
    };
    buffer.truncate(len);
    if let Some(memfd) = memfd {
        buffer = contents(memfd);
    }
    let text = |bytes| String::from_utf8(bytes).unwrap();
    decode(&buffer)
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect()
}

fn contents(memfd: i32) -> Vec<u8> {
    let file = fs::File::from(crate::sys::peer::received(memfd));
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(file.write_at(b"x", 0).is_err(), "it is sealed");
    bytes
}

fn seq(fields: &Fields) -> u64 {
    fields["KEYHATCH_SEQ"].parse().unwrap()
}

#[test]
fn each_record_is_an_entry_with_the_fields_of_the_contract() {
    let dir = Dir::new();
    let journal = listen(&dir);
    let (log, _) = Log::open(fed(&dir)).unwrap();
    let who = who();
    let denied = Entry {
        decision: Verdict::Deny,
        reason: Some("no_grant"),
        ..read(&who, "app/db")
    };
    let _ = log.keep(&read(&who, "app/db")).unwrap();
    let _ = log.keep(&denied).unwrap();
    let _ = log.keep(&Entry::of(Event::AlertHoneytoken)).unwrap();
    let entry = receive(&journal);
    for (field, want) in [
        ("SYSLOG_IDENTIFIER", "keyhatch"),
        ("MESSAGE_ID", Event::SecretRead.message_id()),
        ("PRIORITY", "6"),
        ("KEYHATCH_EVENT", "secret.read"),
        ("KEYHATCH_DECISION", "allow"),
        ("KEYHATCH_REASON", "granted"),
        ("KEYHATCH_RULE", "keyhatch.toml:12"),
        ("KEYHATCH_SECRET", "app/db"),
        ("KEYHATCH_VERSION", "v1"),
        ("KEYHATCH_BOT", "support-bot"),
        ("KEYHATCH_ROLES", "llm-caller,reader"),
        ("KEYHATCH_SURFACE", "native"),
        ("KEYHATCH_SEQ", "1"),
        ("KEYHATCH_REQUEST_ID", "0123456789abcdef"),
        ("KEYHATCH_PEER_PID", "4242"),
        ("KEYHATCH_PEER_UID", "1001"),
        ("KEYHATCH_PEER_GID", "1001"),
        ("KEYHATCH_PEER_EXE", "/usr/bin/bot"),
        ("KEYHATCH_PEER_UNIT", "support-bot.service"),
    ] {
        assert_eq!(entry.get(field).map(String::as_str), Some(want), "{field}");
    }
    assert!(!entry.contains_key("KEYHATCH_PEER_INVOCATION_ID"));
    assert_eq!(receive(&journal)["PRIORITY"], "4");
    let alert = receive(&journal);
    assert_eq!(
        (alert["PRIORITY"].as_str(), alert["KEYHATCH_HASH"].as_str()),
        ("1", log.head().hash.as_str())
    );
    wait("telling", || log.stats().journal_behind == 0);
}

#[test]
fn nothing_is_lost_while_journald_is_away_slow_or_restarted() {
    let dir = Dir::new();
    let (log, _) = Log::open(fed(&dir)).unwrap();
    keep(&log, 300);
    wait("trouble", || log.stats().journal_error.is_some());
    let journal = listen(&dir);
    for want in 1..=100 {
        assert_eq!(seq(&receive(&journal)), want);
    }
    // A reader that does nothing: the queue fills, and requests go on.
    keep(&log, 300);
    // Gone with what was in its queue, as a journald that is killed: all that may have been there comes again.
    drop(journal);
    wait("trouble", || log.stats().journal_error.is_some());
    let journal = listen(&dir);
    for want in 1..=600 {
        assert_eq!(seq(&receive(&journal)), want);
    }
    wait("catching up", || {
        log.stats().journal_behind == 0 && log.stats().journal_error.is_none()
    });
}

#[test]
fn a_restart_goes_on_where_the_journal_is() {
    let dir = Dir::new();
    let journal = listen(&dir);
    let (log, _) = Log::open(fed(&dir)).unwrap();
    keep(&log, 5);
    for want in 1..=5 {
        assert_eq!(seq(&receive(&journal)), want);
    }
    drop(log);
    let (log, _) = Log::open(Settings {
        journald: false,
        ..fed(&dir)
    })
    .unwrap();
    keep(&log, 5);
    drop(log);
    let (log, _) = Log::open(fed(&dir)).unwrap();
    keep(&log, 1);
    for want in 6..=11 {
        assert_eq!(seq(&receive(&journal)), want);
    }
}

#[test]
fn a_tail_cut_while_stopped_shows_by_the_journal() {
    let dir = Dir::new();
    let journal = listen(&dir);
    let (log, _) = Log::open(fed(&dir)).unwrap();
    keep(&log, 5);
    (0..5).for_each(|_| drop(receive(&journal)));
    drop(log);
    let bytes = fs::read(dir.current()).unwrap();
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    fs::write(dir.current(), lines[..3].concat()).unwrap();
    let (log, _) = Log::open(fed(&dir)).unwrap();
    assert_eq!(log.head().seq, 4);
    let alert = receive(&journal);
    assert_eq!(
        (alert["KEYHATCH_EVENT"].as_str(), seq(&alert)),
        ("alert.chain_broken", 4)
    );
}

#[test]
fn an_entry_too_long_for_a_datagram_goes_as_a_sealed_memfd() {
    let dir = Dir::new();
    let journal = listen(&dir);
    let (log, _) = Log::open(fed(&dir)).unwrap();
    let text = "x".repeat(400 << 10);
    let members = extra(&[("message", text.clone().into())]);
    let entry = Entry {
        extra: Some(&members),
        ..Entry::of(Event::PolicyRejected)
    };
    let _ = log.keep(&entry).unwrap();
    assert_eq!(receive(&journal)["KEYHATCH_MESSAGE"], text);
}

#[test]
fn far_behind_equal_reads_are_told_together_and_each_is_counted() {
    let dir = Dir::new();
    let (log, _) = Log::open(Settings {
        segment: 1 << 20,
        ..fed(&dir)
    })
    .unwrap();
    let who = who();
    for _ in 0..15_000 {
        let _ = log.keep(&read(&who, "app/db")).unwrap();
    }
    wait("trouble", || log.stats().journal_error.is_some());
    let journal = listen(&dir);
    let (mut entries, mut counted, mut last) = (0, 0, 0);
    while last < 15_000 {
        let entry = receive(&journal);
        entries += 1;
        counted += entry
            .get("KEYHATCH_COUNT")
            .map_or(1, |count| count.parse().unwrap());
        last = entry
            .get("KEYHATCH_SEQ_LAST")
            .map_or(seq(&entry), |last| last.parse().unwrap());
    }
    assert_eq!(counted, 15_000);
    assert!(entries < 12_000, "{entries}");
}
