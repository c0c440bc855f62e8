//! What it means that AWS, or the way to it, says no.
//!
//! Words that the other side sent are not passed on: known error codes are matched and named by their kind.

use std::error::Error;
use std::time::Duration;

use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_secretsmanager::config::http::HttpResponse;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};

use super::bounded::Beyond;
use crate::sources::upstream::Trouble;

/// Why a call has no result.
pub enum Refusal {
    /// A definite no about one secret.
    Absent(Absence),
    /// The secret is in no state for this; only `DescribeSecret` tells which.
    State,
    /// The endpoint has no such operation.
    Unsupported(Trouble),
    /// The credentials are not accepted, or there are none.
    Login(Trouble),
    /// Anything else.
    Trouble(Trouble),
}

/// Why a secret cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// AWS has none of this name, or no such value of it.
    #[error("there is no such secret, or it has no current value")]
    Missing,
    /// IAM, the secret's own policy or its key's.
    #[error("access denied; allow secretsmanager:GetSecretValue on it, and kms:Decrypt on its key")]
    Denied,
    /// It may still be restored.
    #[error("it is marked for deletion")]
    Deleted,
}

impl Refusal {
    /// What an error of the SDK means.
    pub fn of<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(why) = without_credentials(error) {
            return Self::Login(Trouble::outage(why));
        }
        match error {
            SdkError::ServiceError(refused) if refused.raw().status().is_success() => {
                Self::Trouble(unreadable(operation, error))
            }
            SdkError::ServiceError(refused) => {
                let raw = refused.raw();
                let retry_after = retry_after(raw.headers().get("retry-after"));
                Self::of_code(
                    operation,
                    error.code(),
                    Some(raw.status().as_u16()),
                    retry_after,
                )
            }
            SdkError::ResponseError(_) => Self::Trouble(unreadable(operation, error)),
            SdkError::TimeoutError(_) => outage(operation, "no answer in time"),
            _ => outage(operation, &innermost(error)),
        }
    }

    /// What an error code of the API means. Those about one secret of a batch come without a status.
    pub fn of_code(
        operation: &str,
        code: Option<&str>,
        status: Option<u16>,
        retry_after: Option<Duration>,
    ) -> Self {
        let code = code.unwrap_or_default();
        let unusable = |why: &str| Trouble::unusable(format!("{operation}: {why}"));
        match code {
            "ResourceNotFoundException" => return Self::Absent(Absence::Missing),
            "AccessDeniedException" | "AccessDenied" => return Self::Absent(Absence::Denied),
            "InvalidRequestException" => return Self::State,
            "DecryptionFailure" | "DecryptionFailureException" => {
                return Self::Trouble(unusable("AWS cannot decrypt it; look at its KMS key"));
            }
            "UnknownOperationException" | "InvalidAction" | "NotImplemented" => {
                return Self::Unsupported(unusable("the endpoint has no such operation"));
            }
            _ => {}
        }
        if let Some(why) = login(code) {
            return Self::Login(Trouble::outage(format!("{operation}: {why} ({code})")));
        }
        match passing(code, status) {
            Some(why) => Self::Trouble(Trouble::Outage {
                why: format!("{operation}: {why}"),
                retry_after,
            }),
            None => Self::Trouble(unusable("AWS answers with an error that is not known")),
        }
    }

    /// Whether other calls may well succeed.
    pub fn concerns_one_call(&self) -> bool {
        match self {
            Self::Absent(_) | Self::State | Self::Unsupported(_) => true,
            Self::Trouble(trouble) => matches!(trouble, Trouble::Unusable { .. }),
            Self::Login(_) => false,
        }
    }

    /// For a question about no secret in particular, or one whose absence says nothing.
    pub fn into_trouble(self) -> Trouble {
        match self {
            Self::Absent(Absence::Denied) => Trouble::unusable(
                "access denied; allow secretsmanager:ListSecrets, or name secrets without patterns",
            ),
            Self::Absent(absence) => Trouble::unusable(absence.to_string()),
            Self::State => Trouble::unusable("AWS calls the request invalid"),
            Self::Unsupported(trouble) | Self::Login(trouble) | Self::Trouble(trouble) => trouble,
        }
    }
}

/// The codes of credentials that are not accepted.
fn login(code: &str) -> Option<&'static str> {
    match code {
        "ExpiredTokenException" | "ExpiredToken" | "TokenRefreshRequired" => {
            Some("the credentials have expired; renew them where they come from")
        }
        "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "IncompleteSignature"
        | "IncompleteSignatureException" => Some(
            "AWS does not accept the signature; look at the secret access key and this host's clock",
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "AuthFailure"
        | "OptInRequired" => Some(
            "AWS does not accept the credentials; look at the access key and its session token",
        ),
        _ => None,
    }
}

/// What is expected to pass, and says nothing about a secret.
fn passing(code: &str, status: Option<u16>) -> Option<String> {
    let throttles = [
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "SlowDown",
    ];
    let fails = [
        "InternalServiceError",
        "InternalFailure",
        "ServiceUnavailable",
    ];
    if status == Some(429) || code.contains("Throttl") || throttles.contains(&code) {
        return Some("AWS throttles; raise `refresh`".into());
    }
    match status {
        Some(status @ 500..) => Some(format!("AWS failed (HTTP {status})")),
        // Whoever answers without a code is not Secrets Manager.
        Some(status) if code.is_empty() => Some(format!(
            "HTTP {status} from something that is not Secrets Manager; look at `endpoint_url`"
        )),
        _ => fails.contains(&code).then(|| "AWS failed".into()),
    }
}

