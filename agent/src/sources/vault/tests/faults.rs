//! Answers that cannot be used, and none at all.

use std::fmt::Write;
use std::time::Duration;

use super::liar::{Act, Liar, data, json, versioned};
use super::{absent, config, fetch, found, simple, trouble, vault_within};
use crate::sources::upstream::{Trouble, Upstream};

async fn unusable(act: impl Fn() -> Act + Send + Sync + 'static) -> String {
    let liar = Liar::new(move |asked| (asked.what == "GET secret/data/bad").then(&act)).await;
    let (vault, arena) = simple(&liar.address);
    let Trouble::Unusable { why } = trouble(&vault, "bad").await else {
        panic!("an outage");
    };
    // Others are not affected, and nothing is left behind.
    let used = arena.used();
    drop(found(&vault, "good").await);
    assert_eq!(arena.used(), used);
    why
}

async fn outage(act: impl Fn() -> Act + Send + Sync + 'static) -> (String, Option<Duration>) {
    let liar = Liar::new(move |asked| (asked.what == "GET secret/data/bad").then(&act)).await;
    let (vault, _) = simple(&liar.address);
    let Trouble::Outage { why, retry_after } = trouble(&vault, "bad").await else {
        panic!("not an outage");
    };
    found(&vault, "good").await;
    (why, retry_after)
}

