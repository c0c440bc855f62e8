//! Whose a loopback connection is: the uid that the kernel lists for the socket at its other end (`proc(5)`).
//!
//! A TCP connection has no peer credentials, so the table of sockets is searched for the one with these two addresses.
//! It is read once a connection. A user who can name a socket there can also close it, so one that is closed counts
//! for nobody.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The table changes while it is read, and may then leave out what is in it.
const TRIES: usize = 3;

/// The uid of who connected from `peer` to `own`.
pub fn uid_of(peer: SocketAddr, own: SocketAddr) -> io::Result<u32> {
    for _ in 0..TRIES {
        if let Some(uid) = look_up(peer, own)? {
            return Ok(uid);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn look_up(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<u32>> {
    let IpAddr::V4(peer_ip) = peer.ip() else {
        return Ok(find(&fs::read("/proc/self/net/tcp6")?, &v6(peer), &v6(own)));
    };
    let IpAddr::V4(own_ip) = own.ip() else {
        return Ok(None);
    };
    let table = fs::read("/proc/self/net/tcp")?;
    let found = find(&table, &v4(peer_ip, peer.port()), &v4(own_ip, own.port()));
    if found.is_some() {
        return Ok(found);
    }
    // A program with an IPv6 socket reaches 127.0.0.1 as ::ffff:127.0.0.1. Without IPv6 there is no such table.
    let table = fs::read("/proc/self/net/tcp6").unwrap_or_default();
    Ok(find(
        &table,
        &mapped(peer_ip, peer.port()),
        &mapped(own_ip, own.port()),
    ))
}

/// The uid in the line with these addresses, of a socket that is open.
fn find(table: &[u8], local: &str, remote: &str) -> Option<u32> {
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let mut words = line
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty())
            .skip(1);
        if words.next()? != local.as_bytes() || words.next()? != remote.as_bytes() {
            return None;
        }
        let uid = words.nth(4)?;
        // A socket that its owner has closed has no inode, and root's uid.
        let inode = words.nth(1)?;
        let number = |word| std::str::from_utf8(word).ok()?.parse::<u64>().ok();
        number(inode).filter(|inode| *inode != 0)?;
        u32::try_from(number(uid)?).ok()
    })
}

fn v4(ip: Ipv4Addr, port: u16) -> String {
    format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()))
}

fn v6(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
    };
    let words = octets.chunks_exact(4).map(|word| {
        let word = word.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

fn mapped(ip: Ipv4Addr, port: u16) -> String {
    v6(SocketAddr::from((ip, port)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn our_own_connections_are_found_over_either_protocol_and_closed_ones_are_not() {
        let own_uid = nix::unistd::geteuid().as_raw();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let mapped = format!("[::ffff:127.0.0.1]:{}", own.port());
        for target in [own.to_string(), mapped] {
            let Ok(client) = TcpStream::connect(&target) else {
                // No IPv6 on this host.
                continue;
            };
            let (_server, peer) = listener.accept().unwrap();
            assert_eq!(uid_of(peer, own).unwrap(), own_uid);
            drop(client);
            assert!(uid_of(peer, own).is_err(), "closed");
        }
    }

    #[test]
    fn a_line_counts_only_with_both_addresses_and_an_inode() {
        let table = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:A000 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 42 1 0\n   \
            1: 0100007F:A001 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0\n";
        let local = Ipv4Addr::LOCALHOST;
        let at = |port| v4(local, port);
        if cfg!(target_endian = "little") {
            assert_eq!(find(table, &at(0xA000), &at(8080)), Some(1000));
            assert_eq!(find(table, &at(0xA001), &at(8080)), None);
            assert_eq!(find(table, &at(0xA000), &at(8081)), None);
        }
    }
}
