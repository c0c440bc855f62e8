//! `sigv4` of `inject`: requests signed as AWS's services want them.

use crate::config::section::Value;
use crate::policy::{At, Report};

/// What a signature is for. The secret has the fields `access_key_id`, `secret_access_key` and, where the credentials
/// are temporary, `session_token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigV4 {
    /// Such as `eu-west-1`.
    pub region: String,
    /// The service's name in signatures, such as `s3`.
    pub service: String,
}

pub(super) fn read(value: &Value<'_>, report: &mut Report) -> Option<SigV4> {
    let section = value.section("`sigv4`", report)?;
    section.check_keys(&["region", "service"], report);
    let mut word = |key: &str, example: &str| {
        let At { value, place } = section.required(key, example, report)?.string(report)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if value.is_empty() || !value.bytes().all(fits) {
            let text = format!("`{key}` is {value:?}, write it as {example}");
            report.error(&place, text);
            return None;
        }
        Some(value.to_owned())
    };
    let region = word("region", "\"eu-west-1\"");
    let service = word("service", "\"s3\"");
    Some(SigV4 {
        region: region?,
        service: service?,
    })
}
