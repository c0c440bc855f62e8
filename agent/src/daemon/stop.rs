//! Stop: the last record is kept, values are wiped, and the sockets go.

use std::fs;
use std::path::PathBuf;

use super::Daemon;
use crate::audit::{Entry, Event};
use crate::sources::Asked;

impl Daemon {
    /// `bound` are the sockets that this process made; what the service manager made stays.
    pub(super) fn stop(self, bound: &[PathBuf]) {
        self.context.detect.save();
        let _ = self.context.audit.keep(&Entry::of(Event::AgentStopped));
        // The keeper may have ended already.
        let _ = self.keeper.send(Asked::Stop);
        self.context.cache.seal();
        self.context.audit.close();
        for socket in bound.iter().chain(self.credentials.bound()) {
            // Someone else may have removed it.
            let _ = fs::remove_file(socket);
        }
    }
}
