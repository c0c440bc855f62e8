//! What lets a command trust the proxy: files of authorities that variables of its own name, and nobody else reads.
//!
//! Most programs trust such a file instead of the system's authorities, so those stand in it, too. The files hold
//! certificates alone; they go when the run ends.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::mkdtemp;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::runtime_folder;
use crate::child::Variable;

/// A program that reads one of these trusts what is in the file, and nothing else.
const INSTEAD: [&str; 4] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
];

/// Node trusts what is in this file besides its own.
const BESIDES: &str = "NODE_EXTRA_CA_CERTS";

/// A folder with those files, for as long as this lives.
pub struct Trust {
    folder: PathBuf,
    variables: Vec<Variable>,
}

impl Trust {
    /// Who trusts these files trusts `own`, and whom they trusted before.
    pub fn write(own: &CertificateDer<'_>) -> io::Result<Self> {
        let own = pem(own);
        let mut trust = Self {
            folder: mkdtemp(&runtime_folder().join("keyhatch-proxy-XXXXXX"))?,
            variables: Vec::new(),
        };
        let system: String = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(pem)
            .collect();
        for name in INSTEAD {
            let before = named_by(name).unwrap_or_else(|| system.clone().into_bytes());
            trust.add(name, &before, &own)?;
        }
        trust.add(BESIDES, &named_by(BESIDES).unwrap_or_default(), &own)?;
        Ok(trust)
    }

    pub fn variables(&self) -> impl Iterator<Item = Variable> {
        self.variables.iter().cloned()
    }

    fn add(&mut self, name: &str, before: &[u8], own: &str) -> io::Result<()> {
        let path = self.folder.join(name.to_ascii_lowercase() + ".pem");
        write(&path, &[before, b"\n", own.as_bytes()])?;
        self.variables
            .push(Variable::plain(name, &path.to_string_lossy()));
        Ok(())
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        // What stays is of no use to anybody: the authority's key is gone.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What the variable leads to now; a file that cannot be read is none.
fn named_by(name: &str) -> Option<Vec<u8>> {
    // The system's authorities are read by the first of them already.
    let path = env::var_os(name).filter(|path| !path.is_empty() && name != INSTEAD[0])?;
    fs::read(path).ok()
}

fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

/// RFC 7468.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
