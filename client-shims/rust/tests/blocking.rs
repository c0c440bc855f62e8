//! The blocking client against an agent in a thread.
#![allow(clippy::unwrap_used, missing_docs)]

mod fake;

use std::thread;
use std::time::Duration;

use fake::{Answer, Fake, ok, problem, stream, value};
use keyhatch::blocking::Client;
use keyhatch::{ChangeKind, Error};

#[test]
fn a_connection_is_kept_and_one_that_was_closed_is_replaced_once() {
    let agent = Fake::start(|connection, number, _| match (connection, number) {
        (0, 1) => Answer::Last(value("2", "CANARY-2")),
        _ => Answer::Send(value("1", "CANARY-1")),
    });
    let client = Client::at(&agent.path);
    assert_eq!(client.get("a").unwrap().reveal(), b"CANARY-1");
    assert_eq!(client.get_previous("a").unwrap().version(), "2");
    assert_eq!(client.get("a#b").unwrap().version(), "1");
    let seen = agent.seen();
    let connections: Vec<_> = seen.iter().map(|(connection, _)| *connection).collect();
    assert_eq!(connections, [0, 0, 1]);
    assert!(
        seen[1]
            .1
            .starts_with("GET /v1/secrets/a?version=previous HTTP/1.1\r\n")
    );
    assert!(
        seen[2]
            .1
            .starts_with("GET /v1/secrets/a?field=b HTTP/1.1\r\n")
    );
}

#[test]
fn a_kept_connection_that_closes_under_the_request_is_replaced_too() {
    let agent = Fake::start(|connection, number, _| match (connection, number) {
        (0, 1) => Answer::Last(String::new()),
        _ => Answer::Send(value("1", "CANARY-1")),
    });
    let client = Client::at(&agent.path);
    client.get("a").unwrap();
    client.get("a").unwrap();
    assert_eq!(agent.seen().len(), 3);
}

