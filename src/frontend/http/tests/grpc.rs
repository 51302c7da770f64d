//! gRPC between tonic's client and tonic's server: metadata, statuses, streams both ways, deadlines, cancellation.

use std::sync::atomic::AtomicBool;

use bytes::{Buf, BufMut};
use futures::{SinkExt, StreamExt, channel::mpsc, stream};
use tonic::{
    Code, Request as Call, Response as Reply, Status, Streaming,
    client::Grpc as Client,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    server::Grpc as Server,
    transport::{Channel, Endpoint as Address},
};
use tower::service_fn;

use super::*;

/// Messages that are texts.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let text = String::from_utf8(from.copy_to_bytes(from.remaining()).to_vec());
        text.map(Some).map_err(|error| Status::data_loss(error.to_string()))
    }
}

/// Tells whether the server's end of an endless call was dropped.
#[derive(Clone, Default)]
struct Dropped(Arc<AtomicBool>);

struct Guard(Dropped);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}

impl Dropped {
    async fn wait(&self) {
        let seen = async {
            while !self.0.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, seen).await.expect("the server hears of it");
    }
}

/// Answers as the path says.
async fn answer(call: Request<tonic::body::Body>, dropped: Dropped) -> Response<tonic::body::Body> {
    let mut grpc = Server::new(Text);
    match call.uri().path() {
        "/test.Echo/Unary" => {
            let echo = |call: Call<String>| async move {
                let asked = call.metadata().get("x-asked").cloned();
                let mut reply = Reply::new(call.into_inner());
                asked.map(|asked| reply.metadata_mut().insert("x-answered", asked));
                Ok::<_, Status>(reply)
            };
            grpc.unary(service_fn(echo), call).await
        }
        "/test.Echo/Fail" => {
            let fail = |_: Call<String>| async {
                let mut status =
                    Status::with_details(Code::FailedPrecondition, "nicht möglich: %", vec![0, 255].into());
                status.metadata_mut().insert_bin("x-why-bin", MetadataValue::from_bytes(b"\0why"));
                Err::<Reply<String>, _>(status)
            };
            grpc.unary(service_fn(fail), call).await
        }
        "/test.Echo/Chat" => {
            let chat = |call: Call<Streaming<String>>| async {
                Ok::<_, Status>(Reply::new(call.into_inner().map(|text| text.map(|text| format!("re: {text}")))))
            };
            grpc.streaming(service_fn(chat), call).await
        }
        "/test.Echo/Endless" => {
            let guard = Arc::new(Guard(dropped));
            let endless = move |_: Call<String>| {
                let guard = guard.clone();
                let first = stream::once(async { Ok::<_, Status>("first".to_owned()) });
                let rest = stream::pending().map(move |never: Result<String, Status>| {
                    let _held = &guard;
                    never
                });
                async { Ok::<_, Status>(Reply::new(first.chain(rest))) }
            };
            grpc.server_streaming(service_fn(endless), call).await
        }
        "/test.Echo/Slow" => {
            let guard = Arc::new(Guard(dropped));
            let slow = move |call: Call<String>| {
                let guard = guard.clone();
                async move {
                    let _held = guard;
                    assert!(call.metadata().contains_key("grpc-timeout"), "the deadline is told");
                    std::future::pending::<Result<Reply<String>, Status>>().await
                }
            };
            grpc.unary(service_fn(slow), call).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

/// A world whose pod is a tonic server, and a tonic client of it.
fn world() -> (World, Channel, Dropped) {
    let (connections, incoming) = mpsc::unbounded::<io::Result<DuplexStream>>();
    let world = World::over(
        Scheme::H2c,
        Box::new(move |_, stream| connections.unbounded_send(Ok(stream)).expect("the server runs")),
    );
    let dropped = Dropped::default();
    let seen = dropped.clone();
    let service = service_fn(move |call| {
        let answering = answer(call, seen.clone());
        async { Ok::<_, std::convert::Infallible>(answering.await) }
    });
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
    let channel = channel(&world);
    (world, channel, dropped)
}

fn channel(world: &World) -> Channel {
    let stream = Mutex::new(Some(world.connect(HttpVersion::Http2)));
    let connector = service_fn(move |_| {
        let stream = stream.lock().unwrap().take();
        async { stream.map(TokioIo::new).ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Address::from_static("http://web.localhost").connect_with_connector_lazy(connector)
}

/// A world whose pod lets `answer` answer each call, and then closes the connection.
fn failing(answer: fn(h2::server::SendResponse<Bytes>)) -> World {
    let serve = move |_, stream: DuplexStream| {
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            if let Some(Ok((_, respond))) = connection.accept().await {
                answer(respond);
            }
            let _ = timeout(Duration::from_millis(50), connection.accept()).await;
        });
    };
    World::over(Scheme::H2c, Box::new(serve))
}

async fn client(channel: &Channel) -> Client<Channel> {
    let mut client = Client::new(channel.clone());
    client.ready().await.unwrap();
    client
}

fn path(method: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(method)
}

#[tokio::test]
async fn calls_bring_their_metadata_and_statuses_with_their_details() {
    let (_world, channel, _) = world();
    for length in [0, 1, 3_000_000] {
        let mut call = Call::new("x".repeat(length));
        call.metadata_mut().insert("x-asked", "yes".parse().unwrap());
        let reply = client(&channel).await.unary(call, path("/test.Echo/Unary"), Text).await.unwrap();
        assert_eq!(reply.metadata().get("x-answered").unwrap(), "yes");
        assert_eq!(reply.get_ref().len(), length);
    }
    let failed = client(&channel).await.unary(Call::new(String::new()), path("/test.Echo/Fail"), Text).await;
    let status = failed.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "nicht möglich: %"));
    assert_eq!(status.details(), [0, 255]);
    assert_eq!(status.metadata().get_bin("x-why-bin").unwrap().to_bytes().unwrap(), &b"\0why"[..]);
    let missing = client(&channel).await.unary(Call::new(String::new()), path("/test.Echo/None"), Text).await;
    assert_eq!(missing.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn both_sides_of_a_stream_speak_in_turn_and_it_ends_with_a_status() {
    let (_world, channel, _) = world();
    let (mut say, said) = mpsc::channel::<String>(1);
    let mut client = client(&channel).await;
    let opening = client.streaming(Call::new(said), path("/test.Echo/Chat"), Text);
    let mut replies = timeout(PATIENCE, opening).await.unwrap().unwrap().into_inner();
    for number in 0..200 {
        say.send(format!("{number}")).await.unwrap();
        let reply = timeout(PATIENCE, replies.message()).await.expect("before the next is said").unwrap();
        assert_eq!(reply.unwrap(), format!("re: {number}"));
    }
    drop(say);
    assert_eq!(timeout(PATIENCE, replies.message()).await.unwrap().unwrap(), None);
    assert!(replies.trailers().await.unwrap().is_some());
}

#[tokio::test]
async fn a_client_that_goes_ends_the_call_at_the_server() {
    let (_world, channel, dropped) = world();
    let mut client = client(&channel).await;
    let opening = client.server_streaming(Call::new(String::new()), path("/test.Echo/Endless"), Text);
    let mut replies = opening.await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap(), "first");
    assert!(!dropped.0.load(Ordering::SeqCst));
    drop(replies);
    dropped.wait().await;
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    let (_world, channel, dropped) = world();
    let mut call = Call::new(String::new());
    call.set_timeout(Duration::from_millis(200));
    let ended = client(&channel).await.unary(call, path("/test.Echo/Slow"), Text).await.unwrap_err();
    assert!(matches!(ended.code(), Code::Cancelled | Code::DeadlineExceeded), "{ended}");
    dropped.wait().await;
}

#[tokio::test]
async fn a_call_whose_server_is_lost_within_the_answer_is_unavailable() {
    let world = failing(|mut respond| {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data(Bytes::from_static(b"\0\0\0\0\x05first"), false).unwrap();
        // Dropping the body would reset the stream.
        std::mem::forget(body);
    });
    let channel = channel(&world);
    let mut client = client(&channel).await;
    let opening = client.server_streaming(Call::new(String::new()), path("/test.Echo/Endless"), Text);
    let mut replies = opening.await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap(), "first");
    assert_eq!(timeout(PATIENCE, replies.message()).await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_reset_before_the_answer_is_that_of_the_server() {
    for (answer, code) in [
        (
            (|mut respond| respond.send_reset(h2::Reason::CANCEL)) as fn(h2::server::SendResponse<Bytes>),
            Code::Cancelled,
        ),
        (|mut respond| respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM), Code::ResourceExhausted),
        (|mut respond| respond.send_reset(h2::Reason::INADEQUATE_SECURITY), Code::PermissionDenied),
        (|mut respond| respond.send_reset(h2::Reason::INTERNAL_ERROR), Code::Internal),
        (|mut respond| respond.send_reset(h2::Reason::NO_ERROR), Code::Internal),
    ] {
        let world = failing(answer);
        let channel = channel(&world);
        let ended = client(&channel).await.unary(Call::new(String::new()), path("/test.Echo/Unary"), Text).await;
        assert_eq!(ended.unwrap_err().code(), code);
    }
}
