//! The ways to ask for secrets, as records name them.

/// Which API a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Our own.
    Native,
    /// That of AWS's Secrets Manager Agent.
    AwsAgent,
    /// AWS Secrets Manager's own, JSON 1.1.
    Aws,
    /// The read side of Vault's KV version 2.
    Vault,
    /// A route: the secret is used, not read.
    Route,
    /// systemd, for a unit.
    Credential,
}

impl Surface {
    /// The word of the record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::AwsAgent => "aws-agent",
            Self::Aws => "aws",
            Self::Vault => "vault",
            Self::Route => "route",
            Self::Credential => "credential",
        }
    }
}
