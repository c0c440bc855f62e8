//! Ending a watch from another thread.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ends a [`super::Watch`] from another thread.
#[derive(Clone)]
pub struct Stop(Arc<Shared>);

struct Shared {
    /// A child that was forked has no thread to stop, and must leave its parent's stream alone.
    owner: u32,
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    stopped: bool,
    stream: Option<UnixStream>,
}

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(Shared {
            owner: process::id(),
            held: Mutex::default(),
            changed: Condvar::new(),
        }))
    }
}

impl Stop {
    /// The watch gives nothing more; a call that waits returns at once.
    pub fn stop(&self) {
        if self.0.owner != process::id() {
            return;
        }
        let mut held = self.lock();
        held.stopped = true;
        if let Some(stream) = held.stream.take() {
            // It fails only where the connection is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.0.changed.notify_all();
    }

    /// Whether it has been stopped.
    pub(super) fn is_set(&self) -> bool {
        self.lock().stopped
    }

    /// Waits, and answers whether it was stopped meanwhile.
    pub(super) fn wait(&self, pause: Duration) -> bool {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), pause, |held| !held.stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    /// The stream that is read from now on.
    pub(super) fn hold(&self, stream: &UnixStream) {
        let mut held = self.lock();
        if held.stopped {
            let _ = stream.shutdown(Shutdown::Both);
        }
        held.stream = stream.try_clone().ok();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
