//! What the user wrote: one serde type for each table of the file, every key optional, unknown keys refused.
//!
//! The doc comments here are what `schema` shows to users, so they speak to users. Nothing is checked in this
//! module but the TOML type; [`super::check`] turns it into checked types and has all the rules.

mod cluster;
mod limits;
mod listener;
mod route;
pub(crate) mod value;

use schemars::JsonSchema;
use schemars::transform::transform_subschemas;
use serde::Deserialize;
use serde_json::Value;

use super::words;
pub(crate) use cluster::{Cluster, Health, Pool};
pub(crate) use limits::Limits;
pub(crate) use listener::{Keepalive, Listener, Socket};
pub(crate) use route::{HeaderEdits, Retries, Route, Timeouts};
use value::{At, Section};

/// Configuration of a Millrace data plane. At least one listener, one route and one cluster are needed.
///
/// `${NAME}` in any string is taken from the environment; `$${` stands for a plain `${`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["listeners", "routes", "clusters"]))]
pub(crate) struct File {
    /// Who this node is.
    pub(crate) node: Section<Node>,
    /// Threads and the I/O driver.
    pub(crate) runtime: Section<Runtime>,
    /// Where the admin API listens.
    pub(crate) admin: Section<Admin>,
    /// Log level and access log.
    pub(crate) log: Section<Log>,
    /// Limits of the whole node.
    pub(crate) limits: Section<Limits>,
    /// Where connections come in.
    pub(crate) listeners: Option<Vec<Section<Listener>>>,
    /// Which request goes to which cluster; of all routes that match, the most specific one is taken.
    pub(crate) routes: Option<Vec<Section<Route>>>,
    /// The origins.
    pub(crate) clusters: Option<Vec<Section<Cluster>>>,
}

/// Who this node is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Node {
    /// Unique in the fleet. Default: the host's name.
    pub(crate) id: Option<At<String>>,
    /// What this node is for: near the users (`edge`, the default) or near the model servers (`core`).
    #[schemars(extend("enum" = words::ROLES.names()))]
    pub(crate) role: Option<At<String>>,
    /// Free text, such as `hk`.
    pub(crate) region: Option<At<String>>,
}

/// Threads and the I/O driver.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Runtime {
    /// Worker threads. 0, the default: one for each core this process may use.
    #[schemars(range(min = 0, max = 1024))]
    pub(crate) workers: Option<At<i64>>,
    /// How workers talk to the kernel. `auto`, the default: io_uring where it is allowed, else epoll.
    #[schemars(extend("enum" = words::DRIVERS.names()))]
    pub(crate) driver: Option<At<String>>,
}

/// Where the admin API listens.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// TCP address, or `off`. Default: `127.0.0.1:9091`.
    pub(crate) listen: Option<At<String>>,
    /// Path of a Unix socket, or `off` (the default).
    pub(crate) socket: Option<At<String>>,
    /// The permissions of that socket's file, in octal. Default: `0600`.
    pub(crate) socket_mode: Option<At<String>>,
    /// The user that it belongs to, by name or number. Default: this process's.
    pub(crate) socket_owner: Option<At<String>>,
    /// The group that it belongs to, by name or number. Default: this process's.
    pub(crate) socket_group: Option<At<String>>,
}

/// Log level and access log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// Lowest level that is written. Default: `info`.
    #[schemars(extend("enum" = words::LOG_LEVELS.names()))]
    pub(crate) level: Option<At<String>>,
    /// Where the access log goes: `off` (the default), `stdout` or the path of a file.
    pub(crate) access: Option<At<String>>,
}

/// The JSON Schema (draft 2020-12) of the config file.
pub fn schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let schema = settings.with_transform(drop_null).into_generator().into_root_schema_for::<File>();
    let mut schema = schema.to_value();
    schema["title"] = "Millrace data plane".into();
    schema
}

/// TOML has no null: a key that is not needed is left out.
fn drop_null(schema: &mut schemars::Schema) {
    let null = Value::from("null");
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| *name != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&null));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
    transform_subschemas(&mut drop_null, schema);
}
