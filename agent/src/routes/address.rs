//! Which addresses a route may connect to: a name is only as good as what it resolves to at that moment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody's, or everybody's.
    NoHost,
    /// Of this link: cloud metadata services are there.
    LinkLocal,
    /// This host.
    Loopback,
    /// Of a private or otherwise reserved network.
    Private,
    /// An IPv4 address in an IPv6 one.
    Embedded,
}

impl Kind {
    /// The word for messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHost => "unspecified, multicast or broadcast",
            Self::LinkLocal => "link-local",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Embedded => "IPv4-in-IPv6",
        }
    }
}

/// Whether an address may be connected to, and else why not. `allow_private` never opens what is no host, or a
/// link's own addresses.
pub fn check(address: IpAddr, allow_private: bool) -> Result<(), Kind> {
    match kind(address) {
        None => Ok(()),
        Some(Kind::Embedded) if allow_private => match inside(address) {
            Some(inner) => check(inner, true),
            None => Err(Kind::Embedded),
        },
        Some(Kind::Loopback | Kind::Private) if allow_private => Ok(()),
        Some(kind) => Err(kind),
    }
}

fn kind(address: IpAddr) -> Option<Kind> {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Option<Kind> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0 | 224..=239, ..) | (255, 255, 255) => Some(Kind::NoHost),
        (127, ..) => Some(Kind::Loopback),
        (169, 254, _) => Some(Kind::LinkLocal),
        // RFC 1918, 6598, 6890 (also Oracle's metadata), 2544 and class E.
        (10 | 240..=255, ..)
        | (172, 16..=31, _)
        | (192, 168, _)
        | (100, 64..=127, _)
        | (192, 0, 0)
        | (198, 18..=19, _) => Some(Kind::Private),
        _ => None,
    }
}

fn kind_v6(address: Ipv6Addr) -> Option<Kind> {
    let [first, second, ..] = address.segments();
    match (first, second) {
        _ if address.is_unspecified() => Some(Kind::NoHost),
        _ if address.is_loopback() => Some(Kind::Loopback),
        _ if inside(IpAddr::V6(address)).is_some() => Some(Kind::Embedded),
        // RFC 8215's local NAT64, and Teredo, whose bits are not those of the address.
        (0x64, 0xff9b) | (0x2001, 0) => Some(Kind::Embedded),
        (0xff00..=0xffff, _) => Some(Kind::NoHost),
        (0xfe80..=0xfebf, _) => Some(Kind::LinkLocal),
        (0xfc00..=0xfdff | 0xfec0..=0xfeff, _) => Some(Kind::Private),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 one leads to: mapped, compatible, NAT64 (RFC 6052) or 6to4.
fn inside(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            v4(high, low)
        }
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_elsewhere_unless_told_otherwise() {
        for (address, plain, private) in [
            ("93.184.216.34", None, None),
            ("2606:2800:220:1::1", None, None),
            ("127.0.0.1", Some(Kind::Loopback), None),
            ("::1", Some(Kind::Loopback), None),
            ("10.1.2.3", Some(Kind::Private), None),
            ("172.16.0.1", Some(Kind::Private), None),
            ("172.32.0.1", None, None),
            ("192.168.0.1", Some(Kind::Private), None),
            ("100.100.100.200", Some(Kind::Private), None),
            ("192.0.0.192", Some(Kind::Private), None),
            ("fd00:ec2::254", Some(Kind::Private), None),
            (
                "169.254.169.254",
                Some(Kind::LinkLocal),
                Some(Kind::LinkLocal),
            ),
            ("fe80::1", Some(Kind::LinkLocal), Some(Kind::LinkLocal)),
            ("0.0.0.0", Some(Kind::NoHost), Some(Kind::NoHost)),
            ("::", Some(Kind::NoHost), Some(Kind::NoHost)),
            ("224.0.0.1", Some(Kind::NoHost), Some(Kind::NoHost)),
            ("255.255.255.255", Some(Kind::NoHost), Some(Kind::NoHost)),
            ("ff02::1", Some(Kind::NoHost), Some(Kind::NoHost)),
            ("::ffff:127.0.0.1", Some(Kind::Embedded), None),
            ("::ffff:93.184.216.34", Some(Kind::Embedded), None),
            (
                "::ffff:169.254.169.254",
                Some(Kind::Embedded),
                Some(Kind::LinkLocal),
            ),
            ("64:ff9b::7f00:1", Some(Kind::Embedded), None),
            ("64:ff9b:1::1", Some(Kind::Embedded), Some(Kind::Embedded)),
            (
                "2002:a9fe:a9fe::1",
                Some(Kind::Embedded),
                Some(Kind::LinkLocal),
            ),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(check(parsed, false).err(), plain, "{address}");
            assert_eq!(check(parsed, true).err(), private, "{address}");
        }
    }
}
