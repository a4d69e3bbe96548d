//! The rules of `[[clusters]]`.

use std::collections::HashSet;
use std::time::Duration;

use super::values::{Refusal, accept, duration, integer, show_duration, word};
use super::{Names, address, http, socket};
use crate::config::file;
use crate::config::file::value::{At, Section};
use crate::config::problem::Problems;
use crate::config::read::suggest::{nearest, quote};
use crate::config::words::{self, ProbeKind};
use crate::config::{Cluster, ClusterProtocol, Endpoint, Health, HealthKind, HostHeader, Pool, defaults};

const WEIGHT_MAX: i64 = 65_535;
/// More idle connections to one endpoint than it has ports for.
const POOL_IDLE_MAX: i64 = 65_535;
/// Pools are swept by coarse timers.
const POOL_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const POOL_TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// Faster would be a load of its own on the DNS server.
const DNS_REFRESH_MIN: Duration = Duration::from_secs(1);
const DNS_REFRESH_MAX: Duration = Duration::from_hours(24);
/// Faster would be a load of its own on the endpoints.
const HEALTH_INTERVAL_MIN: Duration = Duration::from_millis(10);
const HEALTH_INTERVAL_MAX: Duration = Duration::from_hours(1);
const HEALTH_TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Probes in a row that are worth counting.
const HEALTH_COUNT_MAX: i64 = 1000;

/// Checks every cluster.
pub(super) fn clusters(files: &[Section<file::Cluster>], problems: &mut Problems) -> Vec<Cluster> {
    let mut names = Names::new("cluster");
    files.iter().map(|file| cluster(file, &mut names, problems)).collect()
}

fn cluster(file: &Section<file::Cluster>, names: &mut Names, problems: &mut Problems) -> Cluster {
    let name = names.take(&file.value.name, &file.span, problems);
    let endpoints = endpoints(file, problems);
    let file = &file.value;
    let dns_refresh = DNS_REFRESH_MIN..=DNS_REFRESH_MAX;
    Cluster {
        name,
        policy: word(&file.policy, "policy", &words::POLICIES, defaults::POLICY, problems),
        protocol: word(
            &file.protocol,
            "protocol",
            &words::CLUSTER_PROTOCOLS,
            ClusterProtocol::Http1,
            problems,
        ),
        endpoints,
        health: file.health.as_ref().map(|health_file| health(health_file, problems)),
        pool: pool(&file.pool.value, problems),
        socket: socket::of_cluster(&file.socket.value, problems),
        host_header: match &file.host_header {
            None => HostHeader::Keep,
            Some(text) => accept(host_header(&text.value), &text.span, problems).unwrap_or(HostHeader::Keep),
        },
        dns_refresh: duration(&file.dns_refresh, dns_refresh, defaults::DNS_REFRESH, problems),
    }
}

fn endpoints(cluster: &Section<file::Cluster>, problems: &mut Problems) -> Vec<Endpoint> {
    let files = cluster.value.endpoints.as_ref().map_or(&[][..], |endpoints| &endpoints.value);
    if files.is_empty() {
        let help = "write `endpoints = [{ address = \"127.0.0.1:8000\" }]`";
        problems.missing(&cluster.span, "endpoints", "this cluster has no endpoints", help);
    }
    let mut seen = HashSet::new();
    let mut endpoints = Vec::new();
    for Section { value: file, span } in files {
        let weight = weight(&file.weight, problems);
        let Some(text) = &file.address else {
            let help = "write `address = \"127.0.0.1:8000\"`";
            problems.missing(span, "address", "this endpoint has no address", help);
            continue;
        };
        let Some(address) = accept(address::endpoint(&text.value), &text.span, problems) else { continue };
        if !seen.insert(address.clone()) {
            let message = format!("the endpoint {address} is in this cluster twice");
            problems.wrong(&text.span, message, "take one out; for a larger share give the other a `weight`");
        }
        endpoints.push(Endpoint { address, weight });
    }
    endpoints
}

/// To leave out a weight of 0 would send the endpoint its whole share.
fn weight(field: &Option<At<i64>>, problems: &mut Problems) -> u32 {
    if let Some(At { value: 0, span }) = field {
        let help = "take the endpoint out if it is to get nothing; weights are 1 to 65535";
        problems.wrong(span, "0 is out of range", help);
        return defaults::WEIGHT;
    }
    integer(field, 1..=WEIGHT_MAX, defaults::WEIGHT, problems)
}

