//! Routes beside nginx: one TLS upstream, and who adds a credential on the way to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Plan;
use crate::LOAD_CORE;
use crate::agent::Site;
use crate::answer::{self, PATIENCE};
use crate::load::{self, Ask, Manner, Stop};
use crate::nginx::{self, Nginx};
use crate::origin::LARGE;
use crate::process::Server;
use crate::report::{AGENT, NGINX, Report, Row};

const STREAMS: usize = 1000;

/// The two on the way to the upstream, and the upstream itself without TLS.
struct Ways {
    agent: Server,
    nginx: Server,
    logging: Server,
    direct: Server,
    _origin: Server,
}

pub fn all(plan: &Plan, folder: &Path, site: &Site, report: &mut Report) -> io::Result<()> {
    let Some(program) = nginx::program() else {
        report.skipped("routes", "needs nginx (Debian package nginx-light)");
        return Ok(());
    };
    let ways = Ways::start(program, folder, site)?;
    speed(plan, &ways, report)?;
    streams(&ways, report)?;
    bodies(&ways, report)
}

impl Ways {
    fn start(program: std::path::PathBuf, folder: &Path, site: &Site) -> io::Result<Self> {
        let nginx = Nginx::new(program, folder.join("nginx"))?;
        let socket = folder.join("origin.sock");
        let own = std::env::current_exe()?;
        let mut origin = Command::new(own);
        origin.arg("serve-origin").arg(&socket);
        let mut ways = Self {
            _origin: Server::spawn_on(LOAD_CORE, &mut origin, &socket)?,
            direct: nginx.upstream(&socket)?,
            nginx: nginx.proxy("proxy", false)?,
            logging: nginx.proxy("logging", true)?,
            agent: site.start_with_route(&nginx.address(), &nginx.certificate())?,
        };
        ways.direct.first_answer(&answer::get("/small", ""))?;
        ways.nginx.first_answer(&by_route("small"))?;
        ways.logging.first_answer(&by_route("small"))?;
        ways.agent.first_answer(&by_route("small"))?;
        Ok(ways)
    }
}

fn by_route(path: &str) -> Vec<u8> {
    answer::get(&format!("/v1/use/origin/{path}"), "")
}

fn learn(server: &Server, request: Vec<u8>) -> io::Result<Ask> {
    let stream = UnixStream::connect(server.socket())?;
    let answer = answer::ask(&stream, &request)?.must_be_200()?;
    Ok(Ask::new(request, &answer))
}

/// Latency and throughput of a small answer.
fn speed(plan: &Plan, ways: &Ways, report: &mut Report) -> io::Result<()> {
    let asks = [
        (&ways.agent, learn(&ways.agent, by_route("small"))?),
        (&ways.nginx, learn(&ways.nginx, by_route("small"))?),
        (
            &ways.direct,
            learn(&ways.direct, answer::get("/small", ""))?,
        ),
        (&ways.logging, learn(&ways.logging, by_route("small"))?),
    ];
    let [agent, nginx, direct, _] = rounds(plan, &asks, |server, ask| {
        let all = load::one_by_one(server.socket(), ask, Manner::Sleeping, plan.slice)?;
        Ok(all.quantile(0.5))
    })?;
    let less = |all: &[f64]| {
        all.iter()
            .zip(&direct)
            .map(|(one, own)| one - own)
            .collect()
    };
    let added = (less(&agent), less(&nginx));
    row(
        report,
        "route_p50",
        "by a route, 1 connection: p50",
        "us",
        (agent, nginx),
    );
    row(
        report,
        "route_added_p50",
        "the same: added to asking the upstream",
        "us",
        added,
    );
    for connections in [16, 64] {
        let [agent, nginx, _, logging] = rounds(plan, &asks, |server, ask| {
            let stop = Stop::After(plan.slice);
            let rate = load::many(server.socket(), ask, connections, false, stop)?;
            Ok(rate.per_second)
        })?;
        let id = format!("route_rate_{connections}");
        let what = format!("by a route, {connections} connections: requests");
        row(report, &id, &what, "/s", (agent.clone(), nginx));
        let logged = "the same, where nginx keeps a log too: requests";
        row(
            report,
            &format!("{id}_logged"),
            logged,
            "/s",
            (agent, logging),
        );
    }
    Ok(())
}