#[test]
fn a_read_during_a_restart_is_repeated_until_it_is_answered() {
    let agent = Fake::start(|connection, number, _| match (connection, number) {
        (0, 0) | (4.., _) => Answer::Send(value("1", "CANARY-1")),
        (0, _) => Answer::Last("HTTP/1.1 200 OK\r\n".into()),
        (1, _) => Answer::Last(String::new()),
        (2, _) => {
            Answer::Last("HTTP/1.1 503 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into())
        }
        _ => Answer::Last(value("1", "CANARY-1").replace("CANARY-1", "CAN")),
    });
    let client = Client::at(&agent.path);
    client.get("a").unwrap();
    assert_eq!(client.get("a").unwrap().reveal(), b"CANARY-1");
    assert_eq!(agent.seen().len(), 6);
}

#[test]
fn an_agent_that_listens_late_is_waited_for_and_one_that_never_does_is_not_for_ever() {
    let agent = Fake::start(|_, _, _| Answer::Send(value("1", "CANARY-1")));
    let away = agent.path.with_extension("away");
    std::fs::rename(&agent.path, &away).unwrap();
    let client = Client::at(&agent.path);
    let reading = thread::spawn(move || client.get("a"));
    let hurried = Client::at(&agent.path).patience(Duration::from_millis(1));
    let error = hurried.get("a").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    std::fs::rename(&away, &agent.path).unwrap();
    assert_eq!(reading.join().unwrap().unwrap().version(), "1");
}

#[test]
fn an_agent_that_only_hangs_up_is_unreachable() {
    let agent = Fake::start(|_, _, _| Answer::Last(String::new()));
    let client = Client::at(&agent.path).patience(Duration::from_millis(50));
    let error = client.get("a").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(agent.seen().len() > 1);
}

#[test]
fn a_refusal_that_keeps_the_connection_is_final_and_health_is_told_as_it_is() {
    let health = r#"{"status":"unavailable","reasons":["stopping"],"missing":[]}"#;
    let length = health.len();
    let stopping =
        format!("HTTP/1.1 503 x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{health}");
    let agent = Fake::start(move |_, _, request| {
        if request.contains("/v1/health") {
            Answer::Last(stopping.clone())
        } else {
            Answer::Send(problem(503, "sealed"))
        }
    });
    let client = Client::at(&agent.path);
    assert!(matches!(client.get("a"), Err(Error::Sealed(_))));
    assert_eq!(client.health().unwrap().reasons, ["stopping"]);
    assert_eq!(agent.seen().len(), 2);
}

#[test]
fn an_agent_that_says_nothing_is_given_up() {
    let agent = Fake::start(|_, _, _| Answer::Hold(String::new()));
    let client = Client::at(&agent.path).timeout(Duration::from_millis(20));
    assert!(matches!(client.get("a"), Err(Error::TimedOut { .. })));
}

#[test]
fn refusals_have_their_type_and_keep_the_connection() {
    let agent = Fake::start(|_, number, _| match number {
        0 => Answer::Send(problem(403, "denied")),
        _ => Answer::Send(problem(503, "sealed")),
    });
    let client = Client::at(&agent.path);
    let denied = client.get("a").unwrap_err();
    assert!(matches!(denied, Error::Denied(_)));
    assert_eq!(denied.request_id(), Some("r-1"));
    assert!(matches!(client.whoami(), Err(Error::Sealed(_))));
    assert!(agent.seen().iter().all(|(connection, _)| *connection == 0));
}

#[test]
fn a_list_is_followed_to_its_end_and_not_for_ever() {
    let agent = Fake::start(|_, _, request| match request.contains("after=") {
        false => Answer::Send(ok(
            "",
            r#"{"secrets":[{"name":"a","version":"1"}],"next":"a"}"#,
        )),
        true if request.contains("prefix=x") => {
            Answer::Send(ok("", r#"{"secrets":[],"next":"a"}"#))
        }
        true => Answer::Send(ok(
            "",
            r#"{"secrets":[{"name":"b","version":"1"}],"next":null}"#,
        )),
    });
    let client = Client::at(&agent.path);
    let names: Vec<_> = client
        .list("")
        .unwrap()
        .into_iter()
        .map(|l| l.name.to_string())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert!(matches!(client.list("x"), Err(Error::Protocol(_))));
}

#[test]
fn a_batch_is_asked_for_in_parts_of_a_hundred() {
    let agent = Fake::start(|_, _, _| Answer::Send(ok("", r#"{"secrets":[],"errors":[]}"#)));
    let names: Vec<String> = (0..101).map(|n| format!("n{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    Client::at(&agent.path).batch(&names).unwrap();
    let seen = agent.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].1.ends_with(r#"{"names":["n100"]}"#));
}

#[test]
fn a_long_poll_gives_the_new_value_or_nothing() {
    let agent = Fake::start(|_, _, request| {
        if request.contains("If-None-Match: \"1\"") {
            Answer::Send(value("2", "CANARY-2"))
        } else {
            Answer::Send("HTTP/1.1 304 Not Modified\r\n\r\n".into())
        }
    });
    let client = Client::at(&agent.path);
    let changed = client
        .wait_for_change("a", "1", Duration::from_secs(60))
        .unwrap()
        .unwrap();
    assert_eq!(changed.reveal(), b"CANARY-2");
    assert!(
        client
            .wait_for_change("a", "2", Duration::ZERO)
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_watch_resumes_where_it_was_and_ends_when_denied() {
    let agent = Fake::start(|connection, _, _| match connection {
        0 => Answer::Last(stream(&[("1", "current", "v1"), ("2", "rotated", "v2")])),
        1 => Answer::Last(stream(&[("3", "removed", "v3")]) + "0\r\n\r\n"),
        _ => Answer::Send(problem(403, "denied")),
    });
    let mut watch = Client::at(&agent.path).watch(&["a"]).unwrap();
    let mut next = || watch.next().unwrap().unwrap();
    assert_eq!(next().kind, ChangeKind::Current);
    assert_eq!(next().version.as_deref(), Some("v2"));
    assert_eq!(next().kind, ChangeKind::Removed);
    assert!(matches!(watch.next(), Some(Err(Error::Denied(_)))));
    assert!(watch.next().is_none());
    assert!(agent.seen()[1].1.contains("Last-Event-ID: 2\r\n"));
}

#[test]
fn a_watch_that_cannot_begin_is_an_error_at_once() {
    let agent = Fake::start(|_, _, _| Answer::Send(problem(503, "sealed")));
    assert!(matches!(
        Client::at(&agent.path).watch(&["a"]),
        Err(Error::Sealed(_))
    ));
}

#[test]
fn a_watch_is_ended_from_another_thread() {
    let agent = Fake::start(|_, _, _| Answer::Hold(stream(&[])));
    let watch = Client::at(&agent.path).watch(&["a"]).unwrap();
    let stop = watch.stopper();
    let waiting = thread::spawn(move || watch.count());
    stop.stop();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn who_follows_a_secret_has_its_newest_value() {
    let agent = Fake::start(
        |connection, _, request| match request.contains("/v1/watch") {
            true => Answer::Hold(stream(&[("1", "current", "v1"), ("2", "rotated", "v2")])),
            false if connection == 0 => Answer::Last(value("v1", "CANARY-1")),
            false => Answer::Last(value("v2", "CANARY-2")),
        },
    );
    let followed = Client::at(&agent.path).follow("a").unwrap();
    while followed.secret().version() == "v1" {
        thread::yield_now();
    }
    assert_eq!(followed.secret().reveal(), b"CANARY-2");
}

#[test]
fn each_new_value_is_told_until_nobody_wants_to_know() {
    let agent = Fake::start(
        |connection, _, request| match request.contains("/v1/watch") {
            true => Answer::Hold(stream(&[("1", "current", "v1"), ("2", "rotated", "v2")])),
            false if connection == 0 => Answer::Last(value("v1", "CANARY-1")),
            false => Answer::Last(value("v2", "CANARY-2")),
        },
    );
    let (tell, told) = std::sync::mpsc::channel();
    let client = Client::at(&agent.path);
    let handle = client
        .on_rotate("a", move |secret| {
            tell.send(secret.version().to_string()).unwrap();
        })
        .unwrap();
    assert_eq!(told.recv().unwrap(), "v2");
    drop(handle);
    assert!(told.recv().is_err());
}

#[test]
fn a_cached_value_is_read_again_once_the_watch_tells_of_another_or_breaks() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let ended = std::sync::Mutex::new(ended);
    let agent = Fake::start(move |connection, _, request| {
        if !request.contains("/v1/watch") {
            return Answer::Send(value("v1", "CANARY-1"));
        }
        if connection > 2 {
            return Answer::Send(problem(403, "denied"));
        }
        let _ = ended.lock().unwrap().recv();
        Answer::Last(stream(&[("1", "current", "v1")]))
    });
    let reads = || {
        let seen = agent.seen();
        seen.iter()
            .filter(|(_, request)| request.contains("/v1/secrets/"))
            .count()
    };
    let client = Client::at(&agent.path);
    assert_eq!(client.get_cached("a").unwrap().reveal(), b"CANARY-1");
    client.get_cached("a").unwrap();
    assert_eq!(reads(), 2, "not cached while nothing watches");
    end.send(()).unwrap();
    while agent.seen().len() < 4 {
        thread::yield_now();
    }
    let before = reads();
    client.get_cached("a").unwrap();
    assert_eq!(reads(), before + 1, "not cached once the watch has ended");
    assert!(!format!("{client:?}").contains("CANARY"));
}

#[test]
fn a_value_that_a_watch_vouches_for_is_read_once() {
    let agent = Fake::start(|_, _, request| {
        if request.contains("/v1/watch") {
            Answer::Hold(stream(&[("1", "current", "v1")]))
        } else {
            Answer::Send(value("v1", "CANARY-1"))
        }
    });
    let client = Client::at(&agent.path);
    let same = |(one, other): (_, _)| std::sync::Arc::ptr_eq(&one, &other);
    let twice = || {
        (
            client.get_cached("a").unwrap(),
            client.get_cached("a").unwrap(),
        )
    };
    while !same(twice()) {
        thread::yield_now();
    }
    let before = agent.seen().len();
    assert!(same(twice()));
    assert_eq!(agent.seen().len(), before);
}

#[test]
fn a_client_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Client>();
    shared::<keyhatch::Secret>();
    shared::<keyhatch::blocking::Followed>();
}
