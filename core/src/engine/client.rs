//! Who waits: clients as fair queueing tells them apart.

use std::net::{IpAddr, Ipv6Addr};

/// A client: an IPv4 address, or the first 64 bits of an IPv6 address, which is what one customer of a provider usually has
/// (RFC 6177). All that has no address, such as a Unix socket, is one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(u64);

impl Client {
    /// The client with that address, as `$remote_addr` shows it.
    pub fn of_address(text: &[u8]) -> Self {
        let address = core::str::from_utf8(text).ok();
        match address.and_then(|text| text.parse().ok()) {
            None => Self(0),
            Some(IpAddr::V4(address)) => Self::of_v4(address.to_bits()),
            Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Self::of_v4(address.to_bits()),
                None => Self::of_v6(address),
            },
        }
    }

    /// In 2001:db8::/32, which is nobody's (RFC 3849), so that it is no IPv6 client.
    fn of_v4(bits: u32) -> Self {
        Self(0x2001_0db8 << 32 | u64::from(bits))
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        // The upper half of 128 bits fits.
        Self((address.to_bits() >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::of_address(text.as_bytes())
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_a_64th_of_ipv6() {
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_eq!(client("2a00:1:2:3::1"), client("2a00:1:2:3:ffff::9"));
        assert_ne!(client("2a00:1:2:3::1"), client("2a00:1:2:4::1"));
        assert_eq!(client("unix:"), client("unix:"));
        assert_ne!(client("unix:"), client("0.0.0.0"));
    }
}
