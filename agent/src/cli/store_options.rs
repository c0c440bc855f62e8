//! What `keyhatchd store` is told on the command line.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use keyhatch_protocol::Name;

use super::admin::Target;
use crate::config::KeySource;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Make an empty store, and its key where it does not exist
    #[command(after_help = "Example: keyhatchd store init --store ./store --key file:./store.key")]
    Init(Init),
    /// Set a secret to what standard input holds
    #[command(after_help = "Example: printf %s \"$VALUE\" | keyhatchd store put openai/api-key")]
    Put(Put),
    /// Print a secret's value; only with --store and --key
    #[command(
        after_help = "Example: keyhatchd store get openai/api-key --store ./store --key file:./store.key"
    )]
    Get(Named),
    /// List names, versions and sizes
    #[command(after_help = "Example: keyhatchd store list")]
    List(Plain),
    /// Remove a secret with its previous version
    #[command(after_help = "Example: keyhatchd store rm openai/old-key")]
    Rm(Named),
    /// Set many secrets from a .env file, a JSON object or a Fernet token, all or nothing
    #[command(after_help = "Example: keyhatchd store import --from dotenv --prefix bot/ < .env")]
    Import(Import),
    /// Set a secret to a new random value
    #[command(after_help = "Example: keyhatchd store generate app/session-key --length 40")]
    Generate(Generate),
    /// Make a new data key and encrypt all anew
    #[command(after_help = "Example: keyhatchd store rekey --keep-key file:/mnt/usb/recovery.key")]
    Rekey(Rekey),
    /// Check that the store opens whole
    #[command(after_help = "Example: keyhatchd store verify")]
    Verify(Plain),
    /// Accept an older copy that was put back on purpose
    #[command(after_help = "Example: keyhatchd store accept-older")]
    AcceptOlder(Plain),
    /// The keys that open the store
    #[command(subcommand)]
    Key(KeyVerb),
}

#[derive(Subcommand)]
pub enum KeyVerb {
    /// Let another key open the store too
    #[command(after_help = "Example: keyhatchd store key add recovery file:./recovery.key")]
    Add(KeyAdd),
    /// List the keys by label
    #[command(after_help = "Example: keyhatchd store key list")]
    List(Plain),
    /// Take a key off the store
    #[command(after_help = "Example: keyhatchd store key rm recovery")]
    Rm(KeyRm),
}

/// Which store: the daemon's, or one by its files.
#[derive(clap::Args)]
pub struct At {
    /// The source whose store is meant, where there are several
    #[arg(long, value_name = "NAME", conflicts_with = "store")]
    pub source: Option<String>,
    /// Work on the files of this folder instead of asking the daemon
    #[arg(long, value_name = "DIR", requires = "key")]
    pub store: Option<PathBuf>,
    /// The key of --store: <file:PATH> or credential:NAME
    #[arg(long, value_name = "KEY", requires = "store")]
    pub key: Option<KeySource>,
    #[command(flatten)]
    pub target: Target,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Init {
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// The key: <file:PATH>, made where it does not exist, or credential:NAME
    #[arg(long, value_name = "KEY")]
    pub key: KeySource,
}

#[derive(clap::Args)]
pub struct Plain {
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct Named {
    pub name: Name,
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct Put {
    pub name: Name,
    /// Drop one newline at the end of the value
    #[arg(long)]
    pub trim: bool,
    /// Keep no previous version: for a value that has leaked
    #[arg(long)]
    pub revoke_previous: bool,
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct Generate {
    pub name: Name,
    /// How many letters and digits
    #[arg(long, default_value_t = 40)]
    pub length: usize,
    #[command(flatten)]
    pub at: At,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum From {
    Dotenv,
    Json,
    Fernet,
}

#[derive(clap::Args)]
pub struct Import {
    /// The file; standard input where none is given
    pub file: Option<PathBuf>,
    /// How it is written
    #[arg(long)]
    pub from: From,
    /// Goes in front of each name
    #[arg(long, value_name = "P", default_value = "")]
    pub prefix: String,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The key of a Fernet token
    #[arg(long, value_name = "FILE", required_if_eq("from", "fernet"))]
    pub fernet_key: Option<PathBuf>,
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct Rekey {
    /// Another key of the store, to keep it; once for each
    #[arg(long, value_name = "KEY")]
    pub keep_key: Vec<KeySource>,
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct KeyAdd {
    pub label: String,
    /// The key to add: <file:PATH>, made where it does not exist, or credential:NAME
    #[arg(value_name = "NEW_KEY")]
    pub new_key: KeySource,
    #[command(flatten)]
    pub at: At,
}

#[derive(clap::Args)]
pub struct KeyRm {
    pub label: String,
    #[command(flatten)]
    pub at: At,
}
