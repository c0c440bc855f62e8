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

use crate::child::Variable;
use crate::failure::Failure;

/// A program that reads one of these trusts what is in the file, and nothing else. Beside each is what it goes by before it is
/// set: the first of those that are, and otherwise the system's authorities, to which `SSL_CERT_FILE` belongs.
const INSTEAD: [(&str, &[&str]); 4] = [
    ("SSL_CERT_FILE", &[]),
    (
        "REQUESTS_CA_BUNDLE",
        &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
    ),
    ("GIT_SSL_CAINFO", &["GIT_SSL_CAINFO"]),
    ("CURL_CA_BUNDLE", &["CURL_CA_BUNDLE"]),
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
    pub fn write(own: &CertificateDer<'_>) -> Result<Self, Failure> {
        let own = pem(own);
        let mut trust = Self {
            folder: folder()?,
            variables: Vec::new(),
        };
        let system: String = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(pem)
            .collect();
        for (name, read) in INSTEAD {
            let before = read.iter().find_map(|name| named_by(name).transpose());
            let before = before.transpose()?;
            let before = before.unwrap_or_else(|| system.clone().into_bytes());
            trust.add(name, &before, &own)?;
        }
        // Node goes on without a file that it cannot read.
        let before = named_by(BESIDES).ok().flatten().unwrap_or_default();
        trust.add(BESIDES, &before, &own)?;
        Ok(trust)
    }

    pub fn variables(&self) -> impl Iterator<Item = Variable> {
        self.variables.iter().cloned()
    }

    fn add(&mut self, name: &str, before: &[u8], own: &str) -> Result<(), Failure> {
        let path = self.folder.join(name.to_ascii_lowercase() + ".pem");
        write(&path, &[before, b"\n", own.as_bytes()]).map_err(|cause| unwritten(&path, &cause))?;
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

/// What is in the file that the variable names. One that cannot be read is no reason to trust everybody.
fn named_by(name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let Some(path) = env::var_os(name).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    fs::read(&path).map(Some).map_err(|cause| {
        let path = Path::new(&path).display();
        Failure::failed(format!(
            "run: --proxy: {name} names {path}, which cannot be read: {cause}: name a file of certificates, or unset it"
        ))
    })
}

/// A folder for this run alone: where the user's files of this kind lie, or with all temporary ones where that cannot be had.
fn folder() -> Result<PathBuf, Failure> {
    let name = "keyhatch-proxy-XXXXXX";
    let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let made = runtime.and_then(|folder| mkdtemp(&Path::new(&folder).join(name)).ok());
    let temporary = env::temp_dir();
    made.map_or_else(
        || mkdtemp(&temporary.join(name)).map_err(|cause| unwritten(&temporary, &cause.into())),
        Ok,
    )
}

fn unwritten(path: &Path, cause: &io::Error) -> Failure {
    let path = path.display();
    Failure::failed(format!("run: --proxy: cannot write {path}: {cause}"))
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
