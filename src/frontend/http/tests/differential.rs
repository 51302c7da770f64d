//! Ambiguous requests, which another parser could read differently, and merely unusual requests, against a pod that records what
//! it receives: no ambiguous request arrives, and every unusual one arrives as it was sent.

use std::sync::Mutex;

use super::*;

/// Request that a pod received: method, target, headers in lower case, body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Got {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// A valid request: method, target, headers, its body as sent, and its body as decoded.
type Sent<'t> = (String, &'t str, Vec<(&'t str, Vec<u8>)>, Vec<u8>, Vec<u8>);

fn recording() -> (World, Arc<Mutex<Vec<Got>>>) {
    let got: Arc<Mutex<Vec<Got>>> = Arc::default();
    let recorded = got.clone();
    let world = World::new(Scheme::Http, move |request| {
        let recorded = recorded.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
            let headers =
                parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
            let (method, target) = (parts.method.to_string(), parts.uri.to_string());
            recorded.lock().unwrap().push(Got { method, target, headers, body });
            Ok(Response::new(body_of("")))
        })
    });
    (world, got)
}

async fn exchange(world: &World, request: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(world.connect(HttpVersion::Http1));
    let mut answer = Vec::new();
    let sending = async {
        // The frontend may have closed before it has read everything.
        let _ = write.write_all(request).await;
        let _ = write.shutdown().await;
    };
    let (_, read) = tokio::join!(sending, timeout(PATIENCE, read.read_to_end(&mut answer)));
    read.unwrap_or_else(|_| panic!("the front does not close: {}", request.escape_ascii())).unwrap();
    answer
}

