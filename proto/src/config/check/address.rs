//! Addresses: what a listener binds, what a cluster dials, and when two of them are the same place.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::http::{dns_name, host};
use super::url;
use super::values::Refusal;
use crate::config::read::suggest::quote;
use crate::config::{Address, Bind, defaults, planned};

/// Longest path of a Unix socket: `sun_path` has 108 bytes, the last of them is NUL (unix(7)).
const UNIX_PATH_MAX: usize = 107;

/// Where a listener binds: an IP address and a port, or `unix:` and a path.
pub(super) fn bind(text: &str) -> Result<Bind, Refusal> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(Bind::Unix);
    }
    socket_addr(text, Reach::EveryHost).map(Bind::Tcp)
}

/// Who is meant to reach what listens: what is advised must not open the admin API, which has no login, to everyone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A listener for clients.
    EveryHost,
    /// The admin API.
    ThisHost,
}

impl Reach {
    fn port_example(self) -> u16 {
        match self {
            Self::EveryHost => 8080,
            Self::ThisHost => defaults::ADMIN_LISTEN.port(),
        }
    }

    /// What to write for a port alone.
    fn with_port(self, port: &str) -> String {
        let everyone =
            format!("\"0.0.0.0:{port}\" for every IPv4 address, \"[::]:{port}\" for every IPv6 address");
        match self {
            Self::EveryHost => format!("write {everyone}, \"127.0.0.1:{port}\" for this host alone"),
            Self::ThisHost => format!("write \"127.0.0.1:{port}\""),
        }
    }

    fn general(self) -> &'static str {
        match self {
            Self::EveryHost => {
                "write an address such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/run/millrace/http.sock\""
            }
            Self::ThisHost => "write an address such as \"127.0.0.1:9091\" or \"[::1]:9091\", or \"off\"",
        }
    }
}

/// A local IP address and a port.
pub(super) fn socket_addr(text: &str, reach: Reach) -> Result<SocketAddr, Refusal> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.ip() {
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                let message = "an IPv4 address in IPv6 form cannot be bound";
                let ip = ip.to_canonical();
                Err(Refusal::new(message, format!("write \"{}\"", SocketAddr::new(ip, address.port()))))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => Ok(address),
        };
    }
    let is_bound = |text: &str| socket_addr(text, reach).is_ok();
    if let Some(refusal) = url::refuse(text, planned::LISTENER_PROTOCOLS, is_bound, "127.0.0.1:8080") {
        return Err(refusal);
    }
    let message = format!("{} is no address to listen on", quote(text));
    let help = match text.rsplit_once(':') {
        Some(("" | "*", port)) if is_port(port) => reach.with_port(port),
        Some((name, port)) if is_port(port) && name.parse::<Ipv6Addr>().is_ok() => {
            format!("write \"[{name}]:{port}\"")
        }
        Some(("localhost", port)) if is_port(port) => format!("write \"127.0.0.1:{port}\""),
        Some((name, port)) if is_port(port) && dns_name(name).is_ok() => {
            format!("write the IP address of {name} and the port, such as \"10.0.0.1:{port}\"")
        }
        _ if is_port(text) => reach.with_port(text),
        _ => match text.parse::<IpAddr>() {
            Ok(ip) => {
                format!("write the port too, such as \"{}\"", SocketAddr::new(ip, reach.port_example()))
            }
            Err(_) => reach.general().to_owned(),
        },
    };
    Err(Refusal::new(message, help))
}

/// Where an endpoint is: an IP address or a name and a port, or `unix:` and a path.
pub(super) fn endpoint(text: &str) -> Result<Address, Refusal> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(Address::Unix);
    }
    let is_endpoint = |text: &str| endpoint(text).is_ok();
    if let Some(refusal) = url::refuse(text, planned::CLUSTER_PROTOCOLS, is_endpoint, "127.0.0.1:8000") {
        return Err(refusal);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return dialled(address);
    }
    let message = format!("{} is no address", quote(text));
    let help = "write one such as \"127.0.0.1:8000\", \"llm.internal:8000\" or \"unix:/run/llm.sock\"";
    let Some((name, port)) = text.rsplit_once(':') else {
        if host(text).is_ok() {
            return Err(Refusal::new(
                format!("{} has no port", quote(text)),
                format!("write \"{text}:8000\""),
            ));
        }
        return Err(Refusal::new(message, help));
    };
    if name.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
        return Err(Refusal::new(
            "an IPv6 address needs brackets and a port",
            "write one such as \"[::1]:8000\"",
        ));
    }
    // The whole is quoted, as it was written.
    let host = dns_name(name).map_err(|refusal| Refusal { message, ..refusal })?;
    match port.parse() {
        Ok(number) if is_port(port) => Ok(Address::Name { host, port: number }),
        _ => Err(Refusal::new(format!("{} is no port", quote(port)), "write a number from 1 to 65535")),
    }
}

