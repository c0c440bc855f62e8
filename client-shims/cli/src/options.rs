//! The command line: what `--help`, the completions and the man pages say.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Ask the Keyhatch agent for secrets.
///
/// The agent knows who asks from the kernel, and a policy says what they may have.
///
/// Errors name the request id, which leads to the audit record.
#[derive(Parser)]
#[command(name = "keyhatch", version, disable_help_subcommand = true, after_help = EXITS)]
pub struct Options {
    /// The agent's socket
    #[arg(long, global = true, value_name = "PATH", help = SOCKET)]
    pub socket: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

const SOCKET: &str =
    "The agent's socket [default: $KEYHATCH_SOCKET, the host's, or your dev agent's]";

const EXITS: &str = "\
Exit codes:
  0 done, 1 failed, 2 usage, 66 no such secret, 69 agent not reachable, 75 try again, 77 denied

Example:
  keyhatch get openai/api-key";

#[derive(Subcommand)]
pub enum Verb {
    Get(Get),
    List(List),
    Whoami(Whoami),
    Watch(Watch),
    /// Print a completion script for a shell
    #[command(
        hide = true,
        after_help = "Example:\n  keyhatch completions bash > /etc/bash_completion.d/keyhatch"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page, or write one for every verb
    #[command(
        hide = true,
        after_help = "Example:\n  keyhatch man --dir /usr/share/man/man1"
    )]
    Man {
        /// Write all pages into this folder
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// Print a secret's value: exactly its bytes, no newline added
#[derive(Args)]
#[command(
    after_help = "Examples:\n  keyhatch get openai/api-key\n  keyhatch get app/db#password\n  \
    keyhatch get ssh/deploy-key --previous | ssh-add -"
)]
pub struct Get {
    /// The secret's name, or NAME#FIELD
    pub name: String,
    /// Only this field of a value that is a JSON object
    #[arg(long)]
    pub field: Option<String>,
    /// The value before the current one, kept for the grace time of a rotation
    #[arg(long)]
    pub previous: bool,
    /// The value as JSON, with its version, source and age
    #[arg(long)]
    pub json: bool,
}

/// List the secrets that you may see, one name a line
#[derive(Args)]
#[command(after_help = "Examples:\n  keyhatch list\n  keyhatch list openai/ --json")]
pub struct List {
    /// Only names that begin so
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// As JSON, with versions
    #[arg(long)]
    pub json: bool,
}

/// Say who the agent thinks you are, and what you may have
#[derive(Args)]
#[command(after_help = "Example:\n  keyhatch whoami")]
pub struct Whoami {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Print a line whenever one of these secrets is rotated or removed
///
/// It begins with one `current` line for each. Values are never printed: ask `get` for them.
#[derive(Args)]
#[command(
    after_help = "Example:\n  keyhatch watch openai/api-key | while read -r event name version; do\n    \
    systemctl reload bot\n  done"
)]
pub struct Watch {
    /// The secrets' names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}
