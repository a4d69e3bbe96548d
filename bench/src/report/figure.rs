//! What is measured: names, units, which way is good, and whether a row is won or lost by it.

use serde::{Deserialize, Serialize};

use super::verdict::Better;

/// One quantity of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// CPU of the proxy for one request.
    CpuPerRequestUs,
    /// CPU of the proxy for one event of a stream.
    CpuPerEventUs,
    /// Body bytes for each second of the proxy's CPU.
    BodyGbPerCpuS,
    /// Connections, with one request each, for each second of the proxy's CPU.
    ConnectionsPerCpuS,
    /// Median latency over that without a proxy.
    AddedP50Us,
    /// The same at 99 %.
    AddedP99Us,
    /// The same at 99.9 %.
    AddedP999Us,
    /// From an event's writing at the origin to its arrival, over that without a proxy; median.
    AddedEventP50Us,
    /// The same at 99 %.
    AddedEventP99Us,
    /// The same at 99.9 %.
    AddedEventP999Us,
    /// Time to the first event, over that without a proxy; median.
    AddedTtftP50Us,
    /// The same at 99 %.
    AddedTtftP99Us,
    /// User memory of the proxy's processes for each idle connection.
    UserBytesPerIdle,
    /// CPU of the proxy while all its connections are silent, of one core.
    IdleCpuPercent,
    /// A request on a connection that has long been silent; median.
    WakeP50Us,
    /// Most memory of the proxy's processes for each slow reader.
    PeakResidentKib,
    /// The same with what the kernel holds in the proxy's sockets: received and not read, and not sent yet.
    PeakWithSocketsKib,
    /// Right answers under too much load, as a share of those at the knee.
    GoodputPercent,
    /// Requests that were turned away without saying when to come again.
    BareRejections,
    /// Events that the proxy held until the next one.
    MergedEvents,
    /// Right answers a second.
    RequestsPerS,
    /// Share of its CPU that the proxy used.
    BusyPercent,
}

impl Figure {
    /// What it is called in a report.
    pub fn title(self) -> &'static str {
        match self {
            Self::CpuPerRequestUs => "CPU per request",
            Self::CpuPerEventUs => "CPU per event",
            Self::BodyGbPerCpuS => "body bytes per core",
            Self::ConnectionsPerCpuS => "connections per core",
            Self::AddedP50Us => "added latency, p50",
            Self::AddedP99Us => "added latency, p99",
            Self::AddedP999Us => "added latency, p99.9",
            Self::AddedEventP50Us => "added delay of events, p50",
            Self::AddedEventP99Us => "added delay of events, p99",
            Self::AddedEventP999Us => "added delay of events, p99.9",
            Self::AddedTtftP50Us => "added time to first event, p50",
            Self::AddedTtftP99Us => "added time to first event, p99",
            Self::UserBytesPerIdle => "user memory per idle connection",
            Self::IdleCpuPercent => "CPU with all connections idle",
            Self::WakeP50Us => "request on a long idle connection, p50",
            Self::PeakResidentKib => "peak memory of the proxy per reader",
            Self::PeakWithSocketsKib => "the same with its sockets in the kernel",
            Self::GoodputPercent => "goodput, of that at the knee",
            Self::BareRejections => "rejections without Retry-After",
            Self::MergedEvents => "events merged",
            Self::RequestsPerS => "requests",
            Self::BusyPercent => "CPU of the proxy",
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::CpuPerRequestUs
            | Self::CpuPerEventUs
            | Self::AddedP50Us
            | Self::AddedP99Us
            | Self::AddedP999Us
            | Self::AddedEventP50Us
            | Self::AddedEventP99Us
            | Self::AddedEventP999Us
            | Self::AddedTtftP50Us
            | Self::AddedTtftP99Us
            | Self::WakeP50Us => "µs",
            Self::UserBytesPerIdle => "B",
            Self::BodyGbPerCpuS => "GB/s",
            Self::ConnectionsPerCpuS | Self::RequestsPerS => "/s",
            Self::PeakResidentKib | Self::PeakWithSocketsKib => "KiB",
            Self::GoodputPercent | Self::IdleCpuPercent | Self::BusyPercent => "%",
            Self::BareRejections | Self::MergedEvents => "",
        }
    }

    /// Which way is good; `None` for what only explains the others.
    pub fn better(self) -> Option<Better> {
        match self {
            Self::CpuPerRequestUs
            | Self::CpuPerEventUs
            | Self::AddedP50Us
            | Self::AddedP99Us
            | Self::AddedP999Us
            | Self::AddedEventP50Us
            | Self::AddedEventP99Us
            | Self::AddedEventP999Us
            | Self::AddedTtftP50Us
            | Self::AddedTtftP99Us
            | Self::UserBytesPerIdle
            | Self::WakeP50Us
            | Self::PeakResidentKib
            | Self::PeakWithSocketsKib => Some(Better::Lower),
            Self::BodyGbPerCpuS | Self::ConnectionsPerCpuS | Self::GoodputPercent => Some(Better::Higher),
            Self::IdleCpuPercent
            | Self::BareRejections
            | Self::MergedEvents
            | Self::RequestsPerS
            | Self::BusyPercent => None,
        }
    }

    /// Whether the value of a run without a proxy, in the same round, is taken off.
    pub fn is_over_direct(self) -> bool {
        match self {
            Self::AddedP50Us
            | Self::AddedP99Us
            | Self::AddedP999Us
            | Self::AddedEventP50Us
            | Self::AddedEventP99Us
            | Self::AddedEventP999Us
            | Self::AddedTtftP50Us
            | Self::AddedTtftP99Us => true,
            Self::CpuPerRequestUs
            | Self::CpuPerEventUs
            | Self::BodyGbPerCpuS
            | Self::ConnectionsPerCpuS
            | Self::UserBytesPerIdle
            | Self::IdleCpuPercent
            | Self::WakeP50Us
            | Self::PeakResidentKib
            | Self::PeakWithSocketsKib
            | Self::GoodputPercent
            | Self::BareRejections
            | Self::MergedEvents
            | Self::RequestsPerS
            | Self::BusyPercent => false,
        }
    }
}
