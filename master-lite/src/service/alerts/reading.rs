//! What a rule can look at: a closed list of figures of a node, each with its unit. A figure that a node does not report
//! has no reading, which is not the same as 0.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::service::metrics::point::{Point, Times};

/// Rates, shares and percentiles are of this long before now.
pub(crate) const WINDOW_MS: u64 = 60_000;

/// The role of the subjects that stand for the master's own certificates and its store; no node has it.
pub(crate) const MASTER_ROLE: &str = "master";

/// A figure of one node. Shares, rates and percentiles are of the last minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Busy share of all processors, in percent.
    CpuPercent,
    /// Used share of memory, in percent.
    MemoryPercent,
    /// Load average over a minute.
    LoadAverage,
    /// Open client connections.
    Connections,
    /// Requests in flight.
    RequestsInFlight,
    /// Ended requests.
    RequestsPerSecond,
    /// Requests that ended badly through an upstream or the proxy, in percent of all.
    ErrorPercent,
    /// What clients wait for the first byte.
    FirstByteP95Ms,
    /// What clients wait for the first byte.
    FirstByteP99Ms,
    /// Silences inside streams.
    ChunkGapP99Ms,
    /// From the request sent to the upstream's first byte: the way there, and what stands behind it.
    UpstreamP95Ms,
    /// What the proxy adds to the time to first byte.
    ProxyP99Ms,
    /// WebSocket connections of clients that came back, in percent of all that were opened.
    WebsocketReconnectPercent,
    /// BGP sessions that went down.
    BgpFlapsPerMinute,
    /// Days until the first certificate ends: that of the agent, those of the data plane, and the master's own.
    CertificateDaysLeft,
    /// 1 while a node has missed three heartbeats, else 0.
    NodeOffline,
    /// 1 while the config that is wanted is refused by the node, else 0.
    ConfigRefused,
    /// 1 while somebody else uses the node's credential, and for half a day after that, else 0.
    CredentialCopied,
    /// 1 while the master's own store takes no changes, else 0.
    StoreFailing,
}

impl Metric {
    /// Where the figure comes from, for people who wonder why there is none.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Self::CpuPercent | Self::MemoryPercent | Self::LoadAverage => "the agent's heartbeats",
            Self::Connections => "the data plane's millrace_connections",
            Self::RequestsInFlight => "the data plane's millrace_requests_in_flight",
            Self::RequestsPerSecond => "the data plane's millrace_requests_total",
            Self::ErrorPercent => "the data plane's millrace_faults_total and millrace_requests_total",
            Self::FirstByteP95Ms | Self::FirstByteP99Ms => "the data plane's millrace_first_byte_seconds",
            Self::ChunkGapP99Ms => "the data plane's millrace_chunk_gap_seconds",
            Self::UpstreamP95Ms => "the data plane's millrace_upstream_seconds",
            Self::ProxyP99Ms => "the data plane's millrace_proxy_seconds",
            Self::WebsocketReconnectPercent => {
                "the data plane's millrace_websocket_reconnects_total and millrace_websocket_connections_total, which a \
                 data plane without WebSocket does not have"
            }
            Self::BgpFlapsPerMinute => {
                "the node's millrace_bgp_flaps_total, which a node that announces nothing by BGP does not have"
            }
            Self::CertificateDaysLeft => {
                "the master's own certificates, the client certificates that agents show, and the data plane's \
                 millrace_certificate_not_after_seconds, as far as there are any"
            }
            Self::NodeOffline => "the heartbeats that come or do not",
            Self::ConfigRefused => "what the agent says of the config that it was offered",
            Self::CredentialCopied => "the sessions that are opened, or refused, with a node's credential",
            Self::StoreFailing => "the master itself",
        }
    }
}

/// A node as it is now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    /// Its id.
    pub(crate) node: String,
    /// What it is for: `edge`, `core`, or [`MASTER_ROLE`].
    pub(crate) role: String,
    /// Where it is; may be empty.
    pub(crate) region: String,
    /// What the operator calls it.
    pub(crate) tags: Vec<String>,
    /// Whether three heartbeats were missed; none before the first one ever.
    pub(crate) is_offline: Option<bool>,
    /// Whether it refuses the config that it should have.
    pub(crate) is_config_refused: bool,
    /// Whether somebody has used a copy of its credential lately.
    pub(crate) is_credential_copied: bool,
    /// Whether its store takes no changes; of the master only.
    pub(crate) is_store_failing: Option<bool>,
    /// When its first certificate ends, in seconds since the Unix epoch.
    pub(crate) certificate_not_after_s: Option<f64>,
    /// What it did in the last [`WINDOW_MS`].
    pub(crate) recent: Option<Point>,
}

