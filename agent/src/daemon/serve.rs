//! The main loop: the servers run, signals and reloads are taken, until the daemon is told to stop.

use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::net::TcpListener;
use tokio::sync::mpsc as channel;
use tokio::time::sleep;

use super::Daemon;
use super::error::StartError;
use super::handed::HandedSockets;
use super::pulse::{self, Pulse};
use super::sockets::{Bound, listen, listen_on};
use crate::api::admin::{AdminServer, Reload};
use crate::api::{Context, SealMark, Server, metrics_server};
use crate::config::Metrics;
use crate::sys;

/// After this time what is still done for the start is done.
const STARTED: Duration = Duration::from_millis(500);

impl Daemon {
    pub(super) async fn serve(
        mut self,
        handed: HandedSockets,
        ready: impl FnOnce(),
    ) -> Result<(), StartError> {
        let rotation = self.rotation.take();
        let agent = &self.config.agent;
        let mut bound = Bound::new();
        let server = Server::new(Arc::clone(&self.context))?;
        let bots = listen(handed.bots, &agent.socket, &mut bound)?;
        let ops = listen(handed.admin, &agent.admin_socket, &mut bound)?;
        let (reload, mut reloads) = channel::channel::<Reload>(4);
        let admin = Arc::new(self.admin(&server, reload));
        let (rings, mut pulse) = self.pulse()?;
        let mut bots = tokio::spawn(Arc::clone(&server).accept(bots, rings, move || pulse.beat()));
        Server::sweep(&server)
            .map_err(|error| StartError::Other("no thread for the sweep", error.to_string()))?;
        self.credentials.refuse(handed.unanswered);
        self.credentials
            .open(handed.credentials, &self.config.policy)?;
        let ops = tokio::spawn(Arc::clone(&admin).accept(ops));
        rotation.map(|rotation| tokio::spawn(rotation.run()));
        serve_metrics(
            &self.context,
            handed.metrics,
            agent.metrics.as_ref(),
            &mut bound,
        )
        .await?;
        let context = Arc::clone(&self.context);
        tokio::spawn(async move { context.detect.notify(context.runner.clone()).await });
        let mut signals = signals()?;
        self.manager.tell("READY=1");
        ready();
        tokio::spawn(async {
            sleep(STARTED).await;
            sys::image::forget_start();
        });
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
                // A daemon that accepts nobody is of no use: what supervises it starts another.
                Err(ended) = &mut bots => {
                    return Err(StartError::Other("the bots' socket is no longer served", ended.to_string()));
                }
            }
        }
        self.manager.tell("STOPPING=1\nSTATUS=Finishing requests");
        // Who connects from here on is the next daemon's.
        bots.abort();
        ops.abort();
        drop(reloads);
        let drained = async {
            let _ = (bots.await, ops.await);
            tokio::join!(server.drain(), admin.drain(), self.credentials.drain());
        };
        tokio::select! {
            never = &mut exits => match never {},
            () = drained => {}
        }
        self.context.rotations.stop().await;
        self.context.upstreams.stop().await;
        self.stop(&bound);
        Ok(())
    }

    fn admin(&self, server: &Arc<Server>, reload: channel::Sender<Reload>) -> AdminServer {
        let agent = &self.config.agent;
        AdminServer {
            context: Arc::clone(&self.context),
            server: Arc::clone(server),
            keeper: Mutex::new(self.keeper.clone()),
            reload,
            admins: ArcSwap::new(Arc::new(agent.admins.clone())),
            about: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "started": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                "config": self.path,
                "socket": agent.socket,
            }),
            mark: SealMark::new(&agent.state_dir),
            sealing: tokio::sync::Mutex::default(),
            busy: AtomicU32::new(0),
        }
    }

    fn pulse(&self) -> Result<(channel::Receiver<()>, Pulse), StartError> {
        let rings = pulse::ring(&self.manager)
            .map_err(|error| StartError::Other("no thread for the pulse", error.to_string()))?;
        let pulse = Pulse {
            manager: Arc::clone(&self.manager),
            context: Arc::clone(&self.context),
            keeper: self.keeper.clone(),
            told: String::new(),
        };
        Ok((rings, pulse))
    }
}

async fn serve_metrics(
    context: &Arc<Context>,
    handed: Option<UnixListener>,
    at: Option<&Metrics>,
    bound: &mut Bound,
) -> Result<(), StartError> {
    match (handed, at) {
        (None, None) => {}
        (handed, Some(Metrics::Unix(path))) => {
            metrics_server::on_socket(Arc::clone(context), listen(handed, path, bound)?);
        }
        (handed, at) => {
            if let Some(handed) = handed {
                let listener = listen_on(handed)
                    .map_err(|error| StartError::Other("the metrics socket", error.to_string()))?;
                metrics_server::on_socket(Arc::clone(context), listener);
            }
            if let Some(Metrics::Tcp(address)) = at {
                let listener = TcpListener::bind(address).await.map_err(|why| {
                    StartError::Other("the metrics address", format!("{address}: {why}"))
                })?;
                metrics_server::on_address(Arc::clone(context), listener);
            }
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
