//! Stop: the last record is kept, values are wiped, and the sockets go.

use std::fs;

use super::Daemon;
use crate::audit::{Entry, Event};
use crate::config::Metrics;
use crate::sources::Asked;

impl Daemon {
    pub(super) fn stop(self) {
        let _ = self.context.audit.keep(&Entry::of(Event::AgentStopped));
        // The keeper may have ended already.
        let _ = self.keeper.send(Asked::Stop);
        self.context.cache.seal();
        self.context.audit.close();
        let metrics = match &self.config.agent.metrics {
            Some(Metrics::Unix(path)) => Some(path),
            _ => None,
        };
        for socket in [&self.config.agent.socket, &self.config.agent.admin_socket]
            .into_iter()
            .chain(metrics)
        {
            // Someone else may have removed it.
            let _ = fs::remove_file(socket);
        }
    }
}