/// The value of a figure; none where the node does not report it.
pub(crate) fn read(metric: Metric, subject: &Subject, now_ms: u64) -> Option<f64> {
    let flag = |is_so: bool| Some(f64::from(u8::from(is_so)));
    match metric {
        Metric::NodeOffline => subject.is_offline.and_then(flag),
        Metric::ConfigRefused => flag(subject.is_config_refused),
        Metric::CredentialCopied => flag(subject.is_credential_copied),
        Metric::StoreFailing => subject.is_store_failing.and_then(flag),
        Metric::CertificateDaysLeft => {
            subject.certificate_not_after_s.map(|end_s| (end_s - now_ms as f64 / 1_000.0) / 86_400.0)
        }
        Metric::CpuPercent
        | Metric::MemoryPercent
        | Metric::LoadAverage
        | Metric::Connections
        | Metric::RequestsInFlight
        | Metric::RequestsPerSecond
        | Metric::ErrorPercent
        | Metric::FirstByteP95Ms
        | Metric::FirstByteP99Ms
        | Metric::ChunkGapP99Ms
        | Metric::UpstreamP95Ms
        | Metric::ProxyP99Ms
        | Metric::WebsocketReconnectPercent
        | Metric::BgpFlapsPerMinute => read_point(metric, subject.recent.as_ref()?),
    }
}

fn read_point(metric: Metric, point: &Point) -> Option<f64> {
    let figures = &point.figures;
    match metric {
        Metric::CpuPercent => figures.cpu_percent(),
        Metric::MemoryPercent => figures.memory_percent(),
        Metric::LoadAverage => figures.load_average(),
        Metric::Connections => figures.mean_connections(),
        Metric::RequestsInFlight => figures.mean_in_flight(),
        Metric::RequestsPerSecond => figures.requests_per_s(),
        Metric::ErrorPercent => figures.error_percent(),
        Metric::FirstByteP95Ms => percentile_ms(point, Times::FirstByte, 95.0),
        Metric::FirstByteP99Ms => percentile_ms(point, Times::FirstByte, 99.0),
        Metric::ChunkGapP99Ms => percentile_ms(point, Times::ChunkGap, 99.0),
        Metric::UpstreamP95Ms => percentile_ms(point, Times::Upstream, 95.0),
        Metric::ProxyP99Ms => percentile_ms(point, Times::Proxy, 99.0),
        Metric::WebsocketReconnectPercent => figures.websocket_reconnect_percent(),
        Metric::BgpFlapsPerMinute => figures.bgp_flaps_per_minute(),
        Metric::CertificateDaysLeft
        | Metric::NodeOffline
        | Metric::ConfigRefused
        | Metric::CredentialCopied
        | Metric::StoreFailing => None,
    }
}

fn percentile_ms(point: &Point, times: Times, percent: f64) -> Option<f64> {
    point.times(times)?.percentile(percent).map(|seconds| seconds * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::metrics::histogram::Histogram;
    use crate::service::metrics::point::Figures;

    fn subject(figures: Figures) -> Subject {
        Subject { recent: Some(Point { figures, ..Point::default() }), ..Subject::default() }
    }

    #[test]
    fn what_is_not_reported_has_no_reading() {
        let idle = subject(Figures::default());
        for metric in [
            Metric::CpuPercent,
            Metric::ErrorPercent,
            Metric::UpstreamP95Ms,
            Metric::WebsocketReconnectPercent,
            Metric::BgpFlapsPerMinute,
            Metric::CertificateDaysLeft,
            Metric::NodeOffline,
            Metric::StoreFailing,
        ] {
            assert_eq!(read(metric, &idle, 0), None, "{metric:?}");
        }
        assert_eq!(read(Metric::CpuPercent, &Subject::default(), 0), None);
    }

    #[test]
    fn shares_and_rates_are_of_what_they_cover() {
        let figures = Figures {
            host_samples: 2,
            cpu_busy: 1.5,
            covered_ms: 20_000,
            requests: 200,
            failed: 3,
            websocket_opened: Some(40),
            websocket_reconnects: Some(10),
            bgp_flaps: Some(5),
            ..Figures::default()
        };
        let subject = subject(figures);
        let value = |metric| read(metric, &subject, 0);
        assert_eq!(value(Metric::CpuPercent), Some(75.0));
        assert_eq!(value(Metric::RequestsPerSecond), Some(10.0));
        assert_eq!(value(Metric::ErrorPercent), Some(1.5));
        assert_eq!(value(Metric::WebsocketReconnectPercent), Some(25.0));
        assert_eq!(value(Metric::BgpFlapsPerMinute), Some(15.0));
    }

    #[test]
    fn a_store_that_takes_no_changes_is_read_as_1() {
        for (is_failing, value) in [(true, 1.0), (false, 0.0)] {
            let store = Subject { is_store_failing: Some(is_failing), ..Subject::default() };
            assert_eq!(read(Metric::StoreFailing, &store, 0), Some(value));
        }
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let upstream = Histogram::new([0.5, 1.0].into(), vec![0, 10, 0], 7.5).ok();
        let point = Point { times: [None, None, upstream, None], ..Point::default() };
        let subject = Subject { recent: Some(point), ..Subject::default() };
        assert_eq!(read(Metric::UpstreamP95Ms, &subject, 0), Some(975.0));
    }

    #[test]
    fn a_certificate_has_days_left_and_then_less_than_none() {
        let subject = Subject { certificate_not_after_s: Some(86_400.0 * 10.0), ..Subject::default() };
        assert_eq!(read(Metric::CertificateDaysLeft, &subject, 0), Some(10.0));
        assert_eq!(read(Metric::CertificateDaysLeft, &subject, 11 * 86_400_000), Some(-1.0));
    }
}