#[tokio::test]
async fn what_is_not_the_json_of_a_value_is_unusable() {
    let deep = format!("{}\"CANARY\"{}", "{\"a\":".repeat(200), "}".repeat(200));
    let bodies = [
        "CANARY".to_owned(),
        "{\"data\":".to_owned(),
        "[]".to_owned(),
        data("\"CANARY\""),
        data("[\"CANARY\"]"),
        data(r#"{"data":{"a":"CANARY"}}"#),
        data(
            r#"{"data":{"a":"CANARY"},"metadata":{"version":"1","created_time":"2026-01-02T03:04:05Z"}}"#,
        ),
        data(r#"{"data":{"a":"CANARY"},"metadata":{"version":1,"created_time":"CANARY"}}"#),
        data(
            r#"{"data":["CANARY"],"metadata":{"version":1,"created_time":"2026-01-02T03:04:05Z"}}"#,
        ),
        data(&format!(
            r#"{{"data":{deep},"metadata":{{"version":1,"created_time":"2026-01-02T03:04:05Z"}}}}"#
        )),
        deep,
    ];
    for body in bodies {
        let why = unusable(move || Act::Json(200, body.clone())).await;
        assert!(why.contains("not a JSON object"), "{why}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_unusable_and_named() {
    let value = format!(r#"{{"a":"{}"}}"#, "x".repeat(65_536));
    let why = unusable(move || versioned(&value)).await;
    assert!(
        why.contains("65544 bytes") && why.contains("65536"),
        "{why}"
    );
    let announced =
        || Act::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\nCANARY".to_vec());
    assert!(
        unusable(announced)
            .await
            .contains("larger than 1048576 bytes")
    );
    let chunked = || {
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(160);
        Act::Bytes(
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
                .into_bytes(),
        )
    };
    assert!(
        unusable(chunked)
            .await
            .contains("larger than 1048576 bytes")
    );
}

#[tokio::test]
async fn a_chunked_value_is_read_whole() {
    let liar = Liar::new(|asked| {
        let Act::Json(_, body) = versioned(&format!(r#"{{"a":"{}"}}"#, "x".repeat(60_000))) else {
            return None;
        };
        let mut chunks = String::new();
        for chunk in body.as_bytes().chunks(7_000) {
            let text = std::str::from_utf8(chunk).unwrap();
            write!(chunks, "{:x}\r\n{text}\r\n", chunk.len()).unwrap();
        }
        let answer =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
        asked
            .what
            .ends_with("large")
            .then(|| Act::Bytes(answer.into_bytes()))
    })
    .await;
    let (vault, arena) = simple(&liar.address);
    let fetched = found(&vault, "large").await;
    assert_eq!(fetched.value.len(), 60_008);
    drop(fetched);
    vault.forget();
    liar.all_closed().await;
    assert_eq!(arena.used(), 0);
}

#[tokio::test]
async fn a_connection_that_ends_early_is_an_outage() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"data\":{\"data\":{\"a\":\"CANARY";
    assert!(
        outage(|| Act::Bytes(cut.to_vec()))
            .await
            .0
            .contains("cut short")
    );
    assert!(
        outage(|| Act::Bytes(Vec::new()))
            .await
            .0
            .contains("ended before an answer")
    );
    let noise = || Act::Bytes(b"CANARY is not HTTP\r\n\r\n".to_vec());
    assert!(outage(noise).await.0.contains("not HTTP"));
}

#[tokio::test]
async fn a_server_in_trouble_is_an_outage_and_says_when_to_come_again() {
    let (why, pause) = outage(|| Act::Bytes(json(500, "", "CANARY"))).await;
    assert!(why.contains("answered 500"), "{why}");
    assert_eq!(pause, None);
    let (why, pause) = outage(|| Act::Bytes(json(503, "retry-after: 7\r\n", "CANARY"))).await;
    assert!(why.contains("sealed"), "{why}");
    assert_eq!(pause, Some(Duration::from_secs(7)));
    let (why, pause) = outage(|| Act::Bytes(json(429, "retry-after: 99999\r\n", "CANARY"))).await;
    assert!(why.contains("too many requests"), "{why}");
    assert_eq!(pause, Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_redirect_elsewhere_is_not_followed() {
    let other = Liar::new(|_| None).await;
    let to = format!("location: {}/v1/secret/data/bad\r\n", other.address);
    let (why, _) = outage(move || Act::Bytes(json(307, &to, ""))).await;
    assert!(why.contains("not one of the configured addresses"), "{why}");
    assert_eq!(other.count(""), 0);
    let (why, _) = outage(|| Act::Bytes(json(301, "location: /v1/x\r\n", ""))).await;
    assert!(why.contains("answered 301"), "{why}");
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_an_outage() {
    for bytes in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"data\":\"CANARY",
    ] {
        let liar = Liar::new(move |asked| {
            let bad = asked.what.ends_with("secret/data/bad");
            bad.then_some(Act::Silence(bytes))
        })
        .await;
        let config = config(std::slice::from_ref(&liar.address), &[("secret", "")], &[]);
        let (vault, _) = vault_within(&config, Duration::from_millis(300));
        let trouble = trouble(&vault, "bad").await;
        assert!(matches!(trouble, Trouble::Outage { .. }), "{trouble}");
        assert!(
            trouble.to_string().contains("no answer within"),
            "{trouble}"
        );
        liar.all_closed().await;
    }
}

#[tokio::test]
async fn nobody_there_is_an_outage_that_names_each_address() {
    let gone = ["http://127.0.0.1:1".to_owned(), "http://[::1]:1".to_owned()];
    let (vault, _) = super::vault(&config(&gone, &[("secret", "")], &[]));
    let why = trouble(&vault, "x").await.to_string();
    assert!(
        why.starts_with("login: http://127.0.0.1:1: cannot connect"),
        "{why}"
    );
    assert!(why.contains("; http://[::1]:1: cannot connect"), "{why}");
}

#[tokio::test]
async fn a_definite_no_is_absent() {
    let liar = Liar::new(|asked| {
        let gone = data(&format!(
            r#"{{"data":null,"metadata":{{"created_time":"{0}","deletion_time":"{0}","destroyed":false,"version":1}}}}"#,
            super::liar::MADE
        ));
        match asked.what.as_str() {
            "GET secret/data/never" => Some(Act::Json(404, r#"{"errors":[]}"#.into())),
            "GET secret/data/deleted" => Some(Act::Json(404, gone)),
            "GET secret/data/old/deleted" => Some(Act::Json(200, gone)),
            "GET secret/data/forbidden" => Some(Act::Json(403, r#"{"errors":["permission denied"]}"#.into())),
            _ => None,
        }
    })
    .await;
    let (vault, _) = simple(&liar.address);
    assert!(absent(&vault, "never").await.contains("not there"));
    assert!(absent(&vault, "deleted").await.contains("deleted"));
    assert!(absent(&vault, "old/deleted").await.contains("deleted"));
    assert_eq!(absent(&vault, "forbidden").await, "permission denied");
    // The token counts and is fresh: no second login for a no of the policy.
    assert_eq!(liar.count("POST auth/cert/login"), 1);
}

#[tokio::test]
async fn a_waiting_connection_is_used_again_and_closed_soon() {
    let liar = Liar::new(|_| None).await;
    let (vault, _) = simple(&liar.address);
    for _ in 0..3 {
        assert!(fetch(&vault, "app/db").await.is_ok());
    }
    // By the client: the server would wait for ever.
    liar.all_closed().await;
    found(&vault, "app/db").await;
}
