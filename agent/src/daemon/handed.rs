//! The sockets that the service manager has bound for us. They outlive this process: who connects while
//! nobody serves waits for the next daemon instead of failing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};

use super::error::StartError;
use crate::api::credentials::HELD;
use crate::sys::manager::Handed;

/// One of each at most, by the names that the units give them (`FileDescriptorName=`).
#[derive(Default)]
pub(super) struct HandedSockets {
    pub bots: Option<UnixListener>,
    pub admin: Option<UnixListener>,
    pub metrics: Option<UnixListener>,
    pub credentials: Option<UnixListener>,
    /// Connections that the daemon before had not answered whole when it died.
    pub unanswered: Vec<UnixStream>,
}

impl HandedSockets {
    /// Sorts out what was handed over. All that is wrong with it is told.
    pub fn sort(handed: Vec<Handed>) -> Result<Self, StartError> {
        let mut sorted = Self::default();
        let problems: Vec<String> = handed
            .into_iter()
            .filter_map(|(name, socket)| sorted.put(&name, socket).err())
            .collect();
        if problems.is_empty() {
            Ok(sorted)
        } else {
            Err(StartError::Config(problems))
        }
    }

    fn put(&mut self, name: &str, socket: OwnedFd) -> Result<(), String> {
        let place = match name {
            "bots" => &mut self.bots,
            "admin" => &mut self.admin,
            "metrics" => &mut self.metrics,
            "credentials" => &mut self.credentials,
            HELD => {
                self.unanswered.push(UnixStream::from(socket));
                return Ok(());
            }
            other => {
                return Err(format!(
                    "the service manager passed a socket named {other:?}; a unit names it bots, admin, metrics or \
                     credentials with FileDescriptorName="
                ));
            }
        };
        if !listens(&socket) {
            return Err(format!(
                "the service manager passed {name:?}, which is not a listening Unix stream socket; its unit needs \
                 ListenStream= with a path"
            ));
        }
        if place.is_some() {
            return Err(format!(
                "the service manager passed two sockets named {name:?}; give each its own FileDescriptorName="
            ));
        }
        // It is not listened on anew: clients would see the credentials of who did that last, and of a
        // socket in root's folder they expect root's.
        *place = Some(UnixListener::from(socket));
        Ok(())
    }
}

fn listens(socket: &OwnedFd) -> bool {
    getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok()
        && getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(socket, sockopt::AcceptConn) == Ok(true)
}
