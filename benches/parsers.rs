//! Benchmarks of the parsers of every connection, and of the writer of an upgraded connection.

use std::{hint::black_box, sync::Arc};

use adit::{
    backend::port_forward::connection::{Connection, Fate},
    wire::{
        client_hello, sniff,
        spdy::frame::{self, Frame, Parser},
        websocket::{self, Opcode, Role},
    },
};
use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn first_bytes(criterion: &mut Criterion) {
    let hello = include_bytes!("../tests/golden/client_hello/curl-7.88.1");
    let request = b"GET /index.html HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n";
    criterion.bench_function("sniff", |bencher| bencher.iter(|| sniff::sniff(black_box(request))));
    criterion.bench_function("client_hello", |bencher| bencher.iter(|| client_hello::parse(black_box(hello))));
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames of 16 KiB");
    let mut spdy = BytesMut::new();
    let mut messages = BytesMut::new();
    for _ in 0..64 {
        frame::put_data_header(&mut spdy, 11, 16 * 1024, false);
        spdy.extend_from_slice(&[7; 16 * 1024]);
        websocket::put_frame(&mut messages, Opcode::Binary, &[7; 16 * 1024], None);
    }
    group.throughput(Throughput::Bytes(64 * 16 * 1024));
    group.bench_function("spdy", |bencher| {
        bencher.iter(|| {
            let (mut parser, mut input, mut count) = (Parser::default(), spdy.clone(), 0);
            while let Ok(Some(Frame::Data { payload, .. })) = parser.next(&mut input) {
                count += payload.len();
            }
            count
        });
    });
    group.bench_function("websocket", |bencher| {
        bencher.iter(|| {
            let (mut parser, mut input, mut count) = (websocket::Parser::new(Role::Client), messages.clone(), 0);
            while let Ok(Some(websocket::Event::Data { payload, .. })) = parser.next(&mut input) {
                count += payload.len();
            }
            count
        });
    });
    group.bench_function("mask", |bencher| {
        let mut payload = vec![7; 16 * 1024];
        bencher.iter(|| websocket::apply_mask(black_box(&mut payload), [1, 2, 3, 4], 0));
    });
    group.finish();
}

/// Reads everything, and answers PINGs as a node does.
async fn node(mut stream: DuplexStream) {
    let (mut parser, mut input, mut out) = (Parser::default(), BytesMut::new(), BytesMut::new());
    while stream.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
        while let Ok(Some(frame)) = parser.next(&mut input) {
            if let Frame::Ping { id } = frame {
                frame::put_ping(&mut out, id);
            }
        }
        if stream.write_all(&out.split()).await.is_err() {
            return;
        }
    }
}

fn writer(criterion: &mut Criterion) {
    const PIECE: usize = 16 * 1024;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("writer");
    for streams in [1, 16] {
        group.throughput(Throughput::Bytes((64 * PIECE * streams) as u64));
        group.bench_function(format!("{streams} streams"), |bencher| {
            let (near, far) = tokio::io::duplex(1 << 20);
            let guard = runtime.enter();
            runtime.spawn(node(far));
            let connection = Connection::start(Box::new(near), 80, Arc::new(Fate::new(Arc::default())));
            drop(guard);
            let mut open: Vec<_> = (0..streams).map(|_| connection.open().expect("it is new")).collect();
            bencher.iter(|| {
                runtime.block_on(async {
                    let piece = vec![7; PIECE];
                    let writes = open.iter_mut().map(async |stream| {
                        for _ in 0..64 {
                            stream.write_all(&piece).await.expect("the node reads");
                        }
                    });
                    futures::future::join_all(writes).await
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, first_bytes, frames, writer);
criterion_main!(benches);