fn ambiguous() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut headers = |lines: &str, body: &str| {
        all.push(format!("POST /a HTTP/1.1\r\nHost: web.localhost\r\n{lines}\r\n\r\n{body}").into_bytes());
    };
    let lengths = ["5", "0", "05", "5 ", " 5"];
    let codings = ["chunked", "Chunked", "CHUNKED", "chunked ", "\tchunked"];
    for length in lengths {
        for coding in codings {
            headers(&format!("Content-Length: {length}\r\nTransfer-Encoding: {coding}"), "0\r\n\r\n");
            headers(&format!("Transfer-Encoding: {coding}\r\nContent-Length: {length}"), "0\r\n\r\n");
        }
    }
    for length in [
        "",
        "+5",
        "-5",
        "0x5",
        "5a",
        "5,5",
        "5, 6",
        "5;",
        "\"5\"",
        "5 5",
        "1e1",
        "18446744073709551616",
        "٥",
        "5.0",
        "5_0",
    ] {
        headers(&format!("Content-Length: {length}"), "hello");
    }
    for (one, other) in [("5", "6"), ("5", "5"), ("0", "5"), ("5", "05"), ("5", "x")] {
        headers(&format!("Content-Length: {one}\r\nContent-Length: {other}"), "hello");
        headers(&format!("content-length: {one}\r\nX: y\r\nCONTENT-LENGTH: {other}"), "hello");
    }
    for coding in [
        "",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked;q=1",
        "xchunked",
        "chunkedx",
        "chunked,",
        ",chunked",
        "\"chunked\"",
        "chun ked",
        "cow",
        "deflate",
        "trailers",
        "chunked identity",
    ] {
        headers(&format!("Transfer-Encoding: {coding}"), "0\r\n\r\n");
    }
    for (one, other) in [("chunked", "chunked"), ("chunked", "identity"), ("identity", "chunked"), ("gzip", "chunked")]
    {
        headers(&format!("Transfer-Encoding: {one}\r\nTransfer-Encoding: {other}"), "0\r\n\r\n");
    }
    for name in ["Content-Length", "Transfer-Encoding", "X-Any", "Host"] {
        for between in [" :", "\t:", "  :", "\u{b}:", "\0:", "\u{7f}:", "(:", ",:", "@:", "/:"] {
            headers(&format!("{name}{between} 5"), "hello");
        }
        headers(&format!(" {name}: 5"), "hello");
        headers(&format!("\t{name}: 5"), "hello");
        headers(&format!("X: y\r\n {name}: 5"), "hello");
    }
    for odd in ["no-colon", ":", ": value", "é: y", "a b: c", "a\"b: c", "[x]: y", "{x}: y"] {
        headers(odd, "");
    }
    for host in ["Host: other.localhost", "host: web.localhost", "HOST:", "Host: a, b"] {
        headers(host, "");
    }
    for byte in (0u8..0x20).chain([0x7f]).filter(|byte| *byte != b'\t') {
        let mut request = b"GET /a HTTP/1.1\r\nHost: web.localhost\r\nX-Any: a".to_vec();
        request.push(byte);
        request.extend_from_slice(b"b\r\n\r\n");
        // Some parsers end a line at a CR or LF alone.
        all.push(request);
    }
    for line in [
        "GET  /a HTTP/1.1",
        "GET /a  HTTP/1.1",
        " GET /a HTTP/1.1",
        "GET /a HTTP/1.1 ",
        "GET /a HTTP/1.1\t",
        "GET\t/a\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a HTTP/1.2",
        "GET /a HTTP/2.0",
        "GET /a HTTP/11",
        "GET /a HTTP/1.10",
        "GET /a HTTP/+1.1",
        "GET /a hTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ../a HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /\u{1}a HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET http://a\"b/ HTTP/1.1",
        "GET ftp://web.localhost/ HTTP/1.1",
        "GET web.localhost:80 HTTP/1.1",
        "CONNECT web.localhost:80 HTTP/1.1",
        "CONNECT /a HTTP/1.1",
        "G(T /a HTTP/1.1",
        "GET\0 /a HTTP/1.1",
        "GET http://other.localhost/ HTTP/1.1",
        "GET http://web.localhost@other.localhost/ HTTP/1.1",
    ] {
        all.push(format!("{line}\r\nHost: web.localhost\r\n\r\n").into_bytes());
    }
    for host in [
        "",
        "a b",
        "a,b",
        "a/b",
        "a@web.localhost",
        "web.localhost web.localhost",
        "web.localhost\\",
        "<web>",
        "\"web.localhost\"",
        "web.localhost?x",
        "web.localhost#",
    ] {
        all.push(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes());
    }
    all.push(b"GET /a HTTP/1.1\r\n\r\n".to_vec());
    for request in [
        "GET /a HTTP/1.1\nHost: web.localhost\n\n",
        "GET /a HTTP/1.1\nHost: web.localhost\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: web.localhost\n\r\n",
        "GET /a HTTP/1.1\r\nHost: web.localhost\nX: y\r\n\r\n",
        "GET /a HTTP/1.1\rHost: web.localhost\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: web.localhost\rX: y\r\n\r\n",
        "GET /a HTTP/1.1\r\r\nHost: web.localhost\r\n\r\n",
        "POST /a HTTP/1.0\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        all.push(request.as_bytes().to_vec());
    }
    all
}

#[tokio::test]
async fn nothing_that_is_ambiguous_arrives() {
    let (world, got) = recording();
    let all = ambiguous();
    assert!(all.len() >= 200, "{}", all.len());
    for request in &all {
        let shown = String::from_utf8_lossy(request).escape_debug().to_string();
        let answer = String::from_utf8_lossy(&exchange(&world, request).await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{shown}: {answer}");
        assert_eq!(got.lock().unwrap().len(), 0, "{shown}: {:?}", got.lock().unwrap());
        // The same request behind a valid one.
        let first = b"GET /first HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
        let last = b"GET /last HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
        exchange(&world, &[&first[..], request, &last[..]].concat()).await;
        let seen: Vec<String> = got.lock().unwrap().drain(..).map(|got| got.target).collect();
        assert!(seen.iter().all(|target| target == "/first"), "{shown}: {seen:?}");
    }
}

#[tokio::test]
async fn a_body_whose_end_is_unclear_does_not_arrive_whole() {
    let (world, got) = recording();
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5;\nx\r\nhello\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "g\r\n",
        "11111111111111111\r\nx",
        "5\r\nhello\r\n0\r\nno trailer\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhel",
    ] {
        let head = "POST /a HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let last = "GET /last HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
        exchange(&world, format!("{head}{body}{last}").as_bytes()).await;
        assert_eq!(*got.lock().unwrap(), [], "{body:?}");
    }
}