fn dialled(address: SocketAddr) -> Result<Address, Refusal> {
    if address.port() == 0 {
        return Err(Refusal::new("nothing can be reached on port 0", "write a port from 1 to 65535"));
    }
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        let message = format!("{} stands for every address, none that can be dialled", address.ip());
        return Err(Refusal::new(message, format!("write \"{loopback}:{}\"", address.port())));
    }
    if address.ip().is_multicast() {
        return Err(Refusal::new("a multicast address cannot be dialled", "write the address of one host"));
    }
    Ok(Address::Ip(address))
}

/// A path that fits into a Unix socket address.
pub(in crate::config) fn unix_path(text: &str) -> Result<PathBuf, Refusal> {
    let help = "write one such as \"/run/millrace/http.sock\"";
    if !text.starts_with('/') {
        // A relative path would depend on where the process was started.
        return Err(Refusal::new(format!("{} is no absolute path", quote(text)), help));
    }
    if text.len() > UNIX_PATH_MAX {
        let message = format!("a path of {} bytes is too long for a Unix socket", text.len());
        return Err(Refusal::new(message, format!("write one of at most {UNIX_PATH_MAX} bytes")));
    }
    if text.contains('\0') {
        return Err(Refusal::new("a path has no NUL", help));
    }
    Ok(Path::new(text).to_owned())
}

/// Whether two addresses cannot both be bound, or would take each other's connections.
///
/// `[::]` is bound for IPv6 alone, so it leaves `0.0.0.0` free.
pub(super) fn clash(a: &Bind, b: &Bind) -> bool {
    match (a, b) {
        (Bind::Unix(a), Bind::Unix(b)) => a == b,
        (Bind::Tcp(a), Bind::Tcp(b)) => {
            let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && same_ip
        }
        (Bind::Tcp(_), Bind::Unix(_)) | (Bind::Unix(_), Bind::Tcp(_)) => false,
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_of_each_kind() {
        assert_eq!(bind("0.0.0.0:0").unwrap().to_string(), "0.0.0.0:0");
        assert_eq!(bind("unix:/run/a").unwrap().to_string(), "unix:/run/a");
        for text in ["127.0.0.1:8000", "[::1]:8000", "llm.internal:8000", "unix:/run/llm.sock"] {
            assert_eq!(endpoint(text).unwrap().to_string(), text);
        }
        assert_eq!(endpoint("LLM:1").unwrap().to_string(), "llm:1");
    }

    #[test]
    fn refuses_what_cannot_be_bound_or_dialled() {
        let long_path = format!("unix:/{}", "a".repeat(107));
        for text in [
            "",
            ":80",
            "80",
            "localhost:80",
            "::1:80",
            "[::ffff:1.2.3.4]:80",
            "1.2.3.4",
            "unix:",
            "unix:a",
            &long_path,
        ] {
            assert!(bind(text).is_err(), "{text}");
        }
        for text in [
            "",
            "a",
            "a:",
            ":80",
            "a:0",
            "a:65536",
            "a:+80",
            "http://a",
            "https://a",
            "0.0.0.0:80",
            "[::]:80",
            "1.2.3.4:0",
            "::1:80",
            "224.0.0.1:80",
            "256.1.1.1:80",
            "a b:80",
            "unix:\0",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quotes_a_bad_address_as_it_was_written() {
        for text in ["a b:80", "256.1.1.1:80", "a..b:80"] {
            assert_eq!(endpoint(text).unwrap_err().message, format!("\"{text}\" is no address"));
        }
    }

    #[test]
    fn opens_the_admin_api_to_nobody() {
        for text in ["9091", ":9091", "*:9091", "localhost:9091", "127.0.0.1", "edge.internal:9091", "x"] {
            let help = socket_addr(text, Reach::ThisHost).unwrap_err().help.unwrap();
            assert!(!help.contains("0.0.0.0") && !help.contains("[::]"), "{text}: {help}");
        }
    }

    #[test]
    fn knows_which_addresses_clash() {
        let clashes = |a: &str, b: &str| {
            let (a, b) = (bind(a).unwrap(), bind(b).unwrap());
            assert_eq!(clash(&a, &b), clash(&b, &a));
            clash(&a, &b)
        };
        assert!(clashes("0.0.0.0:80", "127.0.0.1:80"));
        assert!(clashes("[::]:80", "[::1]:80"));
        assert!(clashes("unix:/a", "unix:/a"));
        assert!(!clashes("0.0.0.0:80", "[::]:80"));
        assert!(!clashes("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!clashes("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!clashes("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!clashes("unix:/a", "unix:/b"));
    }
}
