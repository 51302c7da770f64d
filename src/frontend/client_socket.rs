//! Asks the kernel about the socket of a client on this machine: which user owns it, and whether it is closed.
//!
//! TCP cannot tell: a program that closes its socket sends a FIN, and so does one that half-closes and waits for the answer.
//! The kernel knows the difference for a client on this machine: a closed socket has no inode.

use std::{io, net::SocketAddr};

/// The client's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSocket(Option<Pair>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    client: SocketAddr,
    ours: SocketAddr,
}

impl ClientSocket {
    /// A socket that the kernel cannot tell about: that of a client on another machine.
    pub const UNKNOWN: Self = Self(None);

    /// Returns the client's socket of a connection between `client` and `ours`: [`UNKNOWN`](Self::UNKNOWN) if these are two
    /// machines, or if the system is not Linux.
    pub fn between(client: SocketAddr, ours: SocketAddr) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (client, ours) = (plain(client), plain(ours));
        let is_here = client.ip() == ours.ip() || (client.ip().is_loopback() && ours.ip().is_loopback());
        Self((cfg!(target_os = "linux") && is_here).then_some(Pair { client, ours }))
    }

    /// Returns the user that owns the socket, and the socket's inode. `None`: no program has it, or the kernel does not know it.
    pub fn owner(self) -> Option<(u32, u32)> {
        owner_of(self.0?).ok().flatten()
    }

    /// Returns whether the socket may be of the user who runs adit: false if the kernel says that another user has it. Root may
    /// do anything anyway, and has the port-forwards of containers.
    pub fn is_of_this_user(self) -> bool {
        #[cfg(target_os = "linux")]
        return self.owner().is_none_or(|(user, _)| is_trusted(user, rustix::process::getuid().as_raw()));
        #[cfg(not(target_os = "linux"))]
        true
    }

    /// Returns whether no program has the socket any more; false if the kernel cannot tell.
    pub fn is_closed(self) -> bool {
        let Some(Pair { client, ours }) = self.0 else { return false };
        let is_unknown = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match owner_of(Pair { client, ours }) {
            Ok(owner) => owner.is_none(),
            // A reset removes our end, too. If our end still exists, the client is in another network namespace.
            Err(error) if is_unknown(&error) => match owner_of(Pair { client: ours, ours: client }) {
                Ok(owner) => owner.is_none(),
                Err(error) => is_unknown(&error),
            },
            Err(_) => false,
        }
    }
}

/// User of sockets whose owner has no number in our user namespace (user_namespaces(7)).
#[cfg(target_os = "linux")]
const NOBODY: u32 = 65534;

#[cfg(target_os = "linux")]
fn is_trusted(user: u32, ours: u32) -> bool {
    [ours, 0, NOBODY].contains(&user)
}

#[cfg(target_os = "linux")]
use sock_diag::owner_of;

#[cfg(not(target_os = "linux"))]
fn owner_of(_: Pair) -> io::Result<Option<(u32, u32)>> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Netlink's socket diagnosis (sock_diag(7)), for one socket.
#[cfg(target_os = "linux")]
mod sock_diag {
    use std::{cell::OnceCell, io, net::IpAddr, os::fd::OwnedFd};

    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

    use super::Pair;

    /// `SOCK_DIAG_BY_FAMILY`, `NLMSG_ERROR`, `NLM_F_REQUEST`, `IPPROTO_TCP`.
    const BY_FAMILY: u16 = 20;
    const ERROR: u16 = 2;
    const REQUEST: u16 = 1;
    const TCP: u8 = 6;

    /// `TCP_LISTEN`: without such a connection, the kernel returns the listener of that port.
    const LISTEN: u8 = 10;

    /// Size of a request in bytes: `struct nlmsghdr` and `struct inet_diag_req_v2`.
    const ASKED: usize = 16 + 56;

    /// Offsets of the state, the user and the inode in `struct inet_diag_msg`.
    const STATE: usize = 16 + 1;
    const USER: usize = 16 + 64;
    const INODE: usize = 16 + 68;

    // One netlink socket for each worker thread; it holds no state of an `App`.
    thread_local! {
        static SOCKET: OnceCell<io::Result<OwnedFd>> = const { OnceCell::new() };
    }