/// A figure of each in turn, round after round; the first round only warms up.
fn rounds(
    plan: &Plan,
    asks: &[(&Server, Ask); 4],
    measure: impl Fn(&Server, &Ask) -> io::Result<f64>,
) -> io::Result<[Vec<f64>; 4]> {
    let mut all = <[Vec<f64>; 4]>::default();
    for round in 0..=plan.rounds {
        for ((server, ask), figures) in asks.iter().zip(&mut all) {
            let figure = measure(server, ask)?;
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    Ok(all)
}

fn row(
    report: &mut Report,
    id: &str,
    what: &str,
    unit: &'static str,
    (agent, nginx): (Vec<f64>, Vec<f64>),
) {
    report.row(Row {
        id: id.to_owned(),
        what: what.to_owned(),
        unit,
        cells: vec![(NGINX, nginx), (AGENT, agent)],
    });
}

/// Memory while so many event streams are open, each with an event a second.
fn streams(ways: &Ways, report: &mut Report) -> io::Result<()> {
    let mut open = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut stream = UnixStream::connect(ways.agent.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&by_route("events"))?;
        open.push(stream);
    }
    // Each has had two events, so that all of them are there at once.
    for stream in &mut open {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        while count(&seen, b"data: ") < 2 {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                let said = String::from_utf8_lossy(&seen).into_owned();
                return Err(io::Error::other(format!("an event stream ended: {said}")));
            }
            seen.extend_from_slice(&buffer[..read]);
        }
    }
    let memory = ways.agent.memory()?;
    let mebibytes = vec![memory.resident / 1024.0];
    report.agent(
        "route_streams_rss",
        "1,000 event streams by a route: VmRSS",
        "MiB",
        mebibytes,
    );
    Ok(())
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes
        .windows(part.len())
        .filter(|window| *window == part)
        .count()
}

/// A gibibyte each way, and what it does to the agent's memory meanwhile.
fn bodies(ways: &Ways, report: &mut Report) -> io::Result<()> {
    let before = ways.agent.memory()?.resident;
    let mut most = before;
    for (id, what, transfer) in [
        (
            "route_up",
            "by a route, 1 GiB up",
            upload as fn(&Server) -> io::Result<()>,
        ),
        ("route_down", "by a route, 1 GiB down", download),
    ] {
        let nginx = timed(&ways.nginx, transfer)?;
        let over = AtomicBool::new(false);
        let (agent, peak) = thread::scope(|scope| {
            let sampled = scope.spawn(|| peak(&ways.agent, &over));
            let agent = timed(&ways.agent, transfer);
            over.store(true, Ordering::Relaxed);
            let peak = sampled.join().map_err(|_| io::Error::other("no samples"))?;
            Ok::<_, io::Error>((agent?, peak?))
        })?;
        most = most.max(peak);
        row(report, id, what, "MiB/s", (vec![agent], vec![nginx]));
    }
    let gained = vec![(most - before) / 1024.0];
    report.agent(
        "route_bodies_rss",
        "1 GiB each way: VmRSS gained, at most",
        "MiB",
        gained,
    );
    Ok(())
}

fn peak(server: &Server, over: &AtomicBool) -> io::Result<f64> {
    let mut most: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(server.memory()?.resident);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(most)
}

/// Mebibytes a second.
fn timed(server: &Server, transfer: fn(&Server) -> io::Result<()>) -> io::Result<f64> {
    let begin = Instant::now();
    transfer(server)?;
    Ok(LARGE as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64())
}

fn upload(server: &Server) -> io::Result<()> {
    let mut stream = UnixStream::connect(server.socket())?;
    let head = format!(
        "PUT /v1/use/origin/upload HTTP/1.1\r\nHost: keyhatch\r\nContent-Length: {LARGE}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    io::copy(&mut io::repeat(b'x').take(LARGE), &mut stream)?;
    let answer = answer::ask(&stream, b"")?.must_be_200()?;
    if answer.body() == LARGE.to_string().as_bytes() {
        return Ok(());
    }
    Err(io::Error::other("the upstream has not had all of a body"))
}

fn download(server: &Server) -> io::Result<()> {
    let mut stream = UnixStream::connect(server.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&by_route("download"))?;
    let mut buffer = vec![0; 1 << 18];
    let mut got = 0;
    while got < LARGE {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other("a large answer was cut")),
            read => got += read as u64,
        }
    }
    Ok(())
}
