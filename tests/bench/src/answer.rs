//! One request and its answer, whole: to learn what the agent answers, and where the time does not count.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A blocking client waits this long for an answer (a long poll asks for less).
pub const PATIENCE: Duration = Duration::from_secs(35);

/// One whole HTTP answer as it came.
pub struct Answer {
    bytes: Vec<u8>,
    body_at: usize,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// The first answer in `bytes`, which must hold all of it.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        Self::complete(bytes)?.ok_or_else(|| io::Error::other("an answer that ends too early"))
    }

    /// None while more must be read.
    fn complete(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = str::from_utf8(&bytes[..end]).map_err(io::Error::other)?;
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let headers: Vec<_> = fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer = Self {
            bytes: Vec::new(),
            body_at: end + 4,
            headers,
        };
        let length = answer.header("content-length").unwrap_or("0");
        let length: usize = length.parse().map_err(io::Error::other)?;
        let Some(whole) = bytes.get(..answer.body_at + length) else {
            return Ok(None);
        };
        answer.bytes = whole.to_vec();
        Ok(Some(answer))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body_at..]
    }

    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }

    /// An error that quotes the answer's first line, never its body, unless it is a 200.
    pub fn must_be_200(self) -> io::Result<Self> {
        only_200(&self.bytes)?;
        Ok(self)
    }
}

/// A request of the native API, with more header lines where given (each with its CRLF).
pub fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: keyhatch\r\n{more}\r\n").into_bytes()
}

/// One request, one answer, on a connection that is there already.
pub fn ask(mut stream: &UnixStream, request: &[u8]) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    receive(stream)
}

/// The answer to what was asked before.
pub fn receive(mut stream: &UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other(
                "the server closed the connection before its answer ended",
            ));
        }
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(answer) = Answer::complete(&bytes)? {
            return Ok(answer);
        }
    }
}

/// An error that quotes the first line, where it is any other.
pub fn only_200(bytes: &[u8]) -> io::Result<()> {
    if bytes.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let line = bytes
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    Err(io::Error::other(format!(
        "not a 200 but: {}",
        String::from_utf8_lossy(line)
    )))
}

/// The answer that the agent gives, as the contract has it, for runs without one.
pub fn sample_answer() -> Vec<u8> {
    let value = "CANARY-bench-".repeat(16);
    let body = format!(
        r#"{{"name":"bench/s0000","version":"0123456789abcdef","value":"{}","updated_at":"2026-01-01T00:00:00Z","source":"local","stale":false}}"#,
        &value[..200]
    );
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\netag: \"0123456789abcdef\"\r\n\
         content-length: {length}\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_last_byte() -> io::Result<()> {
        let bytes = sample_answer();
        let answer = Answer::parse(&bytes)?;
        assert_eq!(answer.bytes(), bytes);
        assert_eq!(answer.header("ETag"), Some("\"0123456789abcdef\""));
        assert!(answer.body().ends_with(b"\"stale\":false}"));
        for end in 0..bytes.len() {
            assert!(Answer::parse(&bytes[..end]).is_err(), "{end}");
        }
        Ok(())
    }

    #[test]
    fn anything_but_200_is_an_error_that_quotes_one_line() {
        let outcome = only_200(b"HTTP/1.1 429 Too Many Requests\r\nx: y\r\n\r\nbody");
        let said = outcome.map_err(|error| error.to_string());
        assert_eq!(
            said,
            Err("not a 200 but: HTTP/1.1 429 Too Many Requests".to_owned())
        );
    }
}
