//! Alerts as they are recorded: counted, and handed to whoever notifies somebody.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::event::Event;
use super::writer::held;

/// Alerts that wait at most; more are only in the log.
const WAITING: usize = 256;

/// What was told, and who listens.
pub(super) struct Alerts {
    tell: Sender<Vec<u8>>,
    told: Mutex<Option<Receiver<Vec<u8>>>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for Alerts {
    fn default() -> Self {
        let (tell, told) = channel(WAITING);
        Self {
            tell,
            told: Mutex::new(Some(told)),
            counts: Mutex::default(),
        }
    }
}

impl Alerts {
    /// Takes a record that was appended, if it is an alert.
    pub(super) fn take(&self, event: Event, line: &[u8]) {
        let Some(rule) = event.as_str().strip_prefix("alert.") else {
            return;
        };
        *held(&self.counts).entry(rule).or_default() += 1;
        // Where nobody listens, or too slowly, it is in the log all the same.
        let _ = self.tell.try_send(line.trim_ascii_end().to_vec());
    }

    /// The records from the start on; `None` for whoever asks second.
    pub(super) fn listen(&self) -> Option<Receiver<Vec<u8>>> {
        held(&self.told).take()
    }

    /// How many of each rule there were, none included.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let rules = Event::ALL
            .into_iter()
            .filter_map(|event| event.as_str().strip_prefix("alert."));
        let mut counts: BTreeMap<_, _> = rules.map(|rule| (rule, 0)).collect();
        counts.extend(&*held(&self.counts));
        counts
    }
}
