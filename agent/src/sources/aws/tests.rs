//! What moto cannot show: an AWS that throttles, denies, takes no credentials, or lies.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_secretsmanager::config::{Credentials, SharedCredentialsProvider};
use keyhatch_protocol::Name;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

use super::session::Session;
use super::{Aws, client};
use crate::config;
use crate::sources::upstream::{Answer, Standing, Trouble, Upstream};
use crate::sys::arena::Arena;

/// What an endpoint answers to an operation and its input: a status, a body and more header lines.
type Script = fn(&str, &Value) -> (u16, String, &'static str);

/// The header lines of an answer that ends a byte too early.
const CUT: &str = "connection: close\r\n";

/// Runs `test` against an endpoint that follows `script`, and returns the operations that it was asked for.
fn against(script: Script, test: impl AsyncFnOnce(&Aws)) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script, tell.clone()));
            }
        });
        test(&aws(url).await).await;
        std::iter::from_fn(|| told.try_recv().ok()).collect()
    })
}

async fn aws(url: String) -> Aws {
    let config = config::Aws {
        region: Some("eu-west-1".into()),
        endpoint_url: Some(url),
        profile: None,
        ca_file: None,
    };
    let arena = Arena::new(1 << 20).unwrap();
    let mut aws = Aws::new(&config, Duration::from_secs(20), &arena).unwrap();
    let http = client::https(None).unwrap();
    let shared = client::shared(&aws.settings, http.clone()).await;
    let keys = Credentials::new("AKIACANARY", "CANARY-key", None, None, "test");
    let shared = shared
        .into_builder()
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .build();
    let client = client::client(&aws.settings, &shared, http).unwrap();
    let session = OnceCell::new_with(Some(Arc::new(Session::new(client))));
    *aws.session.get_mut().unwrap() = Arc::new(session);
    aws
}

async fn serve(
    stream: TcpStream,
    script: Script,
    tell: tokio::sync::mpsc::UnboundedSender<String>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut operation, mut len, mut line) = (String::new(), 0, String::new());
        while stream.read_line(&mut line).await.ok()? > 2 {
            let (key, value) = line.trim().split_once(':').unwrap_or_default();
            match key.to_ascii_lowercase().as_str() {
                "x-amz-target" => operation = value.rsplit('.').next()?.to_owned(),
                "content-length" => len = value.trim().parse().ok()?,
                _ => {}
            }
            line.clear();
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.ok()?;
        let (status, body, headers) = script(&operation, &serde_json::from_slice(&body).ok()?);
        tell.send(operation).ok()?;
        let whole = body.len() + usize::from(headers == CUT);
        let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: {whole}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(body.as_bytes()).await.ok()?;
        if headers == CUT {
            return None;
        }
    }
}

fn refused(code: &str) -> (u16, String, &'static str) {
    let text = json!({"__type": code, "message": "CANARY-message"});
    (400, text.to_string(), "")
}

fn current(id: &Value) -> Value {
    json!({
        "ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:x-abcdef", "Name": id, "CreatedDate": 1.7e9,
        "VersionId": "11111111-2222-3333-4444-555555555555", "SecretString": format!("CANARY-of-{id}"),
        "VersionStages": ["AWSCURRENT"],
    })
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|name| Name::parse(name).unwrap()).collect()
}

/// An answer in a word, or why there is none.
fn word(answer: &Result<Answer, Trouble>) -> String {
    match answer {
        Ok(Answer::Found(fetched)) => String::from_utf8(fetched.value.to_vec()).unwrap(),
        Ok(Answer::Absent(why)) => format!("absent: {why}"),
        Err(Trouble::Outage { why, retry_after }) => format!("outage {retry_after:?}: {why}"),
        Err(Trouble::Unusable { why }) => format!("unusable: {why}"),
    }
}

async fn words(aws: &Aws, list: &[&str]) -> Vec<String> {
    aws.fetch(&names(list)).await.iter().map(word).collect()
}

/// Whether the credentials were kept.
fn is_logged_in(aws: &Aws) -> bool {
    aws.session.lock().unwrap().initialized()
}

