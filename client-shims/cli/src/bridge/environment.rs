//! What the command of a bridge finds in its environment.

use std::env;
use std::fs;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::child::Variable;

/// AWS's own example, which no account has.
const PLACEHOLDER_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const PLACEHOLDER_KEY: &str = "not-a-key-keyhatch-bridge-ignores-signatures";
const PLACEHOLDER_REGION: &str = "us-east-1";

/// The variables by which an SDK says that it has credentials, or where to get them.
const CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

pub fn for_child(url: &Zeroizing<String>) -> Vec<Variable> {
    let mut variables: Vec<_> = [
        "KEYHATCH_BRIDGE_URL",
        "VAULT_ADDR",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    ]
    .iter()
    .map(|name| Variable::plain(name, url))
    .collect();
    variables.extend(unproxied(url));
    variables.extend(for_aws());
    variables
}

/// An SDK of AWS refuses to ask without a region and a signature; the agent takes any.
pub fn for_aws() -> Vec<Variable> {
    let mut variables = Vec::new();
    if !is_set("AWS_REGION") && !is_set("AWS_DEFAULT_REGION") && !configured("region") {
        variables.push(Variable::plain("AWS_REGION", PLACEHOLDER_REGION));
        variables.push(Variable::plain("AWS_DEFAULT_REGION", PLACEHOLDER_REGION));
    }
    if !CREDENTIALS.iter().any(|name| is_set(name)) && !has_credentials() {
        variables.push(Variable::plain("AWS_ACCESS_KEY_ID", PLACEHOLDER_ID));
        variables.push(Variable::plain("AWS_SECRET_ACCESS_KEY", PLACEHOLDER_KEY));
    }
    variables
}

/// What keeps programs from asking a proxy for the bridge; they read the one or the other.
pub fn unproxied(url: &str) -> impl Iterator<Item = Variable> {
    ["NO_PROXY", "no_proxy"].into_iter().map(move |name| {
        let list = without_proxy(env::var(name).ok(), host_of(url));
        Variable::plain(name, &list)
    })
}

/// The host of a base URL, without the brackets of an IPv6 address.
fn host_of(url: &str) -> &str {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    host.trim_matches(['[', ']'])
}

/// The loopback address added to the list that is there.
fn without_proxy(list: Option<String>, own: &str) -> String {
    let mut list = list.unwrap_or_default();
    let bracketed = format!("[{own}]");
    let hosts = match own {
        "127.0.0.1" => vec![own, "localhost"],
        _ if own.contains(':') => vec![own, &bracketed, "127.0.0.1", "localhost"],
        _ => vec![own, "127.0.0.1", "localhost"],
    };
    for host in hosts {
        if list == "*" || list.split(',').any(|entry| entry.trim() == host) {
            continue;
        }
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(host);
    }
    list
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn has_credentials() -> bool {
    let shared = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    shared.is_some_and(|path| path.exists())
        || [
            "aws_access_key_id",
            "credential_process",
            "sso_",
            "role_arn",
        ]
        .iter()
        .any(|key| configured(key))
}

/// Whether the AWS configuration file has a setting that begins so.
fn configured(key: &str) -> bool {
    let text =
        file("AWS_CONFIG_FILE", ".aws/config").and_then(|path| fs::read_to_string(path).ok());
    text.is_some_and(|text| text.lines().any(|line| line.trim_start().starts_with(key)))
}

fn file(variable: &str, in_home: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).filter(|path| !path.is_empty());
    named
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(in_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_added_to_the_list_of_the_unproxied() {
        for (list, expected) in [
            (None, "127.0.0.1,localhost"),
            (Some("example.com"), "example.com,127.0.0.1,localhost"),
            (Some("localhost, 127.0.0.1"), "localhost, 127.0.0.1"),
            (Some("*"), "*"),
        ] {
            assert_eq!(without_proxy(list.map(Into::into), "127.0.0.1"), expected);
        }
    }

    #[test]
    fn the_address_that_is_listened_at_is_the_one_that_no_proxy_sees() {
        for (url, expected) in [
            ("http://127.0.0.1:1/t", "127.0.0.1,localhost"),
            ("http://127.0.0.2:1/t", "127.0.0.2,127.0.0.1,localhost"),
            ("http://[::1]:1/t", "::1,[::1],127.0.0.1,localhost"),
        ] {
            assert_eq!(without_proxy(None, host_of(url)), expected);
        }
    }
}
