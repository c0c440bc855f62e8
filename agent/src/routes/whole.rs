//! How much of the daemon's memory the bodies may take that are read whole before they leave: each bot has a share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::failure::Failure;

/// A body that is signed is read first, up to this size.
pub const LARGEST: u64 = 8 << 20;

/// How many bytes of one bot's are read, or on their way, at once.
pub const SHARE: u64 = 32 << 20;

/// What each bot has taken.
#[derive(Default)]
pub struct Shares(Mutex<HashMap<Box<str>, u64>>);

/// Room for one body, until it is dropped.
pub struct Room {
    shares: Arc<Shares>,
    bot: Box<str>,
    bytes: u64,
}

impl Shares {
    /// Room for a body of a bot's that is announced to have `announced` bytes.
    pub fn room(shares: &Arc<Self>, bot: &str, announced: Option<u64>) -> Result<Room, Failure> {
        let bytes = announced.unwrap_or(LARGEST);
        if bytes > LARGEST {
            return Err(Failure::TooLargeToSign);
        }
        let mut taken = shares.taken();
        let of_bot = taken.entry(bot.into()).or_default();
        if *of_bot + bytes > SHARE {
            return Err(Failure::NoRoom);
        }
        *of_bot += bytes;
        Ok(Room {
            shares: Arc::clone(shares),
            bot: bot.into(),
            bytes,
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Box<str>, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// How many bytes fit in.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The body, which keeps its room for as long as any of it is there.
    pub fn holds(self, body: Bytes) -> Bytes {
        struct Held(Bytes, #[allow(dead_code)] Room);
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Held(body, self))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        if let Some(of_bot) = taken.get_mut(&self.bot) {
            *of_bot -= self.bytes;
            if *of_bot == 0 {
                taken.remove(&self.bot);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_bot_has_a_share_and_gives_it_back() {
        let shares = Arc::new(Shares::default());
        let room = |bot: &str, bytes| Shares::room(&shares, bot, bytes);
        assert!(matches!(
            room("a", Some(LARGEST + 1)),
            Err(Failure::TooLargeToSign)
        ));
        let mut held: Vec<Bytes> = (0..4)
            .map(|_| room("a", None).unwrap().holds(Bytes::from_static(b"x")))
            .collect();
        assert!(matches!(room("a", Some(1)), Err(Failure::NoRoom)));
        assert!(room("b", None).is_ok());
        let again = held[0].clone();
        held.clear();
        drop(room("a", Some(SHARE - LARGEST - LARGEST)));
        assert!(room("a", Some(LARGEST)).is_ok());
        assert_eq!(
            shares.taken()["a"],
            LARGEST,
            "a copy of the body is the body"
        );
        drop(again);
        assert!(shares.taken().is_empty());
    }
}
