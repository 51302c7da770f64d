//! Command-line options for the limits of `adit server`.

use std::time::Duration;

use crate::{config::names::parse_duration, io::accept, relay::server::Limits};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Maximum tunnels per key
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().tunnels_per_key)]
    max_tunnels: usize,
    /// Maximum streams per tunnel
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().streams_per_tunnel)]
    max_streams: usize,
    /// Maximum visitors per tunnel that wait for the client; more wait in the listen backlog
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().pending_per_tunnel)]
    max_pending: usize,
    /// Maximum new connections per tunnel and second
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().visitors_per_second)]
    max_rate: u32,
    /// Maximum unauthenticated connections; the oldest is closed to make room
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().handshakes, value_parser = at_least_one)]
    max_handshakes: usize,
    /// Maximum connections of visitors; one that has sent no request is closed to make room
    #[arg(long, value_name = "COUNT", default_value_t = 8192, value_parser = at_least_one)]
    max_connections: usize,
    /// Maximum connections of visitors per address, or per /64 for IPv6; raise it behind a reverse proxy
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = at_least_one)]
    max_connections_per_address: usize,
    /// Time for the first byte of a connection, and for a TLS handshake
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    first_byte_timeout: Duration,
    /// Time for all headers of a request, from their first byte
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    header_timeout: Duration,
    /// Time between an answer and the next request of a connection
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    idle_timeout: Duration,
    /// Time without a byte of a request's body
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    body_timeout: Duration,
    /// Idle time before adit pings an HTTP/2 visitor, which has half of it to answer
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    http2_ping: Duration,
    /// Idle time before the first of three TCP keep-alive probes; the others follow at half this interval
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    tcp_keepalive: Duration,
    /// Time for streams in progress after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    grace: Duration,
}

impl From<&LimitArgs> for Limits {
    fn from(args: &LimitArgs) -> Self {
        Self {
            tunnels_per_key: args.max_tunnels,
            streams_per_tunnel: args.max_streams,
            pending_per_tunnel: args.max_pending,
            handshakes: args.max_handshakes,
            visitors_per_second: args.max_rate,
            accepted: accept::Limits {
                connections: Some(args.max_connections),
                per_address: Some(args.max_connections_per_address),
                first_byte: args.first_byte_timeout,
                head: args.header_timeout,
                idle: args.idle_timeout,
                body: args.body_timeout,
                ping: args.http2_ping,
                keepalive: args.tcp_keepalive,
                grace: args.grace,
                ..accept::Limits::of_relay()
            },
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "write a number from 1 on".to_owned())
}

/// Parses a duration of at least 1 s. A shorter limit would close connections at once, and a shorter grace would not help.
fn duration(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(1);
    parse_duration(text).filter(|time| *time >= least).ok_or_else(|| "write 1s or longer, e.g. 90s or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[test]
    fn the_defaults_of_the_options_are_those_of_the_relay() {
        let matches = LimitArgs::augment_args(clap::Command::new("server")).get_matches_from(["server"]);
        assert_eq!(Limits::from(&LimitArgs::from_arg_matches(&matches).unwrap()), Limits::default());
    }

    #[test]
    fn every_limit_can_be_set_and_none_can_be_nothing() {
        let command = || LimitArgs::augment_args(clap::Command::new("server"));
        for argument in command().get_arguments().filter_map(clap::Arg::get_long).map(str::to_owned) {
            let is_time = !argument.starts_with("max-");
            let set = |value: &str| command().try_get_matches_from(["server", &format!("--{argument}"), value]);
            let changed = set(if is_time { "7m" } else { "7" }).unwrap();
            assert_ne!(Limits::from(&LimitArgs::from_arg_matches(&changed).unwrap()), Limits::default(), "{argument}");
            if is_time {
                assert!(set("0s").is_err() && set("soon").is_err(), "{argument}");
            }
        }
    }
}