fn outage(operation: &str, why: &str) -> Refusal {
    Refusal::Trouble(Trouble::outage(format!("{operation}: {why}")))
}

/// Why an answer cannot be read: it goes beyond its bounds, was cut short, or is something else.
fn unreadable(operation: &str, error: &(dyn Error + 'static)) -> Trouble {
    if let Some(beyond) = find::<Beyond>(error) {
        return Trouble::unusable(format!("{operation}: {beyond}"));
    }
    if find::<hyper::Error>(error).is_some() {
        return Trouble::outage(format!(
            "{operation}: the connection broke within the answer"
        ));
    }
    Trouble::unusable(format!(
        "{operation}: the answer is not one of Secrets Manager"
    ))
}

/// Why there are no credentials, if that is what an error says.
fn without_credentials(error: &(dyn Error + 'static)) -> Option<String> {
    let why = match find::<CredentialsError>(error) {
        Some(CredentialsError::CredentialsNotLoaded(_)) => {
            "no credentials: none in the environment, profile, web identity, container or instance metadata"
        }
        Some(CredentialsError::InvalidConfiguration(_)) => {
            "the configuration of the credentials is not valid"
        }
        Some(CredentialsError::ProviderTimedOut(_)) => "the credentials did not come in time",
        Some(_) if find::<ImdsError>(error).is_some() => {
            "no credentials: none in the environment, profile, web identity or container, and no instance \
             metadata answers"
        }
        Some(_) => "the source of the credentials failed",
        // Its type is not public.
        None if innermost(error).starts_with("identity resolver timed out") => {
            "the credentials did not come in time"
        }
        None => return None,
    };
    Some(format!(
        "{why}; `aws sts get-caller-identity`, run as the daemon's user, shows more"
    ))
}

fn retry_after(header: Option<&str>) -> Option<Duration> {
    header?.trim().parse().ok().map(Duration::from_secs)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// The first cause, which names it best: `Connection refused`, `invalid peer certificate: UnknownIssuer`.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .last()
        .map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: &str, status: u16) -> Refusal {
        Refusal::of_code("GetSecretValue", Some(code), Some(status), None)
    }

    fn is_outage(refusal: &Refusal) -> bool {
        matches!(refusal, Refusal::Trouble(Trouble::Outage { .. }))
    }

    #[test]
    fn a_definite_no_is_told_from_an_outage_and_from_a_login() {
        assert!(matches!(
            judged("ResourceNotFoundException", 400),
            Refusal::Absent(Absence::Missing)
        ));
        assert!(matches!(
            judged("AccessDeniedException", 400),
            Refusal::Absent(Absence::Denied)
        ));
        assert!(matches!(
            judged("InvalidRequestException", 400),
            Refusal::State
        ));
        for code in [
            "ExpiredTokenException",
            "UnrecognizedClientException",
            "InvalidSignatureException",
            "MissingAuthenticationTokenException",
        ] {
            assert!(
                matches!(judged(code, 400), Refusal::Login(Trouble::Outage { .. })),
                "{code}"
            );
        }
        for (code, status) in [
            ("ThrottlingException", 400),
            ("TooManyRequestsException", 429),
            ("", 429),
            ("InternalServiceError", 500),
            ("", 503),
            // A proxy's page, not AWS's word on the secret.
            ("", 403),
            ("", 404),
            ("", 307),
        ] {
            assert!(is_outage(&judged(code, status)), "{code} {status}");
        }
    }

    #[test]
    fn an_error_about_one_of_a_batch_needs_no_status() {
        let judged = |code| Refusal::of_code("BatchGetSecretValue", Some(code), None, None);
        assert!(is_outage(&judged("InternalServiceError")));
        assert!(is_outage(&judged("ThrottlingException")));
        assert!(matches!(
            judged("DecryptionFailure"),
            Refusal::Trouble(Trouble::Unusable { .. })
        ));
        assert!(judged("DecryptionFailure").concerns_one_call());
        assert!(!judged("ThrottlingException").concerns_one_call());
    }

    #[test]
    fn what_the_other_side_wrote_is_not_passed_on() {
        let Refusal::Trouble(Trouble::Unusable { why }) = judged("CANARY-code", 400) else {
            panic!("an unknown code is no answer about the upstream");
        };
        assert!(
            why.contains("not known") && !why.contains("CANARY"),
            "{why}"
        );
    }

    #[test]
    fn retry_after_counts_in_seconds() {
        assert_eq!(retry_after(Some(" 7 ")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(Some("Fri, 31 Dec 1999 23:59:59 GMT")), None);
        assert_eq!(retry_after(None), None);
        let judged = Refusal::of_code("ListSecrets", None, Some(503), Some(Duration::from_secs(7)));
        assert!(matches!(
            judged,
            Refusal::Trouble(Trouble::Outage { retry_after: Some(wait), .. }) if wait.as_secs() == 7
        ));
    }
}
