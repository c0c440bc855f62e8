//! Accepting connections: whose they are is known before anything is read from them.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::geteuid;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::forward::{Front, Way};
use super::owner;
use super::strict::Strict;

/// So many at once; others wait to be accepted.
pub const MAX_CONNECTIONS: usize = 256;

/// How long a head may take, and a kept connection be idle.
pub const HEAD: Duration = Duration::from_secs(30);

pub const MAX_BUFFER: usize = 64 * 1024;

/// Accepts our own user's connections until the process ends, and has each conversed with.
pub async fn serve<C, F>(listener: TcpListener, own: SocketAddr, converse: C)
where
    C: Fn(TcpStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(cause) => {
            eprintln!("keyhatch: bridge: {cause}");
            std::process::exit(1);
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, most likely: some will come back.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Nothing at all is said to anybody else.
        if owner::uid_of(peer, own).ok() != Some(geteuid().as_raw()) {
            continue;
        }
        let conversation = converse(stream);
        tokio::spawn(async move {
            conversation.await;
            drop(place);
        });
    }
}

/// One connection, with one of its own to the agent.
pub async fn converse(stream: TcpStream, front: Arc<Front>) {
    // An answer goes out as it comes.
    let _ = stream.set_nodelay(true);
    let way = Arc::new(Way::default());
    let asked = way.clone();
    let service = service_fn(move |request| {
        let (front, way) = (front.clone(), asked.clone());
        async move { Ok::<_, Infallible>(front.answer(&way, request).await) }
    });
    // How it ends, nobody needs to know: the client has gone, or sent what is refused.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(Strict::new(stream)), service)
        .with_upgrades()
        .await;
    way.go_on().await;
}
