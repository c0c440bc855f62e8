//! What the answers of the native API mean.

use keyhatch_protocol::{BatchError, Health, ListReply, Name, RotateReply, Whoami};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::wire::Reply;
use crate::{Error, Secret, json};

/// Many secrets at once: those that were given, and why others were not.
#[derive(Debug, Default)]
pub struct Batch {
    /// The values given.
    pub secrets: Vec<Secret>,
    /// The names refused, each with its problem code.
    pub errors: Vec<BatchError>,
}

impl Batch {
    /// The secret called `name`, where it was given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.secrets
            .iter()
            .find(|secret| secret.name().as_str() == name)
    }
}

const BAD_JSON: Error = Error::Protocol("its JSON has another shape");

/// The answer to a request for a raw value.
pub(crate) fn value(name: &Name, reply: Reply) -> Result<Secret, Error> {
    let reply = good(reply)?;
    let Some(version) = reply.head.version else {
        return Err(Error::Protocol("a value came without its version"));
    };
    let stale = reply.head.stale;
    Ok(Secret::new(name.clone(), version, reply.body).stale(stale))
}

/// The answer to a long poll: `None` where nothing has changed.
pub(crate) fn change(name: &Name, reply: Reply) -> Result<Option<Secret>, Error> {
    if reply.head.status == 304 {
        return Ok(None);
    }
    value(name, reply).map(Some)
}

/// The answer to a request for the JSON form, kept as a secret whose value is the document.
pub(crate) fn document(name: &Name, reply: Reply) -> Result<Secret, Error> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
        stale: bool,
    }
    let reply = good(reply)?;
    let Version { version, stale } = serde_json::from_slice(&reply.body).map_err(|_| BAD_JSON)?;
    Ok(Secret::new(name.clone(), version, reply.body).stale(stale))
}

pub(crate) fn page(reply: Reply) -> Result<ListReply, Error> {
    plain(&good(reply)?)
}

/// The name to list on from. A server that names the same one again would be asked for ever.
pub(crate) fn advanced(before: Option<&str>, next: String) -> Result<String, Error> {
    if before.is_some_and(|before| next.as_str() <= before) {
        return Err(Error::Protocol("its list does not come to an end"));
    }
    Ok(next)
}

pub(crate) fn whoami(reply: Reply) -> Result<Whoami, Error> {
    plain(&good(reply)?)
}

/// Health is told with 503 as well.
pub(crate) fn health(reply: Reply) -> Result<Health, Error> {
    if reply.head.status == 503
        && let Ok(health) = plain(&reply)
    {
        return Ok(health);
    }
    plain(&good(reply)?)
}

#[derive(Deserialize)]
struct BatchReply<'a> {
    #[serde(borrow)]
    secrets: Vec<Item<'a>>,
    errors: Vec<BatchError>,
}

#[derive(Deserialize)]
struct Item<'a> {
    name: Name,
    version: String,
    #[serde(default)]
    stale: bool,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_base64: Option<&'a RawValue>,
}

/// Adds the answer to a batch request to `batch`.
pub(crate) fn batch(batch: &mut Batch, reply: Reply) -> Result<(), Error> {
    let reply = good(reply)?;
    let answer: BatchReply<'_> = serde_json::from_slice(&reply.body).map_err(|_| BAD_JSON)?;
    for item in answer.secrets {
        let value = decode(&item).ok_or(BAD_JSON)?;
        batch
            .secrets
            .push(Secret::new(item.name, item.version, value).stale(item.stale));
    }
    batch.errors.extend(answer.errors);
    Ok(())
}

fn decode(item: &Item<'_>) -> Option<Zeroizing<Vec<u8>>> {
    match (item.value, item.value_base64) {
        (Some(text), None) => json::string(text.get()),
        (None, Some(text)) => json::base64(text.get()),
        _ => None,
    }
}

/// The answer, where it is a 200; else the error that it tells of.
pub(crate) fn good(reply: Reply) -> Result<Reply, Error> {
    if reply.head.status == 200 {
        return Ok(reply);
    }
    let Reply { head, body } = reply;
    Err(Error::from_answer(head.status, head.retry_after, &body))
}

/// The answer to a request for a rotation, where it is a 202.
pub(crate) fn rotation(reply: &Reply) -> Result<RotateReply, Error> {
    let Reply { head, body } = reply;
    if head.status != 202 {
        return Err(Error::from_answer(head.status, head.retry_after, body));
    }
    plain(reply)
}

fn plain<T: DeserializeOwned>(reply: &Reply) -> Result<T, Error> {
    serde_json::from_slice(&reply.body).map_err(|_| BAD_JSON)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Reading, Step};

    fn reply(status: u16, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} x\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        let mut reading = Reading::new(4096);
        reading.space()[..text.len()].copy_from_slice(text.as_bytes());
        match reading.advance(text.len()).unwrap() {
            Step::Whole(reply) => reply,
            _ => panic!("not a whole answer"),
        }
    }

    #[test]
    fn a_batch_gives_values_in_either_form_and_shows_none() {
        let body = r#"{"secrets":[
            {"name":"a","version":"1","value":"CANARY-\u0031\n","stale":false},
            {"name":"b","version":"2","value_base64":"/wA="}],
            "errors":[{"name":"c","code":"denied"}]}"#;
        let mut all = Batch::default();
        batch(&mut all, reply(200, "", body)).unwrap();
        assert_eq!(all.get("a").unwrap().reveal(), b"CANARY-1\n");
        assert_eq!(all.get("b").unwrap().reveal(), b"\xff\0");
        assert_eq!(all.errors[0].code, "denied");
        assert!(!format!("{all:?}").contains("CANARY"));
    }

    #[test]
    fn no_error_quotes_what_came() {
        let name = Name::parse("a").unwrap();
        let wrong = r#""CANARY-2""#;
        let in_value =
            r#"{"secrets":[{"name":"a","version":"1","value":{"x":"CANARY-3"}}],"errors":[]}"#;
        for error in [
            document(&name, reply(200, "", wrong)).unwrap_err(),
            batch(&mut Batch::default(), reply(200, "", wrong)).unwrap_err(),
            batch(&mut Batch::default(), reply(200, "", in_value)).unwrap_err(),
            value(&name, reply(200, "", wrong)).unwrap_err(),
            value(&name, reply(500, "", wrong)).unwrap_err(),
        ] {
            assert!(
                !format!("{error:?} {error}").contains("CANARY"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn nothing_changed_is_no_error() {
        let name = Name::parse("a").unwrap();
        assert!(change(&name, reply(304, "", "")).unwrap().is_none());
        let changed = change(&name, reply(200, "Keyhatch-Version: 2\r\n", "CANARY-4")).unwrap();
        assert_eq!(changed.unwrap().version(), "2");
        assert!(matches!(
            change(&name, reply(403, "", "")),
            Err(Error::Denied(_))
        ));
    }

    #[test]
    fn health_is_read_from_a_503_too() {
        let body = r#"{"status":"unavailable","reasons":["sealed"],"missing":[]}"#;
        assert_eq!(health(reply(503, "", body)).unwrap().reasons, ["sealed"]);
        assert!(matches!(
            health(reply(503, "", "")),
            Err(Error::Unavailable(_))
        ));
    }
}
