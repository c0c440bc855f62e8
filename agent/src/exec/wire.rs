//! One question and one answer on a stream: two lengths, a JSON head, and bytes that no parser sees.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ExecError;

/// A command line is shorter.
const MOST_HEAD: usize = 128 * 1024;
/// Two values of a secret, escaped as JSON may have to.
pub const MOST_INPUT: usize = 1024 * 1024;

/// The lengths of head and body, four bytes each, the low one first.
pub const LENGTHS: usize = 8;

/// Which program to run. The body is its input.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    pub command: Vec<String>,
    pub user: Option<String>,
}

/// What became of it. The body is its output.
pub type Answer = Result<(), ExecError>;

/// Lengths and head, to be followed by the body.
pub fn start(head: &impl Serialize, body: &[u8]) -> io::Result<Vec<u8>> {
    let head = serde_json::to_vec(head)?;
    let length = |len: usize| u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput);
    let mut out = Vec::with_capacity(LENGTHS + head.len());
    out.extend_from_slice(&length(head.len())?.to_le_bytes());
    out.extend_from_slice(&length(body.len())?.to_le_bytes());
    out.extend_from_slice(&head);
    Ok(out)
}

/// How long head and body are, if they may be.
pub fn lengths(bytes: [u8; LENGTHS], most_body: usize) -> io::Result<(usize, usize)> {
    let (head, body) = bytes.split_at(LENGTHS / 2);
    let length = |bytes: &[u8]| {
        let low_first = bytes.iter().rev();
        low_first.fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte))
    };
    let (head, body) = (length(head), length(body));
    if head > MOST_HEAD || body > most_body {
        return Err(io::Error::other("a message that is too long"));
    }
    Ok((head, body))
}

/// The head of a message.
pub fn head<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

/// Writes a message whole.
pub fn send(to: &mut impl Write, about: &impl Serialize, body: &[u8]) -> io::Result<()> {
    to.write_all(&start(about, body)?)?;
    to.write_all(body)
}

/// Reads a message whole. The body is wiped when dropped.
pub fn receive<T: DeserializeOwned>(
    from: &mut impl Read,
    most_body: usize,
) -> io::Result<(T, Zeroizing<Vec<u8>>)> {
    let mut bytes = [0; LENGTHS];
    from.read_exact(&mut bytes)?;
    let (head_len, body_len) = lengths(bytes, most_body)?;
    let mut about = vec![0; head_len];
    from.read_exact(&mut about)?;
    let mut body = Zeroizing::new(vec![0; body_len]);
    from.read_exact(&mut body)?;
    Ok((head(&about)?, body))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_one_cut_short_or_too_long_does_not() {
        let question = Question {
            command: vec!["/bin/true".into(), "create".into()],
            user: Some("postgres".into()),
        };
        let mut sent = Vec::new();
        send(&mut sent, &question, b"CANARY-input").unwrap();
        let (back, body) = receive::<Question>(&mut &sent[..], MOST_INPUT).unwrap();
        assert_eq!((back.command, back.user), (question.command, question.user));
        assert_eq!(&body[..], b"CANARY-input");
        for len in 0..sent.len() {
            assert!(receive::<Question>(&mut &sent[..len], MOST_INPUT).is_err());
        }
        assert!(receive::<Question>(&mut &sent[..], 11).is_err());
        sent[3] = 0x7f;
        assert!(receive::<Question>(&mut &sent[..], MOST_INPUT).is_err());
    }
}
