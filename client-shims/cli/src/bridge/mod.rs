//! `keyhatch bridge`: a loopback URL for programs that only know URLs.
//!
//! What comes with the token from a process of our own user goes to the agent's socket, as ours. The blocking verbs
//! know nothing of this room: the async runtime starts here alone, on a thread of its own.

mod announce;
pub mod environment;
pub mod forward;
mod owner;
pub mod serve;
pub mod strict;
mod switch;
pub mod token;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use keyhatch::blocking::Client;
use zeroize::Zeroizing;

use crate::child::{Command, Event, Keeper, ends};
use crate::failure::Failure;
use crate::options::Bridge;
use forward::Front;
use token::Token;

/// Where AWS's Secrets Manager Agent listens.
const AWS_AGENT_PORT: u16 = 2773;

/// A bridge beside a command of `keyhatch run`.
pub struct Beside {
    pub url: Zeroizing<String>,
    pub address: SocketAddr,
}

/// Starts one, which lives as long as this process.
pub fn beside(client: &Client) -> Result<Beside, Failure> {
    let (listener, address) = listen_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let token = Token::fresh()?;
    let url = token.url(address);
    let front = Front::new(client.address().clone(), token, false);
    begin(listener, address, front)?;
    Ok(Beside { url, address })
}

pub fn bridge(client: &Client, args: &Bridge) -> Result<u8, Failure> {
    let (listener, address) = listen(args)?;
    let token = if args.aws_agent {
        Token::of_aws_agent()?
    } else {
        Token::fresh()?
    };
    let url = token.url(address);
    // A bridge to nowhere is no use: its starter learns of it at once.
    client
        .health()
        .map_err(|error| Failure::Client("bridge".into(), error))?;
    let mut keeper = Keeper::new()?;
    let front = Front::new(client.address().clone(), token, args.aws_agent);
    begin(listener, address, front)?;
    let command = match args.command.as_slice() {
        [] => None,
        words => Some(Command::new(words)?),
    };
    let announced = announce::announce(&url, args.url_file.as_deref(), command.is_some())?;
    if let Some(command) = &command {
        keeper.start(command, &environment::for_child(&url))?;
    }
    let code = wait(&mut keeper, command.is_some());
    announced.withdraw();
    code
}

/// Until the command ends, or, without one, until we are told to.
fn wait(keeper: &mut Keeper, has_child: bool) -> Result<u8, Failure> {
    loop {
        match keeper.wait(None, None)? {
            Event::Exited(code) => return Ok(code),
            Event::Told(signal) if !has_child && ends(signal) => return Ok(0),
            _ => {}
        }
    }
}

fn listen(args: &Bridge) -> Result<(TcpListener, SocketAddr), Failure> {
    let port = if args.aws_agent { AWS_AGENT_PORT } else { 0 };
    let address = args
        .listen
        .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    if !address.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "bridge: {address} is not a loopback address, and others could reach it: use 127.0.0.1:{}",
            address.port()
        )));
    }
    listen_at(address)
}

/// A listener that the runtime can take, and where it listens.
pub fn listen_at(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|cause| Failure::failed(format!("bridge: cannot listen at {address}: {cause}")))
}

fn begin(listener: TcpListener, address: SocketAddr, front: Front) -> Result<(), Failure> {
    let front = Arc::new(front);
    start(move || {
        serve::serve(listener, address, move |stream| {
            serve::converse(stream, front.clone())
        })
    })
}

/// Does work on a thread of its own, which has a runtime, for as long as the process lives.
pub fn start<F: Future>(work: impl FnOnce() -> F + Send + 'static) -> Result<(), Failure> {
    let failed = |cause| Failure::failed(format!("bridge: cannot start: {cause}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    thread::Builder::new()
        .name("keyhatch-bridge".into())
        .spawn(move || {
            runtime.block_on(work());
        })
        .map_err(failed)?;
    Ok(())
}
