//! A real server at the other end, and frames as they are written.
#![allow(clippy::unwrap_used)]

use super::super::insert::tests::insertion;
use super::*;
use crate::sys::arena::Arena;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::handshake;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use std::sync::Mutex;
use tokio::io::DuplexStream;

/// A real server of the other end's, which answers with the credential and the body that it was sent.
fn echo(stream: DuplexStream) {
    let answer = |request: Request<Incoming>| async move {
        let credential = request.headers().get(AUTHORIZATION).cloned();
        let body = request.into_body().collect().await?.to_bytes();
        let credential = credential.unwrap_or(HeaderValue::from_static("none"));
        let told = [credential.as_bytes(), b"|", &body].concat();
        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(told))))
    };
    let server = Builder::new(TokioExecutor::new())
        .max_header_list_size(1 << 20)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    tokio::spawn(server);
}

/// Takes so many bytes at a time, and writes down what passes.
struct Narrow {
    stream: DuplexStream,
    most: usize,
    gone: Arc<Mutex<Vec<u8>>>,
}

impl Narrow {
    fn new(stream: DuplexStream, most: usize) -> Self {
        Self {
            stream,
            most,
            gone: Arc::default(),
        }
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = bytes.len().min(self.most);
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..most]))?;
        self.gone.lock().unwrap().extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Narrow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// What a server is told of so many requests at once. Those with the same value share its token.
async fn told(most: usize, values: &[String], body: &'static str) -> Vec<String> {
    let arena = Arena::new(1 << 20).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    echo(far);
    let insertions = Insertions::default();
    let stream = InsertingH2::new(Narrow::new(near, most), insertions.clone());
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let number = values.iter().position(|v| v == value).unwrap_or(number);
        let token = format!("0123456789abcdef{number:03}");
        let these = [insertion(&arena, &token, value)];
        let mut field = HeaderValue::from_str(&token).unwrap();
        field.set_sensitive(true);
        let request = Request::post("https://upstream.test/")
            .header(AUTHORIZATION, field)
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .unwrap();
        let (insertions, mut sender) = (insertions.clone(), sender.clone());
        answers.push(tokio::spawn(async move {
            let added = insertions.add(&these);
            let answer = sender.send_request(request).await.unwrap();
            drop(added);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        }));
    }
    let mut all = Vec::new();
    for answer in answers {
        all.push(answer.await.unwrap());
    }
    all
}

#[tokio::test]
async fn a_real_server_reads_the_value_in_the_tokens_place() {
    for len in [0, 1, 30, 126, 127, 128, 254, 255, 16_000, 16_384, 40_000] {
        let value = "CANARY-".repeat(len / 7 + 1)[..len].to_owned();
        let told = told(1 << 16, std::slice::from_ref(&value), "a body").await;
        assert_eq!(told, [format!("{value}|a body")], "{len}");
    }
}

#[tokio::test]
async fn requests_at_once_get_each_its_own() {
    let values: Vec<String> = (0..20)
        .map(|n| format!("Bearer CANARY-{}", n / 3))
        .collect();
    for most in [1, 7, 100, 1 << 16] {
        let told = told(most, &values, "b").await;
        let expected: Vec<String> = values.iter().map(|value| format!("{value}|b")).collect();
        assert_eq!(told, expected);
    }
}

/// The head of a request that was given up while it waited for its turn leaves all the same.
#[tokio::test]
async fn the_value_of_a_request_that_was_given_up_stands_in_its_head() {
    let arena = Arena::new(1 << 20).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let go = Arc::new(tokio::sync::Notify::new());
    let near = Narrow::new(near, 1 << 16);
    let gone = Arc::clone(&near.gone);
    let held = Arc::clone(&go);
    let answer = move |request: Request<Incoming>| {
        let held = Arc::clone(&held);
        async move {
            if request.uri().path() == "/held" {
                held.notified().await;
            }
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
        }
    };
    let mut server = Builder::new(TokioExecutor::new());
    server.max_concurrent_streams(1);
    tokio::spawn(server.serve_connection(TokioIo::new(far), service_fn(answer)));
    let insertions = Insertions::default();
    let stream = InsertingH2::new(near, insertions.clone());
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let ask = |path: &'static str, number: usize| {
        let token = format!("0123456789abcdef{number:03}");
        let these = [insertion(&arena, &token, &format!("CANARY-{number}"))];
        let mut field = HeaderValue::from_str(&token).unwrap();
        field.set_sensitive(true);
        let request = Request::get(format!("https://upstream.test{path}"))
            .header(AUTHORIZATION, field)
            .body(Full::new(Bytes::new()))
            .unwrap();
        let (insertions, mut sender) = (insertions.clone(), sender.clone());
        tokio::spawn(async move {
            let _added = insertions.add(&these);
            sender.send_request(request).await.unwrap();
        })
    };
    // The limit is known from here on.
    ask("/first", 1).await.unwrap();
    let first = ask("/held", 2);
    let given_up = ask("/", 3);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    given_up.abort();
    given_up.await.unwrap_err();
    go.notify_one();
    first.await.unwrap();
    ask("/", 4).await.unwrap();
    let gone = String::from_utf8_lossy(&gone.lock().unwrap()).into_owned();
    for number in 1..=4 {
        assert_eq!(gone.matches(&format!("CANARY-{number}")).count(), 1);
    }
    assert_eq!(arena.used(), 0);
}

proptest! {
    #[test]
    fn frames_hold_all_of_the_fields_and_no_more_than_they_may(
        lens in prop::collection::vec(0_usize..40_000, 1..5),
    ) {
        let fields = lens.iter().enumerate().map(|(number, len)| {
            let bytes = vec![u8::try_from(number).unwrap(); *len];
            (Source::Plain(bytes.into()), 0..*len)
        });
        let mut out = Out::default();
        framed(fields.collect(), 1, [0, 0, 0, 5], &mut out);
        let written: Vec<u8> = out.slices(&[]).iter().flat_map(|slice| slice.to_vec()).collect();
        let (mut rest, mut fields, mut kinds) = (&written[..], Vec::new(), Vec::new());
        while let [a, b, c, kind, flags, 0, 0, 0, 5, more @ ..] = rest {
            let len = (usize::from(*a) << 16) | (usize::from(*b) << 8) | usize::from(*c);
            prop_assert!(len <= LARGEST);
            fields.extend_from_slice(&more[..len]);
            kinds.push((*kind, *flags));
            rest = &more[len..];
        }
        prop_assert!(rest.is_empty());
        let all: Vec<u8> = lens.iter().enumerate()
            .flat_map(|(number, len)| vec![u8::try_from(number).unwrap(); *len]).collect();
        prop_assert_eq!(fields, all);
        prop_assert_eq!(kinds[0].0, HEADERS);
        prop_assert_eq!(kinds[0].1 & 1, 1);
        prop_assert!(kinds[1..].iter().all(|(kind, _)| *kind == CONTINUATION));
        let mut ends = kinds.iter().map(|(_, flags)| flags & END_HEADERS != 0);
        prop_assert_eq!(ends.clone().filter(|end| *end).count(), 1);
        prop_assert!(ends.next_back().unwrap());
    }
}
