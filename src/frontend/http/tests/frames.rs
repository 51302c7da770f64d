//! HTTP/2 frames by hand (RFC 9113, section 4.1), for bytes that a library does not send.

use tokio::io::AsyncRead;

use super::*;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flag of HEADERS and DATA.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;

/// GET and POST http://web.localhost/ by HPACK's static table.
pub const GET: &[u8] = b"\x82\x86\x84\x41\x0dweb.localhost";
pub const POST: &[u8] = b"\x83\x86\x84\x41\x0dweb.localhost";

pub struct Received {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// First message of a client.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Received {
    let mut head = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("a frame comes").unwrap();
    let [high, middle, low, kind, flags, of_stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    Received { kind, flags, stream: u32::from_be_bytes(of_stream), payload }
}

/// A pod that answers each request with the frames that `answer` returns for its stream.
pub fn answering(answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Serve {
    let answer = Arc::new(answer);
    Box::new(move |pod, mut stream| {
        let answer = answer.clone();
        tokio::spawn(async move {
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            loop {
                let received = receive(&mut stream).await;
                match (received.kind, received.flags & ACK) {
                    (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap(),
                    (HEADERS, _) => {
                        pod.requests.fetch_add(1, Ordering::SeqCst);
                        stream.write_all(&answer(received.stream)).await.unwrap();
                    }
                    _ => {}
                }
            }
        });
    })
}
