//! The kinds of events that are recorded: their names, journal message ids and priorities.

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A value was asked for.
    SecretRead,
    /// Names were asked for.
    SecretList,
    /// A watch or a long poll began or woke.
    SecretWatch,
    /// A route is about to use a secret.
    SecretUse,
    /// A route's request ended.
    SecretUsed,
    /// A rotation was asked for.
    SecretRotate,
    /// A new version is served.
    SecretRotated,
    /// A secret is gone from its source.
    SecretRemoved,
    /// The encrypted store was written.
    StoreChanged,
    /// A source does not answer; last good values are served.
    SourceDegraded,
    /// A source answers again.
    SourceRecovered,
    /// A source answered with something that is not served.
    SourceRejected,
    /// A policy took effect.
    PolicyLoaded,
    /// A policy was refused; the running one stays.
    PolicyRejected,
    /// The daemon serves.
    AgentStarted,
    /// The daemon ends in order.
    AgentStopped,
    /// Every value was wiped.
    AgentSealed,
    /// Values are served again.
    AgentUnsealed,
    /// An operator asked for a reload.
    AdminReloaded,
    /// An operator sealed the agent.
    AdminSealed,
    /// An operator unsealed the agent.
    AdminUnsealed,
    /// An operator released a bot from quarantine.
    AdminReleased,
    /// An operator approved a held request.
    AdminApproved,
    /// An operator accepted an older copy of the store.
    AdminAcceptedOlder,
    /// Someone who is no admin asked on the admin socket.
    AdminDenied,
    /// An operator asked for a store verb.
    AdminStore,
    /// Segments were deleted by retention.
    AuditExpired,
    /// A sealed checkpoint of the chain.
    AuditCheckpoint,
    /// A honeytoken was asked for.
    AlertHoneytoken,
    /// A peer tries many names that it is denied.
    AlertNameScan,
    /// A bot asks far more often than it used to.
    AlertUnusualRate,
    /// A bot read a secret that it never read before.
    AlertFirstRead,
    /// A bot is active at an hour when it never was.
    AlertUnusualHour,
    /// A bot runs another program than before.
    AlertExeChanged,
    /// A bot still uses a version past its grace time.
    AlertStaleVersion,
    /// A process reads on although its unit has stopped.
    AlertUnitStopped,
    /// A segment was changed by someone else, or does not verify.
    AlertChainBroken,
    /// A rotation failed.
    AlertRotationFailed,
    /// A source offers what must not be served.
    AlertSourceRejected,
    /// Denials past a rate were counted and not recorded one by one.
    AlertFlood,
    /// Records went before the time they were to be kept.
    AlertAuditShort,
    /// A route's upstream answered with the secret in it; it was written over.
    AlertMasked,
}

impl Event {
    /// Every event, in the order of the documentation.
    pub const ALL: [Self; 42] = [
        Self::SecretRead,
        Self::SecretList,
        Self::SecretWatch,
        Self::SecretUse,
        Self::SecretUsed,
        Self::SecretRotate,
        Self::SecretRotated,
        Self::SecretRemoved,
        Self::StoreChanged,
        Self::SourceDegraded,
        Self::SourceRecovered,
        Self::SourceRejected,
        Self::PolicyLoaded,
        Self::PolicyRejected,
        Self::AgentStarted,
        Self::AgentStopped,
        Self::AgentSealed,
        Self::AgentUnsealed,
        Self::AdminReloaded,
        Self::AdminSealed,
        Self::AdminUnsealed,
        Self::AdminReleased,
        Self::AdminApproved,
        Self::AdminAcceptedOlder,
        Self::AdminDenied,
        Self::AdminStore,
        Self::AuditExpired,
        Self::AuditCheckpoint,
        Self::AlertHoneytoken,
        Self::AlertNameScan,
        Self::AlertUnusualRate,
        Self::AlertFirstRead,
        Self::AlertUnusualHour,
        Self::AlertExeChanged,
        Self::AlertStaleVersion,
        Self::AlertUnitStopped,
        Self::AlertChainBroken,
        Self::AlertRotationFailed,
        Self::AlertSourceRejected,
        Self::AlertFlood,
        Self::AlertAuditShort,
        Self::AlertMasked,
    ];

