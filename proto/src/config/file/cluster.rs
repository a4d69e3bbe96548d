//! `[[clusters]]` as written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::listener::Socket;
use super::value::{At, DurationText, Section};
use crate::config::words;

/// A named set of endpoints that answer the same requests.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "endpoints"]))]
pub(crate) struct Cluster {
    /// Unique among clusters.
    pub(crate) name: Option<At<String>>,
    /// How an endpoint is picked. Default: `least_in_flight`.
    #[schemars(extend("enum" = words::POLICIES.names()))]
    pub(crate) policy: Option<At<String>>,
    /// What is spoken to the endpoints. Default: `http1`.
    #[schemars(extend("enum" = words::CLUSTER_PROTOCOLS.names()))]
    pub(crate) protocol: Option<At<String>>,
    /// The origins.
    pub(crate) endpoints: Option<At<Vec<Section<Endpoint>>>>,
    /// Active health check of each endpoint. Default: none.
    pub(crate) health: Option<Section<Health>>,
    /// Idle connections.
    pub(crate) pool: Section<Pool>,
    /// Options of the dialled sockets.
    pub(crate) socket: Section<Socket>,
    /// The `Host` that the origin sees: what the client sent (`keep`, the default), the address as written here
    /// (`endpoint`), or this very host.
    pub(crate) host_header: Option<At<String>>,
    /// How often names are resolved anew. Default: 30s.
    pub(crate) dns_refresh: Option<At<DurationText>>,
}

/// One origin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["address"]))]
pub(crate) struct Endpoint {
    /// `127.0.0.1:8000`, `[::1]:8000`, `llm.internal:8000` or `unix:/run/llm.sock`.
    pub(crate) address: Option<At<String>>,
    /// Its share of the work, beside the other endpoints'. Default: 1.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) weight: Option<At<i64>>,
}

/// Active health check.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Health {
    /// What a probe is. Default: `http`.
    #[schemars(extend("enum" = words::HEALTH_KINDS.names()))]
    pub(crate) kind: Option<At<String>>,
    /// Kind `http` only, and needed there: the path that is asked for.
    pub(crate) path: Option<At<String>>,
    /// Kind `http` only: the status of a good answer. Default: 200.
    #[schemars(range(min = 100, max = 599))]
    pub(crate) expected_status: Option<At<i64>>,
    /// Kind `http` only: the `Host` header. Default: the endpoint's address.
    pub(crate) host: Option<At<String>>,
    /// From the start of one probe to the start of the next. Default: 5s.
    pub(crate) interval: Option<At<DurationText>>,
    /// How long one probe may take; not more than the interval. Default: 1s.
    pub(crate) timeout: Option<At<DurationText>>,
    /// Good probes in a row that make an unhealthy endpoint healthy. Default: 2.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) healthy_after: Option<At<i64>>,
    /// Bad probes in a row that make a healthy endpoint unhealthy. Default: 3.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) unhealthy_after: Option<At<i64>>,
}

/// Idle connections.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pool {
    /// Most idle connections kept for one endpoint by one worker; 0 keeps none. Default: 512.
    #[schemars(range(min = 0, max = 65535))]
    pub(crate) idle_per_endpoint: Option<At<i64>>,
    /// An idle connection older than this is closed; sooner, where the origin says so (`Keep-Alive: timeout=…`). Default: 4s.
    pub(crate) idle_timeout: Option<At<DurationText>>,
}