#[test]
fn throttling_is_an_outage_with_its_retry_after_and_is_not_tried_again_at_once() {
    let script: Script = |_, _| {
        let (_, body, _) = refused("ThrottlingException");
        (400, body, "retry-after: 7\r\n")
    };
    let asked = against(script, async |aws| {
        let all = words(aws, &["a", "b"]).await;
        assert_eq!(all[0], all[1]);
        assert!(
            all[0].starts_with("outage Some(7s): BatchGetSecretValue: AWS throttles"),
            "{all:?}"
        );
        assert!(!all[0].contains("CANARY"));
        let listed = aws.list("").await;
        assert!(matches!(
            listed,
            Err(Trouble::Outage {
                retry_after: Some(_),
                ..
            })
        ));
        let standing = aws.standings(&names(&["a"])).await;
        assert!(matches!(standing[0], Err(Trouble::Outage { .. })));
        assert!(is_logged_in(aws));
    });
    assert_eq!(
        asked,
        ["BatchGetSecretValue", "ListSecrets", "DescribeSecret"]
    );
}

#[test]
fn credentials_that_expired_are_an_outage_and_looked_for_anew() {
    for code in [
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
    ] {
        let script: Script = match code {
            "ExpiredTokenException" => |_, _| refused("ExpiredTokenException"),
            "UnrecognizedClientException" => |_, _| refused("UnrecognizedClientException"),
            _ => |_, _| refused("InvalidSignatureException"),
        };
        against(script, async |aws| {
            let one = words(aws, &["a"]).await;
            assert!(
                one[0].starts_with("outage None: GetSecretValue:") && one[0].contains(code),
                "{one:?}"
            );
            assert!(!one[0].contains("CANARY"));
            assert!(!is_logged_in(aws), "{code}");
        });
    }
}

#[test]
fn without_the_right_to_batch_each_is_asked_for_and_the_batch_not_again() {
    let script: Script = |operation, input| match operation {
        "BatchGetSecretValue" => refused("AccessDeniedException"),
        _ => (200, current(&input["SecretId"]).to_string(), ""),
    };
    let asked = against(script, async |aws| {
        for _ in 0..2 {
            let all = words(aws, &["a", "b"]).await;
            assert_eq!(all, ["CANARY-of-\"a\"", "CANARY-of-\"b\""]);
        }
    });
    let batches = asked
        .iter()
        .filter(|operation| *operation == "BatchGetSecretValue");
    assert_eq!((batches.count(), asked.len()), (1, 5));
}

#[test]
fn each_of_a_batch_has_its_own_answer() {
    let script: Script = |operation, input| match operation {
        "BatchGetSecretValue" => {
            let error = |id: &str, code: &str| json!({"SecretId": id, "ErrorCode": code, "Message": "CANARY-message"});
            let errors = [
                error("locked", "DecryptionFailure"),
                error("denied", "AccessDeniedException"),
                error("slow", "InternalServiceError"),
                error("slashed", "ResourceNotFoundException"),
            ];
            let found = [current(&json!("a"))];
            (
                200,
                json!({"SecretValues": found, "Errors": errors}).to_string(),
                "",
            )
        }
        "GetSecretValue" if input["SecretId"] == "denied" => refused("AccessDeniedException"),
        "GetSecretValue"
            if ["/slashed", "left-out"].contains(&input["SecretId"].as_str().unwrap()) =>
        {
            (200, current(&input["SecretId"]).to_string(), "")
        }
        _ => refused("ResourceNotFoundException"),
    };
    against(script, async |aws| {
        let all = words(
            aws,
            &["a", "locked", "denied", "slow", "slashed", "left-out"],
        )
        .await;
        assert_eq!(all[0], "CANARY-of-\"a\"");
        assert!(
            all[1].starts_with("unusable") && all[1].contains("KMS"),
            "{all:?}"
        );
        assert!(all[2].starts_with("absent: access denied"), "{all:?}");
        assert!(all[3].starts_with("outage"), "{all:?}");
        assert_eq!(all[4], "CANARY-of-\"/slashed\"");
        assert_eq!(all[5], "CANARY-of-\"left-out\"");
        assert!(!all[1..4].concat().contains("CANARY"));
    });
}

