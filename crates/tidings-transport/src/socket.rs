//! The UDP socket of a node.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::SOCKET_BUFFER_BYTES;

/// Binds a UDP socket with large buffers. The unspecified IPv6 address takes IPv4 peers too.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // The system grants what it allows; less costs speed, not correctness.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// An address as it is written: an IPv4 one that a dual-stack socket shows as IPv6 is IPv4 again.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        // Unchanged, with the scope of a link-local address.
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_written_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7400".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:7400".parse().unwrap());
        let v6: SocketAddr = "[fd00::1]:7400".parse().unwrap();
        assert_eq!(canonical(v6), v6);
    }
}
