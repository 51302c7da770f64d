//! Databases, by their own clients.

use std::process::Command;

use crate::support::{Adit, succeed};

#[test]
fn psql_works_over_tls() {
    let (_adit, port) = Adit::with_tcp("postgres", 5432);
    let rows = succeed(
        Command::new("psql")
            .arg(format!("host=127.0.0.1 port={port} user=postgres password=postgres dbname=postgres sslmode=require connect_timeout=20"))
            .args(["-Atc", "select count(*) from generate_series(1, 100000), (select ssl from pg_stat_ssl where pid = pg_backend_pid()) t where ssl"]),
    );
    assert_eq!(rows.trim(), "100000");
}

#[test]
fn a_psql_session_is_in_use_while_it_is_silent() {
    let local = crate::support::free_port();
    let _adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  idle_timeout: 1s\n  k8s:\n    routes:\n      {local}: {{namespace: adit-e2e, service: postgres, port: 5432}}"
    ));
    let answer = succeed(
        Command::new("psql")
            .arg(format!(
                "host=127.0.0.1 port={local} user=postgres password=postgres dbname=postgres connect_timeout=20"
            ))
            .args(["-At", "-c", "select 'before'", "-c", "select pg_sleep(4)", "-c", "select 'after'"]),
    );
    assert!(answer.starts_with("before") && answer.trim().ends_with("after"), "{answer}");
}

#[test]
fn redis_works() {
    let (_adit, port) = Adit::with_tcp("data", 6379);
    let port = port.to_string();
    let redis = |arguments: &[&str]| succeed(Command::new("redis-cli").args(["-p", &port]).args(arguments));
    assert_eq!(redis(&["set", "adit:key", "value"]).trim(), "OK");
    assert_eq!(redis(&["get", "adit:key"]).trim(), "value");
    assert_eq!(redis(&["-r", "1000", "incr", "adit:counter"]).lines().count(), 1000);
}

#[test]
fn mariadb_which_speaks_first_works() {
    let (_adit, port) = Adit::with_tcp("data", 3306);
    let port = port.to_string();
    let answer = succeed(Command::new("mariadb").args([
        "--protocol=tcp",
        "-h127.0.0.1",
        "-P",
        &port,
        "-uroot",
        "-pmariadb",
        "-Ne",
        "select repeat('x', 100000), 6 * 7",
    ]));
    assert!(answer.trim().ends_with("42") && answer.len() > 100_000, "{}", answer.len());
}

#[test]
fn psql_reaches_its_server_by_name() {
    let sni = crate::support::free_port();
    let adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\nsni:\n  listen: 127.0.0.1:{sni}\n  routes:\n    db.example.com: {{k8s: {{namespace: adit-e2e, service: postgres, port: 5432}}}}"
    ));
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    for (host, port) in [("postgres.adit-e2e.localhost", adit.http), ("db.example.com", sni)] {
        let to = format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=postgres password=postgres dbname=postgres sslmode=require connect_timeout=20"
        );
        assert_eq!(succeed(Command::new("psql").args([&to, "-Atc", query])).trim(), "t", "{host}");
        let plain = crate::support::run(Command::new("psql").args([&to.replace("=require", "=disable"), "-c", query]));
        assert!(String::from_utf8_lossy(&plain.stderr).contains("sslmode=require"), "{plain:?}");
    }
}
