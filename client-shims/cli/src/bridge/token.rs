//! The token that a request must bring. It is compared in constant time and cannot be printed.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::geteuid;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Where AWS's agent keeps its token unless `$AWS_TOKEN` says otherwise.
const AWS_TOKEN_FILE: &str = "/var/run/awssmatoken";

/// Who a client says that it is, to a proxy that only asks for the token.
const PROXY_USER: &str = "keyhatch";

/// 256 bits.
const BYTES: usize = 32;

/// What 128 bits take as hexadecimal digits: no shorter token is taken from elsewhere.
const SHORTEST: usize = 32;

pub struct Token(Zeroizing<String>);

impl Token {
    pub fn fresh() -> Result<Self, Failure> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        getrandom::fill(bytes.as_mut_slice())
            .map_err(|cause| Failure::failed(format!("bridge: no random bytes: {cause}")))?;
        let mut text = Zeroizing::new(String::with_capacity(2 * BYTES));
        for byte in bytes.iter() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// As AWS's agent has it: `$AWS_TOKEN`, or the file that it names as `file://PATH`, else the usual file, which is
    /// made where there is none.
    pub fn of_aws_agent() -> Result<Self, Failure> {
        let given = env::var("AWS_TOKEN").ok().filter(|given| !given.is_empty());
        let path = match given {
            None => PathBuf::from(AWS_TOKEN_FILE),
            Some(given) => match given.strip_prefix("file://") {
                None => return Self::taken(&Zeroizing::new(given), "AWS_TOKEN"),
                Some(path) => path.into(),
            },
        };
        let shown = path.display().to_string();
        match read(&path) {
            Ok(text) => Self::taken(&text, &shown),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let token = Self::fresh()?;
                make(&path, token.0.as_bytes()).map_err(|cause| {
                    Failure::failed(format!(
                        "bridge: cannot make the token file {shown}: {cause}; name one that you may write, as AWS_TOKEN=file://PATH"
                    ))
                })?;
                Ok(token)
            }
            Err(cause) => Err(Failure::configuration(format!(
                "bridge: the token file {shown}: {cause}"
            ))),
        }
    }

    fn taken(text: &str, from: &str) -> Result<Self, Failure> {
        let token = Zeroizing::new(text.trim().to_owned());
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Failure::configuration(format!(
                "bridge: the token of {from} is not at least {SHORTEST} letters and digits, so it could be guessed"
            )));
        }
        Ok(Self(token))
    }

    pub fn url(&self, address: SocketAddr) -> Zeroizing<String> {
        Zeroizing::new(format!("http://{address}/{}", *self.0))
    }

    /// The URL of a proxy, with the token as its password.
    pub fn proxy_url(&self, address: SocketAddr) -> Zeroizing<String> {
        Zeroizing::new(format!("http://{PROXY_USER}:{}@{address}", *self.0))
    }

    /// Whether a `Proxy-Authorization` holds the token (RFC 7617).
    pub fn is_password(&self, given: &[u8]) -> bool {
        let (Some(scheme), Some(given)) = (given.get(..6), given.get(6..)) else {
            return false;
        };
        let pair = Zeroizing::new(format!("{PROXY_USER}:{}", *self.0));
        let expected = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        scheme.eq_ignore_ascii_case(b"basic ") && expected.as_bytes().ct_eq(given).into()
    }

    pub fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

/// Only a file that its owner or root decides about, and that others cannot read, holds a token.
fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let ours = [0, geteuid().as_raw()].contains(&found.uid());
    if !found.is_file() || !ours || found.mode() & 0o027 != 0 {
        return Err(io::Error::other(
            "it is to belong to you or root, and nobody else may read or write it (chmod 0640)",
        ));
    }
    io::read_to_string(file).map(Zeroizing::new)
}

fn make(path: &Path, token: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(token)
}
