//! Where to listen.

use std::{net::SocketAddr, str::FromStr};

/// Where to listen, if at all: for clap.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub Option<SocketAddr>);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if text == "off" {
            return Ok(Address(None));
        }
        let address = text.parse();
        let address = address.map_err(|_| "say an address such as 127.0.0.1:50052, or off")?;
        Ok(Address(Some(address)))
    }
}