fn health(file: &Section<file::Health>, problems: &mut Problems) -> Health {
    let Section { value: file, span } = file;
    let kind = match word(&file.kind, "kind of health check", &words::HEALTH_KINDS, ProbeKind::Http, problems)
    {
        ProbeKind::Http => http_probe(file, span, problems),
        ProbeKind::Tcp => tcp_probe(file, problems),
    };
    let interval_range = HEALTH_INTERVAL_MIN..=HEALTH_INTERVAL_MAX;
    let interval = duration(&file.interval, interval_range, defaults::HEALTH_INTERVAL, problems);
    // The default gives way to a short interval; only what was written can be too long for it.
    let timeout_default = defaults::HEALTH_TIMEOUT.min(interval);
    let timeout =
        duration(&file.timeout, HEALTH_TIMEOUT_MIN..=HEALTH_INTERVAL_MAX, timeout_default, problems);
    if let Some(field) = &file.timeout
        && timeout > interval
    {
        let message = "a probe may not take longer than the interval, or probes would pile up";
        let help = format!("write at most \"{}\", or a longer `interval`", show_duration(interval));
        problems.wrong(&field.span, message, help);
    }
    let count = 1..=HEALTH_COUNT_MAX;
    Health {
        kind,
        interval,
        timeout,
        healthy_after: integer(&file.healthy_after, count.clone(), defaults::HEALTHY_AFTER, problems),
        unhealthy_after: integer(&file.unhealthy_after, count, defaults::UNHEALTHY_AFTER, problems),
    }
}

fn http_probe(file: &file::Health, span: &std::ops::Range<usize>, problems: &mut Problems) -> HealthKind {
    let path = match &file.path {
        Some(text) => accept(probe_path(&text.value), &text.span, problems),
        None => {
            // A planned or misspelt kind has its own error, and may need no path.
            let is_http = file.kind.as_ref().is_none_or(|kind| kind.value == "http");
            if is_http {
                let help = "write `path = \"/health\"`, or `kind = \"tcp\"` for a mere connection";
                problems.missing(span, "path", "this health check has no path", help);
            }
            None
        }
    };
    let host = file.host.as_ref().and_then(|text| accept(authority(&text.value), &text.span, problems));
    HealthKind::Http {
        path: path.unwrap_or_default(),
        expected_status: integer(&file.expected_status, 100..=599, defaults::EXPECTED_STATUS, problems),
        host,
    }
}

/// A probe may have a query; otherwise its path is like any other.
fn probe_path(text: &str) -> Result<String, Refusal> {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    http::path(path)?;
    if !query.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        let help = "write other characters percent-encoded, such as `%20`";
        return Err(Refusal::new("a query has visible ASCII characters only", help));
    }
    Ok(text.to_owned())
}

fn tcp_probe(file: &file::Health, problems: &mut Problems) -> HealthKind {
    let of_http = [
        ("path", file.path.as_ref().map(|field| &field.span)),
        ("expected_status", file.expected_status.as_ref().map(|field| &field.span)),
        ("host", file.host.as_ref().map(|field| &field.span)),
    ];
    for (key, span) in of_http {
        if let Some(span) = span {
            let message = format!("`{key}` means nothing to a health check of kind \"tcp\"");
            problems.wrong(span, message, "take it out, or write `kind = \"http\"`");
        }
    }
    HealthKind::Tcp
}

fn pool(file: &file::Pool, problems: &mut Problems) -> Pool {
    let default = Pool::default();
    let timeout = POOL_TIMEOUT_MIN..=POOL_TIMEOUT_MAX;
    Pool {
        idle_per_endpoint: integer(
            &file.idle_per_endpoint,
            0..=POOL_IDLE_MAX,
            default.idle_per_endpoint,
            problems,
        ),
        idle_timeout: duration(&file.idle_timeout, timeout, default.idle_timeout, problems),
    }
}

fn host_header(text: &str) -> Result<HostHeader, Refusal> {
    match text {
        "keep" => return Ok(HostHeader::Keep),
        "endpoint" => return Ok(HostHeader::Endpoint),
        _ => {}
    }
    // A lone word that is nearly one of the two is more likely misspelt than a host.
    if !text.contains(['.', ':'])
        && let Some(meant) = nearest(text, ["keep", "endpoint"])
    {
        let message = format!("unknown host_header {}", quote(text));
        return Err(Refusal::new(
            message,
            format!("did you mean \"{meant}\"? A host of that name needs its port"),
        ));
    }
    authority(text).map(HostHeader::Fixed)
}

/// A host and perhaps a port (RFC 9110, section 7.2).
fn authority(text: &str) -> Result<String, Refusal> {
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') && !text.contains('/') => {
            let quoted = format!("{} is no host with a port", quote(text));
            let host = http::host(host).map_err(|refusal| Refusal { message: quoted, ..refusal })?;
            match port.parse::<u16>() {
                Ok(number) if number != 0 && port.bytes().all(|b| b.is_ascii_digit()) => {
                    Ok(format!("{host}:{number}"))
                }
                _ => {
                    Err(Refusal::new(format!("{} is no port", quote(port)), "write a number from 1 to 65535"))
                }
            }
        }
        _ => http::host(text),
    }
}
