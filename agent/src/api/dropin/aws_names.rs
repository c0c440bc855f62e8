//! AWS's ids and ours: names, ARNs, version ids and stages.

use std::borrow::Cow;
use std::fmt::{self, Write};

use keyhatch_protocol::{Name, NameError};
use sha2::{Digest, Sha256};

use crate::api::request::Which;
use crate::cache::{Entry, Version};
use crate::config::Dropin;

/// The stage of the current version.
pub const CURRENT: &str = "AWSCURRENT";
/// The stage of the version before.
pub const PREVIOUS: &str = "AWSPREVIOUS";

/// AWS's version ids have this many characters, and its SDKs send no others.
const VERSION_ID: std::ops::RangeInclusive<usize> = 32..=64;

/// A version as AWS's requests may name it: by its id, by a stage, or by both, which then must agree.
#[derive(Debug, PartialEq, Eq)]
pub struct AwsVersion {
    id: Option<String>,
    stage: Option<String>,
}

impl AwsVersion {
    /// The version that a request asks for.
    pub fn wanted(id: Option<String>, stage: Option<String>) -> Which {
        match (&id, stage.as_deref()) {
            (None, None | Some(CURRENT)) => Which::Current,
            (None, Some(PREVIOUS)) => Which::Previous,
            _ => Which::Aws(Self { id, stage }),
        }
    }

    /// Whether it is named by its id.
    pub fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// Whether `version` of `entry` is the one.
    pub fn is(&self, entry: &Entry, version: &Version) -> bool {
        let own = version.id();
        let id_fits = |id: &String| **id == **own || **id == *version_id(own);
        let stage_fits = |wanted: &String| *wanted == stage(entry, version);
        self.id.as_ref().is_none_or(id_fits) && self.stage.as_ref().is_none_or(stage_fits)
    }

    /// What cannot be found, in AWS's words.
    pub fn what(&self) -> String {
        match (&self.id, &self.stage) {
            (Some(id), _) => format!("secret value for VersionId: {id}"),
            (None, Some(stage)) => format!("secret value for staging label: {stage}"),
            (None, None) => "secret value".into(),
        }
    }
}

/// The stage that a version has.
pub fn stage(entry: &Entry, version: &Version) -> &'static str {
    if version.id() == entry.current.id() {
        CURRENT
    } else {
        PREVIOUS
    }
}

/// The name that an id stands for: a friendly name, or an ARN, which counts by its name.
pub fn name(dropin: &Dropin, id: &str) -> Result<Name, NameError> {
    let own = name_in_arn(id).unwrap_or(id);
    let own = own.strip_prefix('/').unwrap_or(own);
    match &*dropin.aws_prefix {
        "" => Name::parse(own),
        prefix => Name::parse(&format!("{prefix}{own}")),
    }
}

/// What AWS calls a secret of ours; `None` where it is not one of those.
pub fn own<'a>(dropin: &Dropin, name: &'a Name) -> Option<&'a str> {
    name.as_str().strip_prefix(&dropin.aws_prefix)
}

/// The ARN of a secret: of no account and of no region, with a suffix of six characters as AWS's have.
pub struct Arn<'a>(pub &'a str);

impl fmt::Display for Arn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.0;
        write!(
            f,
            "arn:aws:secretsmanager:keyhatch:000000000000:secret:{own}-KeyHat"
        )
    }
}

/// `arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX`
fn name_in_arn(id: &str) -> Option<&str> {
    let mut parts = id.splitn(7, ':');
    let mut part = || parts.next();
    let (arn, _partition, service) = (part()?, part()?, part()?);
    let (_region, _account, kind, name) = (part()?, part()?, part()?, part()?);
    if (arn, service, kind) != ("arn", "secretsmanager", "secret") {
        return None;
    }
    Some(match name.rsplit_once('-') {
        Some((bare, suffix)) if is_suffix(suffix) && !bare.is_empty() => bare,
        _ => name,
    })
}

fn is_suffix(text: &str) -> bool {
    text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A version id of AWS's length: ours, with zeros before it where it is shorter, hashed where it is longer.
pub fn version_id(id: &str) -> Cow<'_, str> {
    if VERSION_ID.contains(&id.len()) {
        Cow::Borrowed(id)
    } else if id.len() < *VERSION_ID.start() {
        Cow::Owned(format!("{id:0>32}"))
    } else {
        let mut text = String::new();
        for byte in Sha256::digest(id.as_bytes()) {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Cow::Owned(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dropin(aws_prefix: &str) -> Dropin {
        Dropin {
            aws_prefix: aws_prefix.into(),
            ..Dropin::default()
        }
    }

    #[test]
    fn ids_map_to_names() {
        for (id, wanted) in [
            ("MySecretId", "aws/MySecretId"),
            ("/prod/db", "aws/prod/db"),
            (
                "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app/key-JmuQCJ",
                "aws/app/key",
            ),
            ("arn:aws-cn:secretsmanager:r:1:secret:key", "aws/key"),
            (
                "arn:aws:secretsmanager:r:1:secret:my-secret-a1B2c3",
                "aws/my-secret",
            ),
            (
                "arn:aws:secretsmanager:r:1:secret:a-seven77",
                "aws/a-seven77",
            ),
        ] {
            assert_eq!(name(&dropin("aws/"), id).unwrap().as_str(), wanted);
        }
        for id in [
            "",
            "/",
            "//a",
            "a b",
            "a/",
            "arn:aws:s3:::bucket",
            "rds!db-1",
            "..",
        ] {
            assert!(name(&dropin("aws/"), id).is_err(), "{id}");
        }
    }

    #[test]
    fn version_ids_have_the_length_that_sdks_ask_for() {
        let ours = "3-0123456789abcdef";
        assert_eq!(version_id(ours), "000000000000003-0123456789abcdef");
        let uuid = "0c9fb5d2-4ab2-4e3d-8d5f-2f3d3a4b5c6d";
        assert_eq!(version_id(uuid), uuid);
        assert_eq!(version_id(&"x".repeat(65)).len(), 64);
    }

    #[test]
    fn a_stage_and_an_id_choose_the_version() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(AwsVersion::wanted(None, None), Which::Current);
        assert_eq!(AwsVersion::wanted(None, text(CURRENT)), Which::Current);
        assert_eq!(AwsVersion::wanted(None, text(PREVIOUS)), Which::Previous);
        let pending = AwsVersion::wanted(None, text("AWSPENDING"));
        assert!(matches!(pending, Which::Aws(_)));
    }

    proptest! {
        #[test]
        fn our_own_arn_leads_back(text in "[a-zA-Z0-9/_+=.@-]{1,40}") {
            let dropin = dropin("");
            if let Ok(name_) = Name::parse(&text) {
                let back = name(&dropin, &Arn(own(&dropin, &name_).unwrap()).to_string()).unwrap();
                prop_assert_eq!(back, name_);
            }
        }
    }
}
