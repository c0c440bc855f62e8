//! `oauth2` of `inject`: an access token that the agent gets itself.

use hyper::Uri;

use crate::config::section::Value;
use crate::http::Address;
use crate::policy::{At, Report};

/// Where access tokens come from. The secret has the fields `client_id` and `client_secret`, and `refresh_token` where
/// they are for somebody's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuth2 {
    /// The token endpoint's server.
    pub server: Address,
    /// Its path and query.
    pub path: String,
    /// What is asked for; the server's own choice where nothing is.
    pub scope: Option<String>,
}

pub(super) fn read(value: &Value<'_>, report: &mut Report) -> Option<OAuth2> {
    let section = value.section("`oauth2`", report)?;
    section.check_keys(&["token_url", "scope"], report);
    let url = section
        .required("token_url", "\"https://auth.example.com/token\"", report)
        .and_then(|value| value.string(report))
        .and_then(|url| token_url(&url, report));
    let scope = section
        .string("scope", report)
        .map(|scope| scope.value.to_owned());
    let (server, path) = url?;
    Some(OAuth2 {
        server,
        path,
        scope,
    })
}

fn token_url(url: &At<&str>, report: &mut Report) -> Option<(Address, String)> {
    let uri: Option<Uri> = url.value.parse().ok();
    let found = uri.and_then(|uri| {
        let path = uri.path_and_query()?.as_str().to_owned();
        Some((Address::of(&uri)?, path))
    });
    if found.is_none() {
        let text = format!(
            "`token_url` is {:?}, write it as \"https://auth.example.com/token\"",
            url.value
        );
        report.error(&url.place, text);
    }
    found
}
