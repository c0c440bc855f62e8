//! `--route VAR=ROUTE[/PATH]`: a base URL for a program that only knows URLs, and a key that opens nothing.

use std::env;

use crate::bridge::environment;
use crate::child::Variable;
use crate::failure::Failure;

/// What stands in for a key where an SDK wants one: the agent leaves it out and adds the real one.
const PLACEHOLDER: &str = "not-a-key-keyhatch-adds-the-real-one";

/// What the variables begin with that tell an SDK of AWS where a service is.
const AWS: &str = "AWS_ENDPOINT_URL";

/// A variable and the route, with a path or without, that it leads to.
pub struct Routed {
    variable: String,
    route: String,
}

pub fn wanted(all: &[String]) -> Result<Vec<Routed>, Failure> {
    let read = |text: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._@+-/".contains(c);
        match text.split_once('=') {
            Some((variable, route))
                if !variable.is_empty()
                    && !route.starts_with('/')
                    && !route.is_empty()
                    && route.chars().all(plain) =>
            {
                Ok(Routed {
                    variable: variable.to_owned(),
                    route: route.trim_end_matches('/').to_owned(),
                })
            }
            _ => Err(Failure::usage(format!(
                "run: --route {text:?}: write VAR=ROUTE, or VAR=ROUTE/PATH, as OPENAI_BASE_URL=openai/v1"
            ))),
        }
    };
    all.iter().map(read).collect()
}

/// Says where the routes are, below the bridge's URL.
pub fn variables(url: &str, routed: &[Routed]) -> Vec<Variable> {
    let mut variables = Vec::new();
    for Routed { variable, route } in routed {
        let base = format!("{url}/use/{route}");
        variables.push(Variable::plain(variable, &base));
        if let Some(service) = variable.strip_suffix("_BASE_URL") {
            let key = format!("{service}_API_KEY");
            if env::var_os(&key).is_none_or(|value| value.is_empty()) {
                variables.push(Variable::plain(&key, PLACEHOLDER));
            }
        }
    }
    if routed.iter().any(|one| one.variable.starts_with(AWS)) {
        variables.extend(environment::for_aws());
    }
    variables
}
