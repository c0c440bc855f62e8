//! Where the daemon's own words go.

use std::io::{self, IsTerminal};

/// Whether systemd connected standard error to the journal: a child inherits the variable with any other
/// standard error, too (`JOURNAL_STREAM` of systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The daemon's own log: to journald where systemd has connected standard error to it, else to standard
/// error.
pub fn log_to_journald_or_stderr() {
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let journald = stderr_is_journal()
        .then(|| tracing_journald::layer().ok())
        .flatten();
    // A second call, as in a test, changes nothing.
    let _ = if let Some(journald) = journald {
        registry.with(journald).try_init()
    } else {
        let stderr = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false);
        registry.with(stderr).try_init()
    };
}
