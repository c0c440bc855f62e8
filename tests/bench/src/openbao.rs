//! A real OpenBao on loopback, in development mode, filled over its HTTP API.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Server, TempFolder};

const TOKEN: &str = "root";
const PATIENCE: Duration = Duration::from_secs(20);

/// The server, ended when it is dropped.
pub struct OpenBao {
    _server: Server,
    port: u16,
}

/// Where `bao` is: `$KEYHATCH_BAO`, where `tests/run` installs it, or on the path.
pub fn program() -> Option<PathBuf> {
    let named = env::var_os("KEYHATCH_BAO").map(PathBuf::from);
    let own = env::current_exe().ok()?;
    let installed = own.parent()?.parent()?.join("venv/bin/bao");
    let on_path = env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join("bao"))
        .find(|path| path.is_file());
    named
        .or(Some(installed).filter(|path| path.is_file()))
        .or(on_path)
}

impl OpenBao {
    /// Starts it and waits until it answers.
    pub fn start(program: &PathBuf, folder: &TempFolder) -> io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"));
        let server = Server::spawn(&mut command, &folder.path().join("bao.sock"))?;
        let bao = Self {
            _server: server,
            port,
        };
        let begin = Instant::now();
        while bao
            .connect()
            .and_then(|mut to| to.ask("GET", "sys/health", ""))
            .is_err()
        {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other("OpenBao does not answer"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(bao)
    }

    /// The lines of a source that reads from it, but its name.
    pub fn source(&self, token_file: &std::path::Path) -> String {
        format!(
            "kind = \"vault\"\naddress = \"http://127.0.0.1:{}\"\nauth = {{ method = \"token_file\", path = \"{}\" }}\n",
            self.port,
            token_file.display()
        )
    }

    /// What a token file holds.
    pub fn token() -> &'static str {
        TOKEN
    }

    /// Puts one secret for each name.
    pub fn put(&self, secrets: impl Iterator<Item = (String, String)>) -> io::Result<()> {
        let mut to = self.connect()?;
        for (name, value) in secrets {
            let body = serde_json::json!({ "data": { "value": value } }).to_string();
            to.ask("POST", &format!("secret/data/{name}"), &body)?;
        }
        Ok(())
    }

    fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }
}

/// A kept connection.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nHost: bao\r\nX-Vault-Token: {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let (status, mut length) = (line.clone(), 0);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(_) => {}
                None => break,
            }
        }
        io::copy(&mut (&mut self.0).take(length), &mut io::sink())?;
        if status
            .split(' ')
            .nth(1)
            .is_some_and(|code| code.starts_with('2'))
        {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "OpenBao answered {}",
            status.trim()
        )))
    }
}
