//! How the command fails: a message for people, an exit code for scripts.

use std::io;
use std::process::ExitCode;

use keyhatch::Error;

use crate::output::visible;

/// Why a verb did not do what it was asked.
pub enum Failure {
    /// The client's error, and what was being done.
    Client(String, Error),
    /// Standard output, or a file, could not be written.
    Output(io::Error),
    /// A message of the command's own, with its exit code.
    Said(u8, String),
    /// The exit code of a child, or of a finding that has been told.
    Code(u8),
    /// Nobody reads standard output any more, which is no failure of a list or a stream.
    NobodyReads,
}

impl Failure {
    /// The command line asks for something that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Said(2, message.into())
    }

    /// The system refuses.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Said(1, message.into())
    }

    /// The policy says no.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::Said(77, message.into())
    }

    /// A file that tells what to do is wrong.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::Said(78, message.into())
    }

    /// The command to run is not there, or is no program: the codes that shells have for both.
    pub fn cannot_run(program: &str, cause: &io::Error) -> Self {
        let code = if cause.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        };
        Self::Said(code, format!("cannot run {program}: {cause}"))
    }

    /// Tells of the failure on standard error and answers the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Client(what, error) => {
                eprintln!(
                    "keyhatch: {}: {}",
                    visible(&what),
                    visible(&error.to_string())
                );
                if let Some(hint) = hint(&error) {
                    eprintln!("  {hint}");
                }
                code(&error).into()
            }
            Self::Output(error) => {
                eprintln!("keyhatch: cannot write: {error}");
                ExitCode::FAILURE
            }
            Self::Said(code, message) => {
                eprintln!("keyhatch: {}", visible(&message));
                code.into()
            }
            Self::Code(code) => code.into(),
            Self::NobodyReads => ExitCode::SUCCESS,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Output(error),
        }
    }
}

/// The exit code of the contract; the numbers are those of `sysexits.h`.
pub fn code(error: &Error) -> u8 {
    match error {
        Error::BadRequest(_) | Error::Name { .. } | Error::Input(_) => 2,
        Error::NotFound(_) => 66,
        Error::Refused { .. } | Error::Unreachable { .. } | Error::TimedOut { .. } => 69,
        Error::Sealed(_) | Error::Unavailable(_) | Error::RateLimited { .. } => 75,
        Error::Denied(_) | Error::Quarantined(_) => 77,
        Error::Failed(reason) if reason.code == "in_grace" => 75,
        _ => 1,
    }
}

/// What to do next, where that is not in the message.
pub fn hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::Denied(_) => match error.request_id() {
            Some(id) => format!(
                "an operator can see why: keyhatchd explain --request {}",
                visible(id)
            ),
            None => "see who the agent thinks you are: keyhatch whoami".into(),
        },
        Error::Quarantined(_) => "an operator releases it: keyhatchd quarantine release BOT".into(),
        Error::Sealed(_) => "an operator unseals it: keyhatchd unseal".into(),
        Error::RateLimited {
            retry_after: Some(wait),
            ..
        } => {
            format!("try again in {} seconds", wait.as_secs())
        }
        Error::Unreachable { .. } => {
            "is keyhatchd running? Another socket is given by --socket or KEYHATCH_SOCKET".into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyhatch::{Address, Reason};

    fn reason(code: &str) -> Reason {
        Reason {
            status: 503,
            code: code.into(),
            detail: "so it is".into(),
            request_id: Some("r-1".into()),
        }
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let socket = Address::at("/run/x");
        for (error, expected) in [
            (
                Error::Refused {
                    socket: socket.clone(),
                    uid: 1001,
                },
                69,
            ),
            (
                Error::Unreachable {
                    socket,
                    cause: io::ErrorKind::NotFound.into(),
                },
                69,
            ),
            (Error::BadRequest(reason("bad_request")), 2),
            (Error::Input("no"), 2),
            (Error::NotFound(reason("not_found")), 66),
            (Error::Sealed(reason("sealed")), 75),
            (Error::Unavailable(reason("audit_unavailable")), 75),
            (
                Error::RateLimited {
                    reason: reason("rate_limited"),
                    retry_after: None,
                },
                75,
            ),
            (Error::Denied(reason("denied")), 77),
            (Error::Quarantined(reason("quarantined")), 77),
            (Error::Failed(reason("internal")), 1),
            (Error::Failed(reason("in_grace")), 75),
            (Error::Protocol("odd"), 1),
        ] {
            assert_eq!(code(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn a_denial_leads_to_its_audit_record() {
        let hint = hint(&Error::Denied(reason("denied")));
        assert!(hint.is_some_and(|hint| hint.ends_with("explain --request r-1")));
    }
}
