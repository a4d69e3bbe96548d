//! `[[routes]]` as written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::value::{At, DurationText, Pairs, Section, SizeText, Strings};

/// Which request goes to which cluster, with which deadlines, retries and header edits.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "cluster"]))]
pub(crate) struct Route {
    /// Unique among routes.
    pub(crate) name: Option<At<String>>,
    /// Names of the listeners it serves. Default: all HTTP listeners.
    pub(crate) listeners: Option<At<Vec<At<String>>>>,
    /// Hosts it serves, such as `api.example.com` or `*.example.com`. Default: any.
    pub(crate) hosts: Option<At<Vec<At<String>>>>,
    /// This path and all below it: `/v1/` serves `/v1` and `/v1/x`, not `/v10`. Default: `/`, every path.
    pub(crate) path: Option<At<String>>,
    /// This path and no other; instead of `path`.
    pub(crate) path_exact: Option<At<String>>,
    /// Methods it serves, in capitals. Default: any.
    pub(crate) methods: Option<At<Vec<At<String>>>>,
    /// Request headers that must all be there.
    pub(crate) match_headers: Option<Vec<Section<HeaderMatch>>>,
    /// Name of the cluster that answers.
    pub(crate) cluster: Option<At<String>>,
    /// Largest request body, answered with 413 above it. Default: any size.
    pub(crate) request_body: Option<At<SizeText>>,
    /// Deadlines of an exchange.
    pub(crate) timeouts: Section<Timeouts>,
    /// When another endpoint may be tried.
    pub(crate) retries: Section<Retries>,
    /// Header edits.
    pub(crate) headers: Section<HeaderRules>,
}

/// One condition on a request header.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub(crate) struct HeaderMatch {
    /// Name of the header.
    pub(crate) name: Option<At<String>>,
    /// Its exact value. Default: any, the header must merely be there.
    pub(crate) value: Option<At<String>>,
}

/// Deadlines of an exchange.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    /// From dialling to the established connection. Default: 2s.
    pub(crate) connect: Option<At<DurationText>>,
    /// From the last request byte sent to the first byte of the response. Default: 10m.
    pub(crate) first_byte: Option<At<DurationText>>,
    /// Longest silence of the origin in the middle of a response. Default: 120s.
    pub(crate) idle: Option<At<DurationText>>,
    /// The whole exchange. Default: `off`, since it would cut long streams.
    pub(crate) total: Option<At<DurationText>>,
}

/// When another endpoint may be tried.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Retries {
    /// Tries in all, the first included; 1 means no retry. Default: 2.
    #[schemars(range(min = 1, max = 10))]
    pub(crate) attempts: Option<At<i64>>,
    /// Request body kept for a retry; a longer one is not retried once it was sent. Default: 64KiB.
    pub(crate) body: Option<At<SizeText>>,
    /// Whether a request such as a POST may be sent again although an origin may have seen it. Default: false.
    pub(crate) unsafe_methods: Option<At<bool>>,
}

/// Header edits on the way to the origin and back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HeaderRules {
    /// Edits of the request before it is sent to the origin.
    pub(crate) request: Section<HeaderEdits>,
    /// Edits of the response before it is sent to the client.
    pub(crate) response: Section<HeaderEdits>,
}

/// Edits of one head: first removed, then set, then added.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HeaderEdits {
    /// Headers to replace, or to make where they are not there.
    pub(crate) set: Pairs<String>,
    /// Headers to add beside those of the same name; a list adds several.
    pub(crate) add: Pairs<Strings>,
    /// Headers to take away.
    pub(crate) remove: Vec<At<String>>,
}
