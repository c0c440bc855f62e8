//! What this host must have for a valid configuration to work, and what it lacks of the promises.

use crate::config::Config;
use crate::identity::Kernel;
use crate::policy::{Bot, Kind};
use crate::sys::harden;
use crate::sys::secret::Protection;

/// Why users cannot be told apart here, if so: then owners of files cannot be either.
#[must_use]
pub fn unseen_users() -> Option<String> {
    let why = "this process is in a user namespace that does not map all uids, so peers of other users cannot be \
               told apart; run it outside, without PrivateUsers=";
    (!harden::sees_all_uids()).then(|| why.to_owned())
}

/// What a valid configuration still needs of this host.
#[must_use]
pub fn preflight(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(unseen_users());
    if !harden::has_capability(harden::CAP_SYS_PTRACE) {
        let by_image = |bot: &&Bot| {
            [Kind::Exe, Kind::ExeSha256]
                .into_iter()
                .any(|kind| bot.selectors().has(kind))
        };
        problems.extend(config.policy.bots().iter().filter(by_image).map(|bot| {
            format!(
                "{}: bot {:?} is selected by exe or exe_sha256, which needs CAP_SYS_PTRACE to see other users' \
                 programs, add AmbientCapabilities=CAP_SYS_PTRACE to the unit, or select by unit",
                bot.place, bot.name
            )
        }));
    }
    problems
}

/// The promises that this host does not let the agent keep.
pub(super) fn missing(kernel: Kernel, protection: Protection) -> Vec<String> {
    let mut missing = kernel.missing();
    if protection == Protection::Locked {
        missing.push(
            "no memfd_secret (Linux 5.14; before 6.5 boot with secretmem.enable=1): values are in locked memory \
             that root can read"
                .to_owned(),
        );
    }
    missing
}
