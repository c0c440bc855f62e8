//! The status line and headers of an answer (RFC 9112): only what a client of the agent needs, read strictly.

use std::time::Duration;

use keyhatch_protocol::{STALE_HEADER, VERSION_HEADER};

use crate::wire::Broken;

/// The most headers of an answer.
const MAX_HEADERS: usize = 64;

/// What an answer says before its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub status: u16,
    /// Of a raw value.
    pub version: Option<String>,
    /// The same: it is the last good one of a source in trouble.
    pub stale: bool,
    pub retry_after: Option<Duration>,
    /// The server will close the connection.
    pub close: bool,
    /// It is an event stream.
    pub events: bool,
    pub length: Length,
}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    Known(usize),
    Chunked,
}

/// The head in `bytes` and its length; `None` where it is not all there yet.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Broken> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let end = match response.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Broken::Malformed("not an HTTP answer")),
    };
    let status = response.code.unwrap_or(0);
    if response.version != Some(1) || !(200..600).contains(&status) {
        return Err(Broken::Malformed("not an HTTP/1.1 answer"));
    }
    let mut head = Head {
        status,
        version: None,
        stale: false,
        retry_after: None,
        close: false,
        events: false,
        length: Length::Known(0),
    };
    let mut length = None;
    for header in response.headers.iter() {
        let Some(framing) = head.take(header)? else {
            continue;
        };
        if length.replace(framing).is_some() {
            return Err(Broken::Malformed("its length is given twice"));
        }
    }
    head.length = match (status, length) {
        // RFC 9110, section 15.4.5: a length here is that of the body which is not sent.
        (204 | 304, _) => Length::Known(0),
        (_, Some(length)) => length,
        (_, None) => return Err(Broken::Malformed("its length is not given")),
    };
    Ok(Some((head, end)))
}

impl Head {
    /// Notes one header; answers the length of the body where it gives one.
    fn take(&mut self, header: &httparse::Header<'_>) -> Result<Option<Length>, Broken> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let text = std::str::from_utf8(header.value).map(str::trim).ok();
        if is("content-length") {
            return match text.filter(|text| text.bytes().all(|digit| digit.is_ascii_digit())) {
                Some(text) => match text.parse() {
                    Ok(length) => Ok(Some(Length::Known(length))),
                    Err(_) => Err(Broken::Malformed("its length is no number")),
                },
                None => Err(Broken::Malformed("its length is no number")),
            };
        }
        if is("transfer-encoding") {
            return match text {
                Some(text) if text.eq_ignore_ascii_case("chunked") => Ok(Some(Length::Chunked)),
                _ => Err(Broken::Malformed("its transfer encoding is unknown")),
            };
        }
        let Some(text) = text else { return Ok(None) };
        if is(VERSION_HEADER) {
            self.version = Some(text.into());
        } else if is(STALE_HEADER) {
            self.stale = text.eq_ignore_ascii_case("true");
        } else if is("retry-after") {
            self.retry_after = text.parse().ok().map(Duration::from_secs);
        } else if is("connection") {
            self.close |= text.eq_ignore_ascii_case("close");
        } else if is("content-type") {
            self.events = text.starts_with("text/event-stream");
        }
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(head: &str) -> Result<Option<(Head, usize)>, Broken> {
        parse_head(format!("{head}\r\n\r\n").as_bytes())
    }

    #[test]
    fn what_an_agent_would_not_send_is_refused() {
        for head in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0",
            "HTTP/1.1 100 Continue\r\nContent-Length: 0",
            "HTTP/1.1 200 OK\r\nX: no length",
            "HTTP/1.1 200 OK\r\nContent-Length: +1",
            "HTTP/1.1 200 OK\r\nContent-Length: ",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "SSH-2.0-OpenSSH",
        ] {
            assert!(matches!(parse(head), Err(Broken::Malformed(_))), "{head}");
        }
    }

    #[test]
    fn a_not_modified_answer_has_no_body_whatever_it_says() {
        for length in [
            "",
            "\r\nContent-Length: 8",
            "\r\nTransfer-Encoding: chunked",
        ] {
            let (head, _) = parse(&format!("HTTP/1.1 304 Not Modified{length}"))
                .unwrap()
                .unwrap();
            assert_eq!(head.length, Length::Known(0));
        }
    }

    #[test]
    fn a_head_is_whole_or_not_there_yet() {
        let text = "HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 8\r\nRetry-After: soon\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse_head(&text.as_bytes()[..end]), Ok(None));
        }
        let (head, end) = parse_head(text.as_bytes()).unwrap().unwrap();
        assert_eq!((head.length, end), (Length::Known(8), text.len()));
        assert_eq!(head.retry_after, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let _ = parse_head(&bytes);
        }
    }
}
