//! The main loop: the servers run, signals and reloads are taken, until the daemon is told to stop.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::net::TcpListener;
use tokio::sync::mpsc as channel;

use super::Daemon;
use super::error::StartError;
use super::sockets::listen;
use crate::api::admin::{AdminServer, Reload};
use crate::api::{Context, Server, metrics_server};
use crate::config::Metrics;

impl Daemon {
    pub(super) async fn serve(mut self, ready: impl FnOnce()) -> Result<(), StartError> {
        let server = Server::new(Arc::clone(&self.context))?;
        let bots = listen(&self.config.agent.socket)?;
        let ops = listen(&self.config.agent.admin_socket)?;
        let (reload, mut reloads) = channel::channel::<Reload>(4);
        let admin = Arc::new(AdminServer {
            context: Arc::clone(&self.context),
            server: Arc::clone(&server),
            keeper: std::sync::Mutex::new(self.keeper.clone()),
            reload,
            admins: ArcSwap::new(Arc::new(self.config.agent.admins.clone())),
            about: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "started": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                "config": self.path,
                "socket": self.config.agent.socket,
            }),
        });
        tokio::spawn(Arc::clone(&server).accept(bots));
        Server::sweep(&server)
            .map_err(|error| StartError::Other("no thread for the sweep", error.to_string()))?;
        tokio::spawn(Arc::clone(&admin).accept(ops));
        if let Some(rotation) = self.rotation.take() {
            tokio::spawn(rotation.run());
        }
        if let Some(at) = &self.config.agent.metrics {
            serve_metrics(&self.context, at).await?;
        }
        let mut signals = signals()?;
        ready();
        let mut exits = std::pin::pin!(Arc::clone(&server).watch_exits());
        loop {
            tokio::select! {
                never = &mut exits => match never {},
                signal = signals.recv() => match signal {
                    Some(SIGHUP) => drop(self.reload(&admin)),
                    _ => break,
                },
                Some(reply) = reloads.recv() => {
                    // The operator may have gone.
                    let _ = reply.send(self.reload(&admin));
                }
            }
        }
        tokio::select! {
            never = &mut exits => match never {},
            () = server.drain() => {}
        }
        self.context.rotations.stop().await;
        self.context.upstreams.stop().await;
        self.stop();
        Ok(())
    }
}

async fn serve_metrics(context: &Arc<Context>, at: &Metrics) -> Result<(), StartError> {
    match at {
        Metrics::Unix(path) => metrics_server::on_socket(Arc::clone(context), listen(path)?),
        Metrics::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(|why| {
                StartError::Other("the metrics address", format!("{address}: {why}"))
            })?;
            metrics_server::on_address(Arc::clone(context), listener);
        }
    }
    Ok(())
}

/// Signals that end or reload the daemon, handed to the main loop.
fn signals() -> Result<channel::Receiver<i32>, StartError> {
    let (tell, told) = channel::channel(8);
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])
        .map_err(|error| StartError::Other("signals", error.to_string()))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if tell.blocking_send(signal).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| StartError::Other("no thread for signals", error.to_string()))?;
    Ok(told)
}
