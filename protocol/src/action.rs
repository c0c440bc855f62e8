//! What a peer may want to do with a secret or a route.

use std::fmt;
use std::str::FromStr;

/// One action of the policy. `use` is on routes, the others are on secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Read the value.
    Read,
    /// See that the secret exists, and its version.
    List,
    /// Be told of rotations.
    Watch,
    /// Start a rotation.
    Rotate,
    /// Use the secret behind a route without seeing it.
    Use,
}

impl Action {
    /// Every action, in the order of the contract.
    pub const ALL: [Self; 5] = [Self::Read, Self::List, Self::Watch, Self::Rotate, Self::Use];

    /// The word used in configuration, records and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Rotate => "rotate",
            Self::Use => "use",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Action {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|a| a.as_str() == word).ok_or(())
    }
}
