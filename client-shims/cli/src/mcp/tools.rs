//! What each tool is for, in words for a model, and what it takes.

use keyhatch::UsableRoute;
use rmcp::model::{Tool, ToolAnnotations};
use serde_json::{Map, Value, json};

use super::{LONGEST_WAIT, WAIT};

pub fn all(routes: &[UsableRoute]) -> Vec<Tool> {
    let reads = ToolAnnotations::new().read_only(true);
    vec![
        tool(
            "list_secrets",
            "The names of the secrets that this process may see, with their versions. Values are never told.",
            json!({ "prefix": { "type": "string", "description": "Only names that begin so" } }),
            &[],
        )
        .with_annotations(reads.clone().open_world(false)),
        tool(
            "whoami",
            "Who the agent says this process is, what its roles grant, and the routes that call_route may use.",
            json!({}),
            &[],
        )
        .with_annotations(reads.clone().open_world(false)),
        tool(
            "wait_for_rotation",
            "Waits until another version of a secret is served, and tells the version, never the value.",
            json!({
                "name": { "type": "string", "description": "The secret's name" },
                "version": { "type": "string", "description": "The version that is known; else the one served now" },
                "seconds": {
                    "type": "integer", "minimum": 0, "maximum": LONGEST_WAIT,
                    "description": format!("How long to wait; {WAIT} unless given"),
                },
            }),
            &["name"],
        )
        .with_annotations(reads.open_world(false)),
        call_route(routes),
    ]
}

fn call_route(routes: &[UsableRoute]) -> Tool {
    let lead = |route: &UsableRoute| format!("{} leads to {}", route.name, route.upstream);
    let leads: Vec<_> = routes.iter().map(lead).collect();
    let routes = if leads.is_empty() {
        "There is no route that this process may use.".to_owned()
    } else {
        format!("The routes: {}.", leads.join(", "))
    };
    tool(
        "call_route",
        format!(
            "Sends an HTTP request to the upstream of a route. The agent adds the credential, which is never told: send none. \
            The answer has status, headers and body. {routes}"
        ),
        json!({
            "route": { "type": "string", "description": "The route's name" },
            "path": { "type": "string", "description": "The path at the upstream, with its query, such as /v1/models?limit=5" },
            "method": { "type": "string", "description": "GET unless given" },
            "headers": { "type": "object", "additionalProperties": { "type": "string" } },
            "body": { "description": "A text as it is, or anything else as JSON" },
        }),
        &["route", "path"],
    )
    .with_annotations(ToolAnnotations::new().read_only(false).open_world(true))
}

fn tool(
    name: &'static str,
    description: impl Into<std::borrow::Cow<'static, str>>,
    properties: Value,
    required: &[&str],
) -> Tool {
    let mut schema = Map::new();
    schema.insert("type".into(), json!("object"));
    schema.insert("properties".into(), properties);
    schema.insert("required".into(), json!(required));
    schema.insert("additionalProperties".into(), json!(false));
    Tool::new(name, description, schema)
}
