//! `keyhatchd audit report`: the log in one page.

use std::io::Write;
use std::time::{Duration, SystemTime};

use super::audit::{At, moment, printed};
use super::{exit, fail};
use crate::review::{self, Ask};

#[derive(clap::Args)]
pub struct Report {
    #[command(flatten)]
    at: At,
    /// Not before: a time as 2026-01-31T12:00:00Z, or a span such as 7d before now
    #[arg(long, value_parser = moment, default_value = "7d")]
    since: SystemTime,
    /// Name secrets that were read and not rotated for so long
    #[arg(long, value_name = "SPAN", value_parser = humantime::parse_duration, default_value = "90d")]
    rotate_within: Duration,
    /// Print JSON
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Print one HTML file that needs no other
    #[arg(long)]
    html: bool,
}

pub fn report(args: &Report) -> u8 {
    let (dir, config) = match args.at.find_with_config() {
        Ok(found) => found,
        Err(why) => return fail(exit::CONFIG, why),
    };
    let review = review::review(&Ask {
        dir: &dir,
        since: Some(args.since),
        now: SystemTime::now(),
        rotate_within: args.rotate_within,
        policy: config.as_ref().map(|config| &*config.policy),
        honeytokens: config.as_ref().map_or(&[], |config| &config.honeytokens),
    });
    let review = match review {
        Ok(review) => review,
        Err(error) => return fail(exit::FAILED, error),
    };
    let text = if args.json {
        match serde_json::to_string(&review) {
            Ok(json) => json + "\n",
            Err(error) => return fail(exit::FAILED, error),
        }
    } else if args.html {
        review::html(&review)
    } else {
        review::text(&review)
    };
    let mut out = std::io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()), 0)
}
