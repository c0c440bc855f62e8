//! `hmac` of `inject`: a header with a signature of the body, as those who receive webhooks check it.

use hyper::header::{HeaderName, HeaderValue};

use super::header_name;
use crate::config::section::{Value, one_of};
use crate::policy::{At, Report};

/// A signature of the body under the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hmac {
    /// The header that carries it.
    pub header: HeaderName,
    /// Under which hash.
    pub algorithm: Algorithm,
    /// The header's value.
    pub template: Signed,
    /// A header that carries the time besides.
    pub timestamp: Option<HeaderName>,
}

/// The hash of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC-SHA-256.
    Sha256,
    /// HMAC-SHA-512.
    Sha512,
}

/// How the bytes of a signature are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// In small letters.
    Hex,
    /// With padding.
    Base64,
}

/// A header's value with a signature in it, and what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What stands before the signature.
    pub before: Vec<Piece>,
    /// How the signature is written.
    pub encoding: Encoding,
    /// What is signed.
    pub message: Vec<Piece>,
    /// What stands after it.
    pub after: Vec<Piece>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Written as it stands.
    Text(String),
    /// The seconds since 1970.
    Timestamp,
    /// The request's body.
    Body,
}

const ALGORITHMS: [(&str, Algorithm); 2] =
    [("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)];
const ENCODINGS: [(&str, Encoding); 2] = [("{hex:", Encoding::Hex), ("{base64:", Encoding::Base64)];

const ONE: &str = "the signature's place in it is one {hex:...} or {base64:...} around what is signed, as in \
     \"t={timestamp},v1={hex:{timestamp}.{body}}\"";
const PLACES: &str = "the places in it are {timestamp}, and {body} where it is signed";

impl Hmac {
    /// The headers that it fills.
    pub(super) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        std::iter::once(&self.header).chain(&self.timestamp)
    }
}

impl Signed {
    /// Reads `text {hex:{timestamp}.{body}} text`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let found = ENCODINGS
            .into_iter()
            .find_map(|(opens, encoding)| Some((text.split_once(opens)?, encoding)));
        let ((before, rest), encoding) = found.ok_or(ONE)?;
        let (message, after) = rest.split_at(closing(rest).ok_or(ONE)?);
        let message = pieces(message)?;
        if !message.contains(&Piece::Body) {
            return Err("it signs no {body}, put it between the braces of the signature");
        }
        let (before, after) = (pieces(before)?, pieces(&after[1..])?);
        if before
            .iter()
            .chain(&after)
            .any(|piece| *piece == Piece::Body)
        {
            return Err(PLACES);
        }
        Ok(Self {
            before,
            encoding,
            message,
            after,
        })
    }

    /// Whether the time is a part of it.
    #[must_use]
    pub fn has_timestamp(&self) -> bool {
        let mut all = self.before.iter().chain(&self.message).chain(&self.after);
        all.any(|piece| *piece == Piece::Timestamp)
    }
}

/// Where the brace closes that was open before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    text.bytes().position(|byte| {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        open == 0
    })
}

fn pieces(text: &str) -> Result<Vec<Piece>, &'static str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, place) = rest.split_at(at);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let places = [("{timestamp}", Piece::Timestamp), ("{body}", Piece::Body)];
        let found = places
            .into_iter()
            .find_map(|(name, piece)| Some((place.strip_prefix(name)?, piece)));
        let (after, piece) = found.ok_or(PLACES)?;
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

pub(super) fn read(value: &Value<'_>, report: &mut Report) -> Option<Hmac> {
    let section = value.section("`hmac`", report)?;
    section.check_keys(&["header", "algorithm", "template", "timestamp"], report);
    let header = section
        .required("header", "\"x-hub-signature-256\"", report)
        .and_then(|value| value.string(report))
        .and_then(|name| header_name("header", &name, report));
    let algorithm = section
        .required("algorithm", "\"sha256\"", report)
        .and_then(|value| value.string(report))
        .and_then(|name| one_of(&name, "algorithm", &ALGORITHMS, report));
    let template = section
        .required("template", "\"sha256={hex:{body}}\"", report)
        .and_then(|value| value.string(report))
        .and_then(|text| template(&text, report));
    let timestamp = match section.string("timestamp", report) {
        None => None,
        Some(name) => Some((header_name("timestamp", &name, report)?, name.place)),
    };
    let template = template?;
    if let Some((_, place)) = &timestamp
        && !template.has_timestamp()
    {
        let text = "`timestamp` names a header for the time, but `template` has no {timestamp}, leave one of them out";
        report.error(place, text);
        return None;
    }
    let header = header?;
    if let Some((name, place)) = &timestamp
        && *name == header
    {
        let text = format!(
            "`timestamp` is {:?}, which has the signature, name another",
            name.as_str()
        );
        report.error(place, text);
        return None;
    }
    Some(Hmac {
        header,
        algorithm: algorithm?,
        template,
        timestamp: timestamp.map(|(name, _)| name),
    })
}

fn template(text: &At<&str>, report: &mut Report) -> Option<Signed> {
    let found = Signed::parse(text.value).and_then(|template| {
        let mut around = template.before.iter().chain(&template.after);
        let fits = around.all(|piece| match piece {
            Piece::Text(text) => HeaderValue::from_str(text).is_ok(),
            Piece::Timestamp | Piece::Body => true,
        });
        fits.then_some(template)
            .ok_or("it has characters that no header can hold, leave them out")
    });
    found
        .map_err(|why| {
            let problem = format!("`template` is {:?}, {why}", text.value);
            report.error(&text.place, problem);
        })
        .ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[test]
    fn templates_say_what_is_signed_and_where_it_stands() {
        let stripe = Signed::parse("t={timestamp},v1={hex:{timestamp}.{body}},s").unwrap();
        let signed = Signed {
            before: vec![text("t="), Piece::Timestamp, text(",v1=")],
            encoding: Encoding::Hex,
            message: vec![Piece::Timestamp, text("."), Piece::Body],
            after: vec![text(",s")],
        };
        assert_eq!(stripe, signed);
        assert!(stripe.has_timestamp());
        let shopify = Signed::parse("{base64:{body}}").unwrap();
        assert_eq!(shopify.encoding, Encoding::Base64);
        assert!(shopify.before.is_empty() && !shopify.has_timestamp());
        for bad in [
            "",
            "{body}",
            "sha256=",
            "{hex:}",
            "{hex:{timestamp}}",
            "{hex:{body}",
            "{hex:{bodies}}",
            "{hex:{body}}}",
            "{hex:{body}} {body}",
            "{hex:{body}} {base64:{body}}",
            "{hex:{hex:{body}}}",
            "{secret}{hex:{body}}",
        ] {
            assert!(Signed::parse(bad).is_err(), "{bad}");
        }
    }
}