    /// The name in records, such as `secret.read`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The `MESSAGE_ID` of its journal entries, the key into the message catalog.
    #[must_use]
    pub fn message_id(self) -> &'static str {
        self.row().1
    }

    /// The event of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == name)
    }

    /// The syslog priority: 6 for what was allowed or merely happened, 4 for a denial, 1 or 2 for alerts.
    #[must_use]
    pub fn priority(self, decision: Verdict) -> u8 {
        match self {
            Self::AlertHoneytoken | Self::AlertChainBroken => 1,
            alert if alert.as_str().starts_with("alert.") => 2,
            _ if decision == Verdict::Deny => 4,
            _ => 6,
        }
    }

    const fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::SecretRead => ("secret.read", "d3432b0575944eaea2a8ee1e64dd2cdd"),
            Self::SecretList => ("secret.list", "82451ec14c2e41248e3947115730cb78"),
            Self::SecretWatch => ("secret.watch", "ee71e302d5924a31a33b7f1e01ea430b"),
            Self::SecretUse => ("secret.use", "61b0531dab2640a5b55c29eda25c944c"),
            Self::SecretUsed => ("secret.used", "f449bc6be425414292acc7f6393db1d6"),
            Self::SecretRotate => ("secret.rotate", "e8853ce5e85a442c914b7eeafc848940"),
            Self::SecretRotated => ("secret.rotated", "8a380691b3f54a29ab750fa810429c4e"),
            Self::SecretRemoved => ("secret.removed", "14d5222b9e954148a65a24d13ac7c16e"),
            Self::StoreChanged => ("store.changed", "557a3670994a404683594f016c9723bc"),
            Self::SourceDegraded => ("source.degraded", "344ad1df4e4547a59652e28b74e34f1c"),
            Self::SourceRecovered => ("source.recovered", "72ea9019f3b745cc8fb7f2d28114382e"),
            Self::SourceRejected => ("source.rejected", "a6d9f69eebf748c6871678248a273f82"),
            Self::PolicyLoaded => ("policy.loaded", "e8d3a2cb32f84b08860a0b43f7e33063"),
            Self::PolicyRejected => ("policy.rejected", "a6238e4142354e50828c8667f190a17b"),
            Self::AgentStarted => ("agent.started", "75189c555402411380ae1478756c4ccd"),
            Self::AgentStopped => ("agent.stopped", "eef1a16e11a744278d36c94874bdb327"),
            Self::AgentSealed => ("agent.sealed", "48e95fbef0704df2858b8125a5566f5a"),
            Self::AgentUnsealed => ("agent.unsealed", "350a36ace4244b888d894f9b7a1a0f42"),
            Self::AdminReloaded => ("admin.reloaded", "50238148838c4fc58add76fdfc4c990b"),
            Self::AdminSealed => ("admin.sealed", "bfcf67fa00544c379dcf3162fe013776"),
            Self::AdminUnsealed => ("admin.unsealed", "261052f614704355bf487d1444f4b6f3"),
            Self::AdminReleased => ("admin.released", "4a28a9391dd64a9eba100ae88a7c9174"),
            Self::AdminApproved => ("admin.approved", "d1785c5cda7746d086f29ee527f38f87"),
            Self::AdminAcceptedOlder => {
                ("admin.accepted_older", "a0ac07d2e87f43428c24bb6915b2cbff")
            }
            Self::AdminStore => ("admin.store", "0c3f7a5e2b9d4c1e8f60a7b4d2935e18"),
            Self::AdminDenied => ("admin.denied", "5f0b1d9a6c3e4d7b8a2f1c0e9d8b7a65"),
            Self::AuditExpired => ("audit.expired", "e47dc72d268e475491bb84e943dc6db3"),
            Self::AuditCheckpoint => ("audit.checkpoint", "c97a14a06e3f47929f1e6f58a8666748"),
            Self::AlertHoneytoken => ("alert.honeytoken", "0ed9b318f47d47d8a2bfbb598bb8f094"),
            Self::AlertNameScan => ("alert.name_scan", "24dd87ba1915457c85cae5cf6fef33cc"),
            Self::AlertUnusualRate => ("alert.unusual_rate", "d6163f22824342ca913c5b9585ac9a5e"),
            Self::AlertFirstRead => ("alert.first_read", "0f968a8fcdc34123a1e26fff971a9593"),
            Self::AlertUnusualHour => ("alert.unusual_hour", "04e2f2a916a64ec68e3e6297ef8dd5ba"),
            Self::AlertExeChanged => ("alert.exe_changed", "56a5250c71ce4deeb9793b7e55d4aabc"),
            Self::AlertStaleVersion => ("alert.stale_version", "4b31424a735d4faaa15d78c2439fa446"),
            Self::AlertUnitStopped => ("alert.unit_stopped", "7be1c0d43a5f4f0e9a6d2c58e0b17f93"),
            Self::AlertChainBroken => ("alert.chain_broken", "ea604dfc803241229809b4967da9b7ba"),
            Self::AlertRotationFailed => {
                ("alert.rotation_failed", "bba13e44b52f4788bb9be3ee5694561a")
            }
            Self::AlertSourceRejected => {
                ("alert.source_rejected", "ff06f4af81f54885b799de6032de2011")
            }
            Self::AlertFlood => ("alert.flood", "6ae26e7c68e443998f98cd87f41c225a"),
            Self::AlertAuditShort => ("alert.audit_short", "caa319b0703d4578a1968fccffb6cc67"),
            Self::AlertMasked => ("alert.masked", "9d2f4c7be0a1463c8e55b3f7a9160c2d"),
        }
    }
}

/// How a request was decided; `Info` where nothing was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It was granted.
    Allow,
    /// It was refused.
    Deny,
    /// It merely happened.
    Info,
}

impl Verdict {
    /// That of a decision.
    #[must_use]
    pub fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }

    /// `allow`, `deny` or `info`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Info => "info",
        }
    }

    /// The verdict of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Allow, Self::Deny, Self::Info]
            .into_iter()
            .find(|verdict| verdict.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_message_ids_are_unique() {
        let names: HashSet<_> = Event::ALL.iter().map(|event| event.as_str()).collect();
        let ids: HashSet<_> = Event::ALL.iter().map(|event| event.message_id()).collect();
        assert_eq!(
            (names.len(), ids.len()),
            (Event::ALL.len(), Event::ALL.len())
        );
        for event in Event::ALL {
            assert_eq!(Event::named(event.as_str()), Some(event));
        }
    }

    #[test]
    fn every_event_is_in_the_journal_catalog() {
        let catalog = include_str!("../../../systemd/keyhatch.catalog");
        for event in Event::ALL {
            let id = event.message_id();
            assert!(
                catalog.contains(&format!("-- {id}\n")),
                "{} lacks an entry",
                event.as_str()
            );
        }
    }
}
