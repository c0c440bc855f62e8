//! The command line: what `--help`, the completions and the man pages say.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use nix::sys::signal::Signal;

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
  0 done, 1 failed, 2 usage, 66 no such secret, 69 agent not reachable, 75 try again, 77 denied,
  78 bad configuration; run and bridge pass their command's on

Example:
  keyhatch get openai/api-key";

#[derive(Subcommand)]
pub enum Verb {
    Get(Get),
    List(List),
    Whoami(Whoami),
    Watch(Watch),
    Rotate(Rotate),
    Run(Run),
    Doctor(Doctor),
    Bridge(Bridge),
    // What --help says is plain text.
    #[allow(clippy::doc_markdown)]
    /// Serve an AI client over MCP, on standard input and output
    ///
    /// Its tools list secrets' names, wait for rotations, say who the agent thinks this process is, and call routes,
    /// whose credentials the agent adds. No tool answers with a value.
    #[command(
        after_help = "Example: as AI clients are configured, to start keyhatch mcp:\n  \
        {\"mcpServers\": {\"keyhatch\": {\"command\": \"keyhatch\", \"args\": [\"mcp\"]}}}"
    )]
    Mcp,
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

/// Ask for a new value of a secret
///
/// It needs the `rotate` action and a rotation that the agent's host is configured to do. The command ends once it has
/// begun: `watch` tells when the new value is there. Where one runs already, or the version before is still needed, the
/// exit code is 75.
#[derive(Args)]
#[command(after_help = "Example:\n  keyhatch rotate app/session-key")]
pub struct Rotate {
    /// The secret's name
    pub name: String,
    /// As JSON, with the version to come
    #[arg(long)]
    pub json: bool,
}

// What --help says is plain text.
#[allow(clippy::doc_markdown)]
/// Run a command with secrets in its environment
///
/// The variables are set for the command only. It gets the signals that this command gets, and its exit code is
/// passed on: 128 and the signal's number where a signal ended it, 127 where it is not found, 126 where it cannot be
/// run. Nothing is started where a secret cannot be had: see the exit codes of keyhatch.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  keyhatch run --env OPENAI_API_KEY=openai/api-key -- bot\n  \
    keyhatch run --env-all app/ --file TLS_KEY_FILE=tls/bot --on-rotate signal:HUP -- bot --serve\n  \
    keyhatch run --route OPENAI_BASE_URL=openai/v1 -- bot\n  \
    keyhatch run --proxy=github -- git clone https://github.com/example/private"
)]
pub struct Run {
    /// Set a variable to a secret's value: VAR=NAME, or VAR=NAME#FIELD
    #[arg(long, value_name = "VAR=NAME")]
    pub env: Vec<String>,
    /// Set a variable for each readable secret whose name begins so: the rest of the name in upper case, with _ for
    /// all but letters and digits
    #[arg(long, value_name = "PREFIX")]
    pub env_all: Vec<String>,
    /// Set the variables of a file with one VAR=NAME a line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Put the value in a sealed file in memory, and its path in the variable
    #[arg(long, value_name = "VAR=NAME")]
    pub file: Vec<String>,
    /// Set a variable to a base URL that leads to a route: VAR=ROUTE, or VAR=ROUTE/PATH. Where VAR ends in _BASE_URL,
    /// the _API_KEY beside it is set to a placeholder unless it is set: the agent adds the real one. Where VAR begins
    /// with AWS_ENDPOINT_URL, so are a region and keys of AWS
    #[arg(long, value_name = "VAR=ROUTE")]
    pub route: Vec<String>,
    /// Give the command an HTTPS proxy on which requests to routes' hosts go by those routes, for tools that know no base
    /// URL. It trusts the proxy by variables alone. Without names, all routes that you may use
    #[arg(long, value_name = "ROUTE,...", num_args = 0..=1, require_equals = true, value_delimiter = ',')]
    pub proxy: Option<Vec<String>>,
    /// Let the proxy refuse hosts that no route leads to. A command that asks no proxy is not held back
    #[arg(long, requires = "proxy")]
    pub only_routes: bool,
    /// When one of the secrets is rotated: restart (SIGTERM, SIGKILL after 10 seconds), signal:NAME, or none, which
    /// lets the command take the place of this process
    #[arg(long, value_name = "WHAT", default_value = "restart")]
    pub on_rotate: OnRotate,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// What happens to a command when one of its secrets is rotated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnRotate {
    Restart,
    Signal(Signal),
    None,
}

impl FromStr for OnRotate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "restart" => Ok(Self::Restart),
            "none" => Ok(Self::None),
            _ => {
                let name = text
                    .strip_prefix("signal:")
                    .ok_or("it is restart, signal:NAME or none")?;
                let long = if name.starts_with("SIG") {
                    name.into()
                } else {
                    format!("SIG{name}")
                };
                let signal = long.parse().map_err(|_| "there is no such signal")?;
                Ok(Self::Signal(signal))
            }
        }
    }
}

/// Say why a read would fail, and what to do
///
/// Looks at the socket, the agent, who the agent thinks you are, the bot that this makes you and your grants. No
/// secret is read. The exit code is 0 where a read would work, else the one that the read would have.
#[derive(Args)]
#[command(after_help = "Examples:\n  keyhatch doctor\n  keyhatch doctor openai/api-key --json")]
pub struct Doctor {
    /// The secret that is to be read
    pub name: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

// What --help says is plain text.
#[allow(clippy::doc_markdown)]
/// Give programs that only know URLs a loopback address for the agent
///
/// The first line printed is the base URL. Who has it asks the agent as this process, so it is given to one bot
/// alone: another user's connections are closed, and without the URL's token every answer is 403. With a command, the
/// URL is in the command's environment and nowhere else: KEYHATCH_BRIDGE_URL, VAULT_ADDR and
/// AWS_ENDPOINT_URL_SECRETS_MANAGER, and the bridge ends with the command.
#[derive(Args)]
#[command(after_help = "Examples:\n  keyhatch bridge -- python bot.py\n  \
    keyhatch bridge --url-file /run/user/1000/keyhatch-url\n  keyhatch bridge --aws-agent")]
pub struct Bridge {
    /// The loopback address to listen at [default: 127.0.0.1:0, a free port; with --aws-agent 127.0.0.1:2773]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Write the base URL to this file, which only you may read
    #[arg(long, value_name = "FILE")]
    pub url_file: Option<PathBuf>,
    /// Stand in for AWS's Secrets Manager Agent: its port, its /v1/ID paths, and the token of $AWS_TOKEN (or the file
    /// that it names as file://PATH), else of /var/run/awssmatoken
    #[arg(long)]
    pub aws_agent: bool,
    /// A command to run with the URL in its environment
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}
