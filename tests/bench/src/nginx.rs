//! nginx twice: as the TLS upstream of a route, and as the proxy that the agent is compared with.

use std::env;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use crate::process::Server;
use crate::{LOAD_CORE, SERVER_CORE};

/// Where nginx is; Debian has it beside what only root uses.
pub fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join("nginx"))
        .find(|program| program.is_file())
}

/// The upstream and the proxy, each with a folder of its own.
pub struct Nginx {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// Makes the certificate of the upstream, which vouches for itself.
    pub fn new(program: PathBuf, folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let nginx = Self {
            program,
            folder,
            port: TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
        };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=bench"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(nginx.folder.join("key.pem"))
            .arg("-out")
            .arg(nginx.certificate())
            .stderr(Stdio::null())
            .status()?;
        if made.success() {
            return Ok(nginx);
        }
        Err(io::Error::other("openssl makes no certificate"))
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The upstream: a small answer of its own, all else from what listens at `origin`. Without TLS it is at the socket.
    pub fn upstream(&self, origin: &Path) -> io::Result<Server> {
        let (folder, origin, port) = (self.folder.display(), origin.display(), self.port);
        let socket = self.folder.join("direct.sock");
        let body = "v".repeat(200);
        let servers = format!(
            r#"
server {{
  listen 127.0.0.1:{port} ssl;
  listen unix:{};
  ssl_certificate {folder}/certificate.pem;
  ssl_certificate_key {folder}/key.pem;
  client_max_body_size 0;
  location = /small {{ default_type text/plain; return 200 "{body}"; }}
  location / {{
    proxy_pass http://unix:{origin}:;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_request_buffering off;
  }}
}}"#,
            socket.display()
        );
        self.start("upstream", LOAD_CORE, &servers, &socket)
    }

    /// The proxy: `proxy_pass` with a fixed header, to the upstream over kept connections; with a line in a log for each
    /// call where it is asked for, as nginx comes.
    pub fn proxy(&self, name: &str, logs: bool) -> io::Result<Server> {
        let (folder, port) = (self.folder.display(), self.port);
        let socket = self.folder.join(format!("{name}.sock"));
        let log = if logs {
            format!("{folder}/{name}.log combined")
        } else {
            "off".to_owned()
        };
        let servers = format!(
            r#"
upstream origin {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }}
server {{
  listen unix:{};
  access_log {log};
  client_max_body_size 0;
  location /v1/use/origin/ {{
    proxy_pass https://origin/;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Authorization "Bearer a-fixed-credential";
    proxy_ssl_verify on;
    proxy_ssl_name localhost;
    proxy_ssl_trusted_certificate {folder}/certificate.pem;
    proxy_request_buffering off;
  }}
}}"#,
            socket.display()
        );
        self.start(name, SERVER_CORE, &servers, &socket)
    }

    fn start(&self, name: &str, core: usize, servers: &str, socket: &Path) -> io::Result<Server> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let own = folder.display();
        // Its workers would be a user that may not enter our folder.
        let user = if geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {own}/{kind};\n"))
            .concat();
        let text = format!(
            r"{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {own}/pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
access_log off;
keepalive_requests 100000000;
{temporary}{servers}
}}
"
        );
        let config = folder.join("nginx.conf");
        fs::write(&config, text)?;
        let mut command = Command::new(&self.program);
        command.args(["-p", &own.to_string(), "-e", "stderr", "-c"]);
        command.arg(&config);
        Server::spawn_on(core, &mut command, socket)
    }
}
