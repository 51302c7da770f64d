//! Database clients with the demo's PostgreSQL. psql, mysql and redis-cli are used if the machine has them.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp, eventually, ports::free_port};

const STARTUP: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0demo\0\0";

fn routes(ports: &str) -> String {
    format!("tcp: {{k8s: {{routes: {{{ports}}}}}}}\n")
}

/// Reads messages until the server is ready for a query or reports an error. Returns their kinds, the key, and the error.
async fn until_ready(stream: &mut TcpStream) -> (String, Vec<u8>, String) {
    let (mut kinds, mut key, mut error) = (String::new(), Vec::new(), String::new());
    let reading = async {
        loop {
            let kind = stream.read_u8().await.unwrap();
            let length = stream.read_u32().await.unwrap() as usize;
            let mut body = vec![0; length - 4];
            stream.read_exact(&mut body).await.unwrap();
            kinds.push(char::from(kind));
            match kind {
                b'K' => key = body,
                b'E' => error = String::from_utf8_lossy(&body).into_owned(),
                b'Z' => return,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the server answers");
    (kinds, key, error)
}

async fn session(address: SocketAddr) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(STARTUP).await.unwrap();
    let (_, key, _) = until_ready(&mut stream).await;
    assert_eq!(key.len(), 8);
    (stream, key)
}

async fn query(stream: &mut TcpStream, text: &str) {
    let body = [text.as_bytes(), b"\0"].concat();
    stream.write_u8(b'Q').await.unwrap();
    stream.write_u32(body.len() as u32 + 4).await.unwrap();
    stream.write_all(&body).await.unwrap();
}

async fn cancel(address: SocketAddr, key: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = [&b"\0\0\0\x10\x04\xd2\x16\x2e"[..], key].concat();
    stream.write_all(&request).await.unwrap();
    // libpq waits for the end of the connection.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the connection ends");
}

#[tokio::test]
async fn a_cancel_request_reaches_the_server_that_has_the_session() {
    let app =
        TestApp::start(&routes(&format!("{}: {{namespace: data, service: postgres, port: 5432}}", free_port()))).await;
    // Several sessions on each pod.
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let (mut stream, key) = session(app.tcp[0]).await;
        query(&mut stream, "SELECT pg_sleep(60)").await;
        sessions.push((stream, key));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    while let Some((mut stream, key)) = sessions.pop() {
        // Through the session's listener, and through the HTTP listener.
        let at = if sessions.len() % 2 == 0 { app.tcp[0] } else { app.http };
        cancel(at, &key).await;
        let (kinds, _, error) = until_ready(&mut stream).await;
        assert_eq!(kinds, "EZ");
        assert!(error.contains("57014"), "{error}");
        for (other, _) in &mut sessions {
            assert!(timeout(Duration::from_millis(20), other.read_u8()).await.is_err(), "another query was cancelled");
        }
    }
    // An unknown key ends its own connection, and no session.
    cancel(app.http, &[9; 8]).await;
    cancel(app.tcp[0], &[9; 8]).await;
    app.finish().await;
}

/// Runs a program, and returns its output. `None`: it is not installed.
async fn said(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").ok()?;
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test]
async fn psql_is_told_what_is_wrong() {
    let local = free_port();
    let nowhere = format!("{local}: {{namespace: data, service: postgre, port: 5432}}");
    let app = TestApp::start(&routes(&nowhere)).await;
    let psql = async |host: &str, port: u16, mode: &str| {
        let port = port.to_string();
        let target = format!("host={host} hostaddr=127.0.0.1 port={port} user=demo dbname=demo sslmode={mode}");
        said("psql", &[&target, "-c", "SELECT 1"], &[]).await
    };
    let Some(answer) = psql("postgres.data.localhost", app.http.port(), "require").await else { return };
    assert!(answer.contains("of the adit demo"), "{answer}");
    for (host, port, mode, words) in [
        ("postgre.data.localhost", app.http.port(), "require", &["postgre", "did you mean postgres?"][..]),
        ("postgres.nowhere.localhost", app.http.port(), "prefer", &["nowhere"]),
        ("127.0.0.1", app.http.port(), "require", &["server name", "host name"]),
        ("postgres.data.localhost", app.http.port(), "disable", &["sslmode=require"]),
        ("localhost", local, "disable", &["postgre", "did you mean postgres?"]),
        ("localhost", local, "require", &["postgre", "did you mean postgres?"]),
    ] {
        let answer = psql(host, port, mode).await.unwrap();
        assert!(answer.contains("FATAL"), "{host} {mode}: {answer}");
        assert!(words.iter().all(|word| answer.contains(word)), "{host} {mode}: {answer}");
        assert!(!answer.contains("SSL error"), "{host} {mode}: {answer}");
    }
    app.demo.faults().refuse(5432, true);
    for mode in ["require", "prefer"] {
        let answer = psql("postgres.data.localhost", app.http.port(), mode).await.unwrap();
        assert!(answer.contains("FATAL") && answer.contains("5432"), "{mode}: {answer}");
    }
    app.finish().await;
}

#[tokio::test]
async fn psql_cancels_a_query_by_name() {
    let app = TestApp::start("").await;
    let port = app.http.port();
    let target =
        format!("host=postgres.data.localhost hostaddr=127.0.0.1 port={port} user=demo dbname=demo sslmode=require");
    let mut command = Command::new("psql");
    command.args([&target, "-c", "SELECT pg_sleep(60)"]).env("LC_ALL", "C").stdin(Stdio::null());
    let Ok(child) = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn() else { return };
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    let sleeps = || {
        let pods = ["postgres-0", "postgres-1"];
        pods.iter().any(|pod| {
            let uid =
                app.demo.world().get("pods", "data", pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
            app.demo.world().process(&uid).is_some_and(|process| process.lines(0).0.contains("a query sleeps"))
        })
    };
    eventually("the query runs", || async { sleeps() }).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("canceling statement due to user request"), "{error}");
    app.finish().await;
}

#[tokio::test]
async fn redis_on_the_listener_of_names_is_told_that_it_sends_none() {
    let app = TestApp::start("").await;
    for request in ["*1\r\n$4\r\nPING\r\n", "PING\r\n"] {
        let mut stream = TcpStream::connect(app.http).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("-ERR adit: ") && answer.contains("tcp.k8s.routes"), "{answer:?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn clients_of_mysql_and_redis_are_told_in_their_own_protocol() {
    let (mysql, redis, plain) = (free_port(), free_port(), free_port());
    let app = TestApp::start(&routes(&format!(
        "{mysql}: {{namespace: shop, service: nothing, port: 3306}}, {redis}: {{namespace: shop, service: nothing, port: 6379}}, \
         {plain}: {{namespace: shop, service: nothing, port: 7000}}"
    )))
    .await;
    let told = async |port: u16, asked: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(asked).await.unwrap();
        let mut answer = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
        (String::from_utf8_lossy(&answer).into_owned(), end.is_ok())
    };
    let (answer, _) = told(mysql, b"").await;
    assert!(answer.contains("adit: no service nothing in namespace shop") || answer.contains("nothing"), "{answer}");
    let (answer, _) = told(redis, b"*1\r\n$4\r\nPING\r\n").await;
    assert!(answer.starts_with("-ERR adit: ") && answer.contains("nothing") && answer.ends_with("\r\n"), "{answer}");
    // Clients of other protocols get a reset.
    assert_eq!(told(plain, b"hello").await, (String::new(), false));
    let port = mysql.to_string();
    if let Some(answer) =
        said("mysql", &["-h", "127.0.0.1", "-P", &port, "-u", "demo", "--connect-timeout=20"], &[]).await
    {
        assert!(answer.contains("ERROR") && answer.contains("adit: ") && answer.contains("nothing"), "{answer}");
    }
    let port = redis.to_string();
    if let Some(answer) = said("redis-cli", &["-h", "127.0.0.1", "-p", &port, "PING"], &[]).await {
        assert!(answer.contains("ERR adit: ") && answer.contains("nothing"), "{answer}");
    }
    app.finish().await;
}
