//! The async client against an agent in a thread. What it shares with the blocking one is tested there.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, missing_docs)]

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Answer, Fake, ok, problem, stream, value};
use keyhatch::{Client, Error};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

#[test]
fn a_connection_is_kept_and_one_that_was_closed_is_replaced_once() {
    let agent = Fake::start(|connection, number, _| match (connection, number) {
        (0, 1) => Answer::Last(value("2", "CANARY-2")),
        _ => Answer::Send(value("1", "CANARY-1")),
    });
    run(async {
        let client = Client::at(&agent.path);
        for version in ["1", "2", "1"] {
            assert_eq!(client.get("a").await.unwrap().version(), version);
        }
    });
    let connections: Vec<_> = agent
        .seen()
        .iter()
        .map(|(connection, _)| *connection)
        .collect();
    assert_eq!(connections, [0, 0, 1]);
}

#[test]
fn errors_have_their_type() {
    let agent = Fake::start(|_, _, request| {
        if request.contains("/v1/health") {
            Answer::Hold(String::new())
        } else {
            Answer::Send(problem(429, "rate_limited"))
        }
    });
    run(async {
        let client = Client::at(&agent.path).timeout(Duration::from_millis(20));
        assert!(matches!(
            client.batch(&["a"]).await,
            Err(Error::RateLimited { .. })
        ));
        assert!(matches!(client.health().await, Err(Error::TimedOut { .. })));
        let nobody = Client::at(agent.path.with_extension("none")).patience(Duration::ZERO);
        assert!(matches!(
            nobody.get("a").await,
            Err(Error::Unreachable { .. })
        ));
    });
}

#[test]
fn a_call_that_was_dropped_leaves_no_answer_for_the_next() {
    let agent = Fake::start(|connection, _, _| match connection {
        0 => Answer::Hold("HTTP/1.1 200 OK\r\n".into()),
        _ => Answer::Send(value("2", "CANARY-2")),
    });
    run(async {
        let client = Arc::new(Client::at(&agent.path));
        let asking = client.clone();
        let call = tokio::spawn(async move { asking.get("a").await.map(drop) });
        while agent.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        call.abort();
        assert!(call.await.is_err());
        assert_eq!(client.get("a").await.unwrap().version(), "2");
    });
}

#[test]
fn lists_and_long_polls_are_answered() {
    let list = ok(
        "",
        r#"{"secrets":[{"name":"b","version":"1"}],"next":null}"#,
    );
    let agent = Fake::start(move |_, _, request| {
        if request.contains("Prefer") {
            Answer::Send(value("2", "CANARY-2"))
        } else {
            Answer::Send(list.clone())
        }
    });
    run(async {
        let client = Client::at(&agent.path);
        assert_eq!(client.list("").await.unwrap()[0].name.as_str(), "b");
        let wait = Duration::from_secs(60);
        let changed = client.wait_for_change("b", "1", wait).await.unwrap();
        assert_eq!(changed.unwrap().version(), "2");
    });
}

#[test]
fn a_watch_resumes_where_it_was_and_ends_when_denied() {
    let agent = Fake::start(|connection, _, _| match connection {
        0 => Answer::Last(stream(&[("1", "current", "v1"), ("2", "rotated", "v2")])),
        1 => Answer::Last(stream(&[("3", "rotated", "v3")])),
        _ => Answer::Send(problem(403, "denied")),
    });
    run(async {
        let mut watch = Client::at(&agent.path).watch(&["a"]).await.unwrap();
        for version in ["v1", "v2", "v3"] {
            let change = watch.next().await.unwrap().unwrap();
            assert_eq!(change.version.as_deref(), Some(version));
        }
        assert!(matches!(watch.next().await, Some(Err(Error::Denied(_)))));
        assert!(watch.next().await.is_none());
    });
    assert!(agent.seen()[1].1.contains("Last-Event-ID: 2\r\n"));
}

#[test]
fn who_follows_a_secret_is_given_its_newest_value() {
    let agent = Fake::start(
        |connection, _, request| match request.contains("/v1/watch") {
            true => Answer::Hold(stream(&[("1", "current", "v1"), ("2", "rotated", "v2")])),
            false if connection == 0 => Answer::Last(value("v1", "CANARY-1")),
            false => Answer::Last(value("v2", "CANARY-2")),
        },
    );
    run(async {
        let mut followed = Client::at(&agent.path).follow("a").await.unwrap();
        assert_eq!(followed.secret().version(), "v1");
        assert_eq!(followed.changed().await.reveal(), b"CANARY-2");
    });
}

#[test]
fn a_read_during_a_restart_is_repeated_and_a_watched_value_is_read_once() {
    let agent = Fake::start(|connection, _, request| match connection {
        0 => Answer::Last(String::new()),
        _ if request.contains("/v1/watch") => Answer::Hold(stream(&[("1", "current", "v1")])),
        _ => Answer::Send(value("v1", "CANARY-1")),
    });
    run(async {
        let client = Client::at(&agent.path);
        assert_eq!(client.get("a").await.unwrap().version(), "v1");
        let mut last = client.get_cached("a").await.unwrap();
        loop {
            let secret = client.get_cached("a").await.unwrap();
            if Arc::ptr_eq(&secret, &last) {
                break;
            }
            last = secret;
            tokio::task::yield_now().await;
        }
        let before = agent.seen().len();
        client.get_cached("a").await.unwrap();
        assert_eq!(agent.seen().len(), before);
    });
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
    run(async {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let told_of = move |secret: Arc<keyhatch::Secret>| {
            let _ = tell.send(secret.version().to_string());
        };
        let handle = Client::at(&agent.path).on_rotate("a", told_of).await;
        assert_eq!(told.recv().await.as_deref(), Some("v2"));
        drop(handle);
        assert_eq!(told.recv().await, None);
    });
}