#[tokio::test]
async fn all_that_is_valid_arrives_as_it_was_sent() {
    let (world, got) = recording();
    let mut all: Vec<Sent<'_>> = Vec::new();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "X!#$%&'*+.^_`|~"] {
        all.push((method.to_owned(), "/a", Vec::new(), Vec::new(), Vec::new()));
    }
    let targets = [
        "/",
        "/a?b",
        "/a?",
        "/?x=1&x=2",
        "/%2e%2e/%00",
        "/a;b=c/d",
        "//a//b",
        "/a/../b",
        "/~u/(x)!$&'*+,;=:@",
        "/a?[x]=|y|",
        "/a?q=http://b/c?d",
        "/a?{b}`^c",
    ];
    for target in targets {
        all.push(("GET".to_owned(), target, Vec::new(), Vec::new(), Vec::new()));
    }
    let values: [&[u8]; 12] = [
        b"",
        b"a",
        b"a\tb",
        b"a  b",
        b"\xe9\xff\x80",
        "h\u{fc}".as_bytes(),
        b"\"quoted, text\"",
        b"a,b;c=d",
        b"{}[]<>@",
        b"'",
        b"=",
        b"a:b:c",
    ];
    for value in values {
        all.push(("GET".to_owned(), "/v", vec![("x-any", value.to_vec())], Vec::new(), Vec::new()));
    }
    for name in [
        "x",
        "x-y_z",
        "x.y",
        "!#$%&'*+-.^_`|~",
        "content-type",
        "range",
        "if-none-match",
        "cookie",
        "authorization",
        "origin",
        "accept",
        "x-http2",
    ] {
        all.push(("GET".to_owned(), "/n", vec![(name, b"http://localhost".to_vec())], Vec::new(), Vec::new()));
    }
    all.push((
        "GET".to_owned(),
        "/several",
        vec![("x-a", b"1".to_vec()), ("x-a", b"2".to_vec()), ("x-a", b"".to_vec())],
        Vec::new(),
        Vec::new(),
    ));
    all.push(("GET".to_owned(), "/long", vec![("x-long", vec![b'x'; 16_000])], Vec::new(), Vec::new()));
    let chunked = |body: &str| (vec![("transfer-encoding", b"chunked".to_vec())], body.as_bytes().to_vec());
    for (sent, body) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("05\r\nhello\r\n000\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("5;x=y\r\nhello\r\n0;z\r\n\r\n", "hello"),
        ("1\r\nh\r\n4\r\nello\r\n0\r\nX-T: v\r\n\r\n", "hello"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ] {
        let (headers, sent) = chunked(sent);
        all.push(("POST".to_owned(), "/c", headers, sent, body.into()));
    }
    for body in ["", "x", "GET / HTTP/1.1\r\nHost: other\r\n\r\n", "\r\n\r\n"] {
        let headers = vec![("content-length", body.len().to_string().into_bytes())];
        all.push(("PUT".to_owned(), "/l", headers, body.into(), body.into()));
    }
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let (headers, sent) = chunked("5\r\nhello\r\n0\r\n\r\n");
        all.push((method.to_owned(), "/m", headers, sent, "hello".into()));
    }
    for (method, target, headers, sent, body) in all {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: web.localhost\r\n").into_bytes();
        for (name, value) in &headers {
            request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        request.extend(b"Connection: close\r\n\r\n");
        request.extend(sent);
        let answer = String::from_utf8_lossy(&exchange(&world, &request).await).into_owned();
        let shown = String::from_utf8_lossy(&request).escape_debug().to_string();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{shown}: {answer}");
        let all_got: Vec<Got> = got.lock().unwrap().drain(..).collect();
        let [got] = &all_got[..] else { panic!("{shown}: {all_got:?}") };
        assert_eq!((&got.method, got.target.as_bytes(), &got.body), (&method, target.as_bytes(), &body), "{shown}");
        for (name, value) in headers.iter().filter(|(name, _)| *name != "transfer-encoding") {
            let same = got.headers.iter().filter(|(found, found_value)| found == name && found_value == value).count();
            let sent = headers.iter().filter(|other| **other == (*name, value.clone())).count();
            assert_eq!(same, sent, "{shown}: {name}: {got:?}");
        }
    }
}