#[test]
fn a_previous_value_is_of_the_secret_that_has_the_name() {
    // `/db` has a previous value, `db` has none; both are there.
    let script: Script =
        |_, input| match (input["SecretId"].as_str(), input["VersionStage"].as_str()) {
            (Some("db"), Some("AWSPREVIOUS")) => refused("ResourceNotFoundException"),
            _ => (200, current(&input["SecretId"]).to_string(), ""),
        };
    against(script, async |aws| {
        let previous = word(&aws.previous(&names(&["db"])[0]).await);
        assert_eq!(previous, "absent: it has no previous value");
    });
}

#[test]
fn who_may_not_describe_can_still_be_allowed_to_read() {
    let script: Script = |_, _| refused("AccessDeniedException");
    against(script, async |aws| {
        assert_eq!(aws.standings(&names(&["a"])).await, [Ok(Standing::Unknown)]);
        assert!(words(aws, &["a"]).await[0].starts_with("absent: access denied"));
        let listed = aws.list("").await;
        assert!(matches!(listed, Err(Trouble::Unusable { why }) if why.contains("ListSecrets")));
        assert!(is_logged_in(aws));
    });
}

#[test]
fn answers_that_are_none_are_told_apart_and_not_quoted() {
    let script: Script = |_, input| match input["SecretId"].as_str().unwrap() {
        "large" => (
            200,
            format!("{{\"SecretString\":\"{}\"}}", "CANARY".repeat(2 << 20)),
            "",
        ),
        "text" => (200, "CANARY, but not JSON".into(), ""),
        "types" => (
            200,
            json!({"Name": "a", "SecretString": {"CANARY": 1}}).to_string(),
            "",
        ),
        "deep" => (200, format!("{{\"x\":{}", "[".repeat(100_000)), ""),
        "page" => (403, "<html>CANARY</html>".into(), ""),
        _ => (307, String::new(), "location: http://127.0.0.1:1/\r\n"),
    };
    let asked = against(script, async |aws| {
        for (id, expected) in [
            (
                "large",
                "unusable: GetSecretValue: the answer has more than 8388608 bytes",
            ),
            (
                "text",
                "unusable: GetSecretValue: the answer is not one of Secrets Manager",
            ),
            (
                "types",
                "unusable: GetSecretValue: the answer is not one of Secrets Manager",
            ),
            (
                "deep",
                "unusable: GetSecretValue: the answer nests deeper than 32 values",
            ),
            (
                "page",
                "outage None: GetSecretValue: HTTP 403 from something that is not Secrets Manager; look at `endpoint_url`",
            ),
            (
                "moved",
                "outage None: GetSecretValue: HTTP 307 from something that is not Secrets Manager; look at `endpoint_url`",
            ),
        ] {
            assert_eq!(words(aws, &[id]).await, [expected], "{id}");
        }
    });
    assert_eq!(asked.len(), 6);
}

#[test]
fn an_answer_cut_short_and_no_endpoint_at_all_are_outages() {
    let cut: Script = |_, _| (200, "{\"SecretString\":\"CANARY".into(), CUT);
    against(cut, async |here| {
        let one = words(here, &["a"]).await;
        let broke = "outage None: GetSecretValue: the connection broke within the answer";
        assert_eq!(one, [broke]);
        let nowhere = aws("http://127.0.0.1:1".into()).await;
        let one = words(&nowhere, &["a"]).await;
        assert!(
            one[0].starts_with("outage None: GetSecretValue: Connection refused"),
            "{one:?}"
        );
    });
}

#[test]
fn a_seal_forgets_the_credentials() {
    let script: Script = |_, input| (200, current(&input["SecretId"]).to_string(), "");
    against(script, async |aws| {
        words(aws, &["a"]).await;
        assert!(is_logged_in(aws));
        aws.forget();
        assert!(!is_logged_in(aws));
    });
}
