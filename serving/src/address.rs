//! Where to listen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub Option<SocketAddr>);

impl Address {
    /// Parses "off", or what [`listen_address`] parses.
    pub fn parse(text: &str, default_port: u16) -> Result<Address, String> {
        match text {
            "off" => Ok(Address(None)),
            _ => match listen_address(text, default_port) {
                Ok(address) => Ok(Address(Some(address))),
                Err(error) => Err(format!("{error}; or off")),
            },
        }
    }
}

/// Parses an address to listen on: `HOST:PORT`, `HOST` with the default port, `:PORT` on every interface, or `PORT` on
/// loopback. HOST is an IP address, IPv6 in brackets if a port follows, or a name that this machine resolves.
pub fn listen_address(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    let wrong = |why: &str| {
        format!(
            "{why}; give HOST:PORT, HOST, :PORT or PORT, such as 127.0.0.1:{default_port}, or 0.0.0.0:{default_port} \
             for every interface"
        )
    };
    let no_port = || wrong("the port is not 0 to 65535");
    if text.contains("://") {
        return Err(wrong("an address to listen on has no scheme"));
    }
    // A resolver would take any number for an IPv4 address.
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port: u16 = text.parse().map_err(|_| no_port())?;
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok((ip, default_port).into());
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| no_port())?),
        None => (text, default_port),
    };
    match host {
        "" if text.is_empty() => Err(wrong("there is no address")),
        "" => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        _ => {
            let found: Vec<_> = (host, port)
                .to_socket_addrs()
                .map_err(|error| wrong(&format!("the name {host:?} cannot be resolved ({error})")))?
                .collect();
            // Clients of this machine try 127.0.0.1 by default.
            let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
            first.copied().ok_or_else(|| wrong(&format!("the name {host:?} has no address")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_may_be_short() {
        for (text, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("10.0.0.1", "10.0.0.1:50051"),
            ("[::1]:2", "[::1]:2"),
            ("[::1]", "[::1]:50051"),
            ("::", "[::]:50051"),
            ("localhost:3", "127.0.0.1:3"),
            ("localhost", "127.0.0.1:50051"),
            (":4", "0.0.0.0:4"),
            ("5", "127.0.0.1:5"),
        ] {
            assert_eq!(listen_address(text, 50051), Ok(expected.parse().unwrap()), "{text}");
        }
        assert!(matches!(Address::parse("off", 1), Ok(Address(None))));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_right_form() {
        for text in [
            "",
            "localhost:",
            "localhost:x",
            "localhost:70000",
            "70000",
            "256.0.0.1:1",
            "a b",
            "name.invalid",
            "http://127.0.0.1:1",
            "1:2:3:4",
        ] {
            let error = listen_address(text, 50051).unwrap_err();
            assert!(error.contains("such as 127.0.0.1:50051"), "{text}: {error}");
        }
        let error = Address::parse("http://localhost", 50054).unwrap_err();
        assert!(error.starts_with("an address to listen on has no scheme"), "{error}");
        assert!(error.ends_with("; or off"), "{error}");
    }
}
