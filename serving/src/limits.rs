//! How much clients may ask for.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

/// Limits of what clients send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request, in bytes.
    pub max_message_size: usize,
    /// Connections open at a time; further ones are closed.
    pub max_connections: usize,
    /// Requests that run at a time on one connection; further ones wait.
    pub max_streams: u32,
    /// How long a request may take until its answer begins; importing a study may take longer.
    pub request_timeout: Duration,
    /// Requests a second of each client, with as many at once; absent: any number.
    pub rate_limit: Option<NonZeroU32>,
}

/// Counts the requests of each client.
pub(crate) struct RateLimit {
    clients: DefaultKeyedRateLimiter<Client>,
    clock: DefaultClock,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// Those with tokens of this name.
    Token(String),
    /// Those from this address. Of IPv6 the network, since a single machine has a whole one.
    Peer(IpAddr),
}

impl Client {
    /// The client at `address`.
    pub(crate) fn at(address: IpAddr) -> Client {
        Client::Peer(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Token(name) => write!(f, "token {name:?}"),
            Client::Peer(address) => write!(f, "address {address}"),
        }
    }
}

impl RateLimit {
    pub(crate) fn new(per_second: NonZeroU32) -> RateLimit {
        RateLimit {
            clients: RateLimiter::keyed(Quota::per_second(per_second)),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request, or says after what time it may be sent again.
    pub(crate) fn check(&self, client: &Client) -> Result<(), Duration> {
        self.clients.check_key(client).map_err(|wait| wait.wait_time_from(self.clock.now()))
    }

    /// Forgets the clients that have been quiet, so that memory holds only those of the last moments.
    pub(crate) fn forget_quiet(&self) {
        self.clients.retain_recent();
        self.clients.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_rate() {
        let limit = RateLimit::new(NonZeroU32::new(2).unwrap());
        let peer = |address: &str| Client::at(address.parse().unwrap());
        for _ in 0..2 {
            limit.check(&peer("2001:db8::1")).unwrap();
        }
        let wait = limit.check(&peer("2001:db8::2")).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        limit.check(&peer("2001:db8:0:1::1")).unwrap();
        limit.check(&Client::Token("lab".into())).unwrap();
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }
}
