//! The drop-in surfaces beside the native API: the same secret of the same agent, in alternating rounds.

use std::io;
use std::os::unix::net::UnixStream;

use super::{Plan, request};
use crate::agent::READ;
use crate::answer;
use crate::load::{self, Ask, Stop};
use crate::process::Server;
use crate::report::Report;

/// Each surface's throughput at 64 connections, of the native API's.
pub fn all(plan: &Plan, agent: &Server, report: &mut Report) -> io::Result<()> {
    let native = learn(agent, request())?;
    for (id, what, request) in [
        ("aws_agent", "AWS's agent", aws_agent()),
        ("aws", "AWS JSON 1.1", aws()),
        ("vault", "Vault KV v2", vault()),
    ] {
        let ask = learn(agent, request)?;
        let mut ratios = Vec::new();
        for round in 0..=plan.rounds {
            let (one, other) = (rate(plan, agent, &ask)?, rate(plan, agent, &native)?);
            // The first round only warms up.
            if round > 0 {
                ratios.push(one / other);
            }
        }
        report.agent(
            &format!("{id}_rate_64"),
            &format!("64 connections: {what}, of native"),
            "",
            ratios,
        );
    }
    Ok(())
}

fn learn(agent: &Server, request: Vec<u8>) -> io::Result<Ask> {
    let stream = UnixStream::connect(agent.socket())?;
    let answer = answer::ask(&stream, &request)?.must_be_200()?;
    Ok(Ask::new(request, &answer))
}

pub(super) fn rate(plan: &Plan, agent: &Server, ask: &Ask) -> io::Result<f64> {
    let rate = load::many(agent.socket(), ask, 64, false, Stop::After(plan.slice))?;
    Ok(rate.per_second)
}

fn aws_agent() -> Vec<u8> {
    let path = format!("/secretsmanager/get?secretId={READ}");
    answer::get(&path, "X-Aws-Parameters-Secrets-Token: token\r\n")
}

fn aws() -> Vec<u8> {
    let body = format!(r#"{{"SecretId":"{READ}"}}"#);
    let length = body.len();
    format!(
        "POST / HTTP/1.1\r\nHost: keyhatch\r\nX-Amz-Target: secretsmanager.GetSecretValue\r\n\
         Content-Type: application/x-amz-json-1.1\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn vault() -> Vec<u8> {
    let path = format!("/v1/secret/data/{READ}");
    answer::get(&path, "X-Vault-Token: token\r\nX-Vault-Request: true\r\n")
}
