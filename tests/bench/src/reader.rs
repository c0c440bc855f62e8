//! What the readers of `clients/` are to the Rust library, as a verb of this program: one secret, read on and on.

use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use keyhatch::blocking::Client;

use crate::stats::Latencies;

/// So many reads before the clock is looked at.
const BURST: u32 = 16;

/// A line with seconds comes in, a line with reads a second and the median in microseconds goes out.
pub fn main(way: &str, name: &str) -> io::Result<()> {
    let client = Client::new();
    let read = || -> io::Result<()> {
        if way == "rust-cached" {
            let secret = client.get_cached(name).map_err(io::Error::other)?;
            std::hint::black_box(secret.reveal());
        } else {
            let secret = client.get(name).map_err(io::Error::other)?;
            std::hint::black_box(secret.reveal());
        }
        Ok(())
    };
    for line in io::stdin().lock().lines() {
        let seconds: f64 = line?.trim().parse().map_err(io::Error::other)?;
        let half = Duration::from_secs_f64(seconds / 2.0);
        let (rate, median) = (rate(&read, half)?, median(&read, half)?);
        writeln!(io::stdout(), "{rate} {median}")?;
    }
    Ok(())
}

fn rate(read: &impl Fn() -> io::Result<()>, during: Duration) -> io::Result<f64> {
    let (mut count, begin) = (0_u32, Instant::now());
    while begin.elapsed() < during {
        for _ in 0..BURST {
            read()?;
        }
        count += BURST;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

fn median(read: &impl Fn() -> io::Result<()>, during: Duration) -> io::Result<f64> {
    let (mut times, end) = (Vec::new(), Instant::now() + during);
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok(Latencies::new(times).quantile(0.50));
        }
        read()?;
        times.push(begin.elapsed());
    }
}
