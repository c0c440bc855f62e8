//! What a route would send, with nothing of the secret: that is not even looked up.

use std::fmt;

use hyper::header::HeaderName;

use super::exchange::Outgoing;
use super::{headers, path, sigv4};
use crate::config::{self, Inject, Part, Piece, SigV4, Template};

/// Stands where the credential would.
const MASKED: &str = "***";

/// What is made of the configuration of a route, before any of it is sent.
#[derive(Default)]
struct Written {
    headers: Vec<(String, String)>,
    query: Vec<(String, String)>,
    /// What is no part of the head.
    besides: Vec<String>,
}

/// A request as it would leave.
pub struct Preview {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// In the order in which they are written.
    pub headers: Vec<(String, String)>,
    /// What goes with it and is no part of its head, or is shown on the way.
    pub besides: Vec<String>,
}

/// What would be sent.
#[must_use]
pub fn preview(route: &config::Route, outgoing: &Outgoing) -> Preview {
    let mut written = Written::default();
    route.inject.iter().for_each(|inject| written.add(inject));
    let signs = |inject: &Inject| matches!(inject, Inject::SigV4(_));
    let is_signed = route.inject.iter().any(signs);
    let target = if is_signed {
        sigv4::target(outgoing)
    } else {
        written.target(outgoing)
    };
    let names = written.headers.iter();
    let mut names: Vec<HeaderName> = names.filter_map(|(name, _)| name.parse().ok()).collect();
    if is_signed {
        names.extend(sigv4::OF_SIGNATURES.iter().cloned());
    }
    let mut headers = vec![("host".to_owned(), route.upstream.authority())];
    for (name, value) in &headers::to_upstream(&outgoing.headers, &names) {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers.push((name.to_string(), value.into_owned()));
    }
    headers.append(&mut written.headers);
    Preview {
        method: outgoing.method.to_string(),
        target,
        headers,
        besides: written.besides,
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} HTTP/1.1", self.method, self.target)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        self.besides
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Written {
    /// Path and query, with the injected parameters last.
    fn target(&self, outgoing: &Outgoing) -> String {
        let is_injected = |name: &str| self.query.iter().any(|(own, _)| own == name);
        let own = outgoing.target.query_without(is_injected);
        let own = Some(own).filter(|own| !own.is_empty());
        let injected = self.query.iter().map(|(name, value)| {
            let mut text = String::new();
            name.bytes()
                .for_each(|byte| path::escape_reserved(byte, &mut text));
            format!("{text}={value}")
        });
        let query: Vec<String> = own.into_iter().chain(injected).collect();
        let path = outgoing.target.encoded();
        if query.is_empty() {
            path
        } else {
            format!("{path}?{}", query.join("&"))
        }
    }

    fn add(&mut self, inject: &Inject) {
        match inject {
            Inject::Header { name, value } => self.header(name.as_str(), filled(value)),
            Inject::Query { name, value } => self.query.push((name.clone(), filled(value))),
            Inject::Basic { .. } => self.header("authorization", format!("Basic {MASKED}")),
            Inject::SigV4(sigv4) => self.signature(sigv4),
            Inject::Hmac(hmac) => {
                let signed = &hmac.template;
                let value = [pieces(&signed.before), MASKED.into(), pieces(&signed.after)];
                self.header(hmac.header.as_str(), value.concat());
                if let Some(name) = &hmac.timestamp {
                    self.header(name.as_str(), pieces(&[Piece::Timestamp]));
                }
            }
            Inject::OAuth2(oauth2) => {
                self.header("authorization", format!("Bearer {MASKED}"));
                let server = oauth2.server.authority();
                self.besides
                    .push(format!("with an access token from {server}"));
            }
            Inject::Mtls => self.besides.push("with a client certificate".into()),
        }
    }

    fn header(&mut self, name: &str, value: String) {
        self.headers.push((name.to_owned(), value));
    }

    fn signature(&mut self, sigv4: &SigV4) {
        let value = format!(
            "AWS4-HMAC-SHA256 of {} in {}: {MASKED}",
            sigv4.service, sigv4.region
        );
        self.header("authorization", value);
    }
}

fn filled(template: &Template) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Secret(_) => MASKED.to_owned(),
    };
    template.0.iter().map(part).collect()
}

fn pieces(pieces: &[Piece]) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Timestamp => "{timestamp}".to_owned(),
        Piece::Body => "{body}".to_owned(),
    };
    pieces.iter().map(piece).collect()
}