    fn open() -> io::Result<OwnedFd> {
        let (flags, protocol) = (SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, netlink::SOCK_DIAG);
        Ok(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(protocol))?)
    }

    /// Returns the user and the inode of the client's socket. `None`: no program has it.
    pub(super) fn owner_of(pair: Pair) -> io::Result<Option<(u32, u32)>> {
        SOCKET.with(|socket| {
            let socket = socket.get_or_init(open).as_ref().map_err(|error| io::Error::from(error.kind()))?;
            send(socket, &request(pair), SendFlags::empty())?;
            // The kernel queues its answer before `send` returns.
            let mut answer = [0; 512];
            let (count, _) = recv(socket, &mut answer, RecvFlags::empty())?;
            told(&answer[..count])
        })
    }

    fn request(Pair { client, ours }: Pair) -> [u8; ASKED] {
        let mut request = [0; ASKED];
        let mut at = 0;
        let mut put = |bytes: &[u8], width: usize| {
            request[at..at + bytes.len()].copy_from_slice(bytes);
            at += width;
        };
        put(&(ASKED as u32).to_ne_bytes(), 4);
        put(&BY_FAMILY.to_ne_bytes(), 2);
        put(&REQUEST.to_ne_bytes(), 2);
        // Sequence number and port stay 0: a worker has only one request open.
        put(&[], 8);
        let family = if client.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        put(&[family.as_raw() as u8, TCP, 0, 0], 4);
        // All states.
        put(&u32::MAX.to_ne_bytes(), 4);
        put(&client.port().to_be_bytes(), 2);
        put(&ours.port().to_be_bytes(), 2);
        for address in [client.ip(), ours.ip()] {
            match address {
                IpAddr::V4(address) => put(&address.octets(), 16),
                IpAddr::V6(address) => put(&address.octets(), 16),
            }
        }
        // Any interface, any cookie.
        put(&[], 4);
        put(&[0xff; 8], 8);
        request
    }

    fn told(answer: &[u8]) -> io::Result<Option<(u32, u32)>> {
        let number = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        match (kind, number(16)) {
            (Some(BY_FAMILY), Some(_)) => {
                let (state, owner) = (answer.get(STATE).copied(), number(USER).zip(number(INODE)));
                Ok(owner.filter(|(_, inode)| *inode != 0 && state != Some(LISTEN)))
            }
            // ENOENT: the socket may be in another network namespace.
            (Some(ERROR), Some(error)) => Err(io::Error::from_raw_os_error((error as i32).wrapping_neg())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::{sleep, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn other_users_are_not_this_user() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(ClientSocket::between(client.local_addr().unwrap(), client.peer_addr().unwrap()).is_of_this_user());
        assert!(ClientSocket::UNKNOWN.is_of_this_user(), "another machine");
        for (user, is_trusted) in [(1000, true), (0, true), (NOBODY, true), (1001, false)] {
            assert_eq!(super::is_trusted(user, 1000), is_trusted, "{user}");
        }
    }

    async fn ends_are_told_apart(listen: &str, connect: &str) {
        let listener = TcpListener::bind(listen).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect((connect, port)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let socket = ClientSocket::between(server.peer_addr().unwrap(), server.local_addr().unwrap());
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        assert!(!socket.is_closed(), "it may still read");
        drop(client);
        closes(socket).await;
        // The client closes with unread bytes: that sends an RST, after which there is no socket to ask about.
        let mut client = TcpStream::connect((connect, port)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let socket = ClientSocket::between(server.peer_addr().unwrap(), server.local_addr().unwrap());
        server.write_all(b"unread").await.unwrap();
        client.readable().await.unwrap();
        assert!(!socket.is_closed(), "it may still read");
        client.shutdown().await.unwrap();
        drop(client);
        closes(socket).await;
    }

    async fn closes(socket: ClientSocket) {
        let closed = async {
            while !socket.is_closed() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), closed).await.expect("it is closed");
    }

    #[tokio::test]
    async fn a_client_that_has_closed_is_told_from_one_that_waits_for_its_answer() {
        ends_are_told_apart("127.0.0.1:0", "127.0.0.1").await;
        ends_are_told_apart("[::1]:0", "::1").await;
        // A socket that accepts IPv4 and IPv6.
        ends_are_told_apart("[::]:0", "127.0.0.1").await;
    }

    #[test]
    fn a_client_of_another_machine_is_not_looked_for() {
        let (client, ours) = ("192.0.2.7:50000".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        assert_eq!(ClientSocket::between(client, ours), ClientSocket::UNKNOWN);
    }
}
