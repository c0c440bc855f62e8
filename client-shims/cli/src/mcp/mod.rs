//! `keyhatch mcp`: an MCP server on standard input and output, by which an AI client uses secrets that it never sees.
//!
//! No tool answers with a value: names and versions are told, and a route's upstream is called by the agent.

mod call;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use keyhatch::{ChangeKind, Client, Error};
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServiceExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::failure::{Failure, hint};
use crate::output::visible;

/// How long `wait_for_rotation` waits unless told otherwise, and at most.
const WAIT: u64 = 60;
const LONGEST_WAIT: u64 = 300;

const INSTRUCTIONS: &str = "\
Secrets of this host, used without seeing them. call_route sends an HTTP request by a route: the agent adds the \
credential and answers what the upstream says. Values are never told; do not ask the user for them.";

pub fn mcp(client: Client) -> Result<(), Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::failed(format!("mcp: {cause}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| failed(&cause))?;
    let served = runtime.block_on(async {
        let server = Server(Arc::new(client));
        let running = server.serve(rmcp::transport::stdio()).await;
        let running = running.map_err(|cause| failed(&cause))?;
        running.waiting().await.map_err(|cause| failed(&cause))
    });
    served.map(drop)
}

struct Server(Arc<Client>);

/// Why a tool has no result.
enum Refused {
    /// The arguments are not those of the tool.
    Arguments(String),
    Client(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let own = Implementation::new("keyhatch", env!("CARGO_PKG_VERSION"));
        let tools = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(tools)
            .with_server_info(own)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // Where the agent is away, the tools are still these.
        let routes = self.0.whoami().await.map(|me| me.routes);
        Ok(ListToolsResult::with_all_items(tools::all(
            &routes.unwrap_or_default(),
        )))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // What is under way is let go of with its connection, so that the agent lets go of it, too.
        let called = context.ct.run_until_cancelled(self.call(request));
        let cancelled = || Err(ErrorData::internal_error("cancelled", None));
        called.await.unwrap_or_else(cancelled)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Below {
    #[serde(default)]
    prefix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Awaited {
    name: String,
    version: Option<String>,
    seconds: Option<u64>,
}

impl Server {
    async fn call(&self, request: CallToolRequestParams) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let done = match &*request.name {
            "list_secrets" => self.list(arguments).await,
            "whoami" => self.whoami().await,
            "wait_for_rotation" => self.wait(arguments).await,
            "call_route" => call::route(&self.0, arguments).await,
            name => {
                let why = format!("there is no tool {name:?}");
                return Err(ErrorData::invalid_params(why, None));
            }
        };
        Ok(done
            .map_or_else(Refused::told, CallToolResult::structured)
            .into())
    }

    async fn list(&self, arguments: JsonObject) -> Result<Value, Refused> {
        let Below { prefix } = read(arguments)?;
        Ok(json!({ "secrets": self.0.list(&prefix).await? }))
    }

    async fn whoami(&self) -> Result<Value, Refused> {
        Ok(json!(self.0.whoami().await?))
    }

    /// Waits until another version is served than the one given, or than the one at first.
    async fn wait(&self, arguments: JsonObject) -> Result<Value, Refused> {
        let awaited: Awaited = read(arguments)?;
        let name = awaited.name.as_str();
        let mut watch = self.0.watch(&[name]).await?;
        let mut version = awaited.version;
        let other = async {
            while let Some(change) = watch.next().await {
                let change = change?;
                match &version {
                    // How it stands as the watch begins.
                    None if change.kind == ChangeKind::Current => version = change.version,
                    held if *held != change.version => return Ok::<_, Error>(change.version),
                    _ => {}
                }
            }
            Err(Error::Input("the watch has ended"))
        };
        let seconds = awaited.seconds.unwrap_or(WAIT).min(LONGEST_WAIT);
        Ok(match timeout(Duration::from_secs(seconds), other).await {
            Ok(version) => json!({ "name": name, "rotated": true, "version": version? }),
            Err(_) => json!({ "name": name, "rotated": false, "version": version }),
        })
    }
}

fn read<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Refused> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|cause| Refused::Arguments(cause.to_string()))
}

impl Refused {
    /// What the model is told, so that it can do something about it.
    fn told(self) -> CallToolResult {
        let text = match self {
            Self::Arguments(why) => why,
            Self::Client(error) => match hint(&error) {
                Some(hint) => format!("{error}\n{hint}"),
                None => error.to_string(),
            },
        };
        CallToolResult::error(vec![ContentBlock::text(visible(&text).into_owned())])
    }
}
