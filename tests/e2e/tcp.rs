//! Plain TCP: every byte, both ways.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::support::Adit;

const MIB: usize = 1024 * 1024;

#[test]
fn sixty_four_mib_come_back_unchanged() {
    let (adit, port) = Adit::with_tcp("echo", 7000);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut up = client.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut hash = Sha256::new();
        let mut block = vec![0u8; MIB];
        let mut state = 1u32;
        for _ in 0..64 {
            for byte in &mut block {
                // Numerical Recipes' generator: bytes that no buffer mix-up can leave the same.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            hash.update(&block);
            up.write_all(&block).unwrap();
        }
        up.shutdown(Shutdown::Write).unwrap();
        hash.finalize()
    });
    let (mut hash, mut received, mut buffer) = (Sha256::new(), 0, vec![0u8; MIB]);
    loop {
        match client.read(&mut buffer).unwrap_or_else(|error| panic!("after {received} bytes: {error}\n{}", adit.log()))
        {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                received += count;
            }
        }
    }
    assert_eq!(received, 64 * MIB);
    assert_eq!(hash.finalize(), sender.join().unwrap());
}

#[test]
fn a_refused_port_ends_the_client_soon() {
    let local = crate::support::free_port();
    let adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    routes:\n      {local}: {{namespace: adit-e2e, pod: echo, port: 9}}"
    ));
    let started = Instant::now();
    let mut client = TcpStream::connect(("127.0.0.1", local)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(started.elapsed() < Duration::from_secs(15));
    assert!(adit.log().contains("refused"), "{}", adit.log());
}

#[test]
fn many_connections_at_once_are_kept_apart() {
    let (_adit, port) = Adit::with_tcp("echo", 7000);
    thread::scope(|scope| {
        for number in 0..100u8 {
            scope.spawn(move || {
                let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                for round in 1..20usize {
                    let sent = vec![number; round * 997];
                    client.write_all(&sent).unwrap();
                    let mut back = vec![0; sent.len()];
                    client.read_exact(&mut back).unwrap();
                    assert_eq!(back, sent);
                }
            });
        }
    });
}
