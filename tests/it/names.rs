//! A name of a relay, from a visitor to a local server, with the binary at both ends.

use std::{net::SocketAddr, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::support::PATIENCE;

/// Starts adit, and returns its lines of output.
fn adit(home: &TempDir, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(arguments).env_clear().env("HOME", home.path()).env("ADIT_SECRET", "a-secret-of-the-tests");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    timeout(PATIENCE, lines.next_line()).await.expect("in time").unwrap().expect("a line")
}

/// Starts a server that accepts only requests for localhost, as those of Vite and webpack do, and answers with the request
/// headers.
async fn dev_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {}
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let (status, head) = match head.contains(&format!("\r\nhost: localhost:{port}\r\n")) {
                    true => ("200 OK", head),
                    false => ("403 Forbidden", format!("Blocked request. This host is not allowed.\r\n{head}")),
                };
                let location = format!("http://localhost:{port}/next");
                let length = head.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{head}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_dev_server_gets_its_own_host_and_origin_where_that_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let at = "127.0.0.1:0";
    let (_relay, mut said) = adit(&home, &["server", "--listen", at, "--domain", "example.test", "--http-listen", at]);
    let control = line(&mut said).await;
    let control = control.rsplit(' ').next().unwrap().to_owned();
    let names = loop {
        let line = line(&mut said).await;
        if line.starts_with("names") {
            break line.rsplit(' ').next().unwrap().parse::<SocketAddr>().unwrap();
        }
    };
    let port = dev_server().await;
    let local_port = port.to_string();
    for (host, status) in [(&["--host", "rewrite"][..], 200), (&["--host", "Localhost:1"], 403), (&[], 403)] {
        let all = [&["local", &local_port, "--to", &control, "--name", "mine"], host].concat();
        let (mut client, mut said) = adit(&home, &all);
        line(&mut said).await;
        let public = format!("mine.example.test:{}", names.port());
        let mut stream = TcpStream::connect(names).await.unwrap();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {public}\r\nOrigin: http://{public}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host:?}: {answer}");
        let answer = answer.to_ascii_lowercase();
        if status == 200 {
            assert!(answer.contains(&format!("\r\norigin: http://localhost:{port}\r\n")), "{answer}");
            assert!(answer.contains(&format!("\r\nx-forwarded-host: localhost:{port}\r\n")), "{answer}");
            assert!(answer.contains(&format!("\r\nlocation: http://{public}/next\r\n")), "{answer}");
        } else {
            assert!(answer.contains(&format!("\r\norigin: http://{public}\r\n")) == host.is_empty(), "{answer}");
        }
        let mut again = TcpStream::connect(names).await.unwrap();
        again.write_all(request.as_bytes()).await.unwrap();
        timeout(PATIENCE, again.read_to_string(&mut String::new())).await.expect("in time").unwrap();
        // A clean end frees the name.
        let pid = rustix::process::Pid::from_raw(client.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut talk = String::new();
        let mut stderr = client.stderr.take().unwrap();
        timeout(PATIENCE, stderr.read_to_string(&mut talk)).await.expect("it ends").unwrap();
        client.wait().await.unwrap();
        let warning =
            format!("warning: the service on local port {port} refuses the Host header of its visitors\nhint: ");
        let rewriting = format!("adit local {port} --name mine --host rewrite --to {control}\n");
        let wanted = match host {
            ["--host", "rewrite"] => None,
            [] => Some(format!("{warning}{rewriting}")),
            _ => Some(format!("{warning}allow localhost:1 in the service's own configuration, or: {rewriting}")),
        };
        assert_eq!(talk.matches(&warning).count(), usize::from(wanted.is_some()), "{host:?}: {talk}");
        assert!(wanted.is_none_or(|wanted| talk.contains(&wanted)), "{host:?}: {talk}");
    }
    let (mut client, _) = adit(&home, &["local", &local_port, "--to", &control, "--name", "mine", "--host", "a b"]);
    assert_eq!(timeout(PATIENCE, client.wait()).await.unwrap().unwrap().code(), Some(2));
}
