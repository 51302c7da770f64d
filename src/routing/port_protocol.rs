//! Protocols other than HTTP, by the names and numbers of ports. Hints of HTTP are those of
//! [`ServicePort::hint`](crate::k8s::ServicePort::hint).

use crate::wire::database::Database;

/// Protocol that a port or a workload is named after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    Postgres,
    MySql,
    Redis,
    MongoDb,
    Ssh,
    /// Another one that is not HTTP.
    Other,
}

/// Each protocol with its ports and words. The first one with a word in a name counts: `tcp-redis` is Redis.
const TABLE: [(PortProtocol, &[u16], &[&str]); 6] = [
    (PortProtocol::Postgres, &[5432, 6432], &["postgresql", "postgres", "psql", "pgsql", "pgbouncer", "pg"]),
    (PortProtocol::MySql, &[3306, 33060], &["mysql", "mariadb"]),
    (PortProtocol::Redis, &[6379], &["redis", "valkey"]),
    (PortProtocol::MongoDb, &[27017], &["mongo"]),
    (PortProtocol::Ssh, &[22], &["ssh", "sftp"]),
    (PortProtocol::Other, &[4222, 5671, 5672, 9042, 9092], &["tcp", "amqp", "mqtt", "kafka", "nats", "ldap", "smtp"]),
];

/// Up to this length, a word counts only as a whole: `pg` is not in `pgadmin`, nor `tcp` in `dtcp`.
const SHORT: usize = 3;

impl PortProtocol {
    pub fn of_number(number: u16) -> Option<Self> {
        TABLE.iter().find(|(_, ports, _)| ports.contains(&number)).map(|(protocol, ..)| *protocol)
    }

    /// Returns the protocol according to the name of a port, a Service or a pod, or an appProtocol.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let has = |word: &&str| match word.len() <= SHORT {
            true => name.split(|each: char| !each.is_ascii_alphanumeric()).any(|part| part == *word),
            false => name.contains(word),
        };
        TABLE.iter().find(|(.., words)| words.iter().any(has)).map(|(protocol, ..)| *protocol)
    }

    /// Returns the database with this protocol. `None`: it is no database, or adit does not know its errors.
    pub fn database(self) -> Option<Database> {
        match self {
            Self::Postgres => Some(Database::Postgres),
            Self::MySql => Some(Database::MySql),
            Self::Redis => Some(Database::Redis),
            Self::MongoDb | Self::Ssh | Self::Other => None,
        }
    }

    /// Does the same as [`Self::of_name`] for names that are nothing but the protocol: `redis`, `tcp-redis`. `redis-exporter` speaks HTTP.
    pub fn of_whole_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let word = name.strip_prefix("tcp-").unwrap_or(&name);
        TABLE.iter().find(|(.., words)| words.contains(&word)).map(|(protocol, ..)| *protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_say_the_protocol() {
        for (name, protocol) in [
            ("pg-0", Some(PortProtocol::Postgres)),
            ("shop-PostgreSQL", Some(PortProtocol::Postgres)),
            ("tcp-redis", Some(PortProtocol::Redis)),
            ("mariadb", Some(PortProtocol::MySql)),
            ("git.ssh", Some(PortProtocol::Ssh)),
            ("tcp-x", Some(PortProtocol::Other)),
            ("pgadmin", None),
            ("http", None),
        ] {
            assert_eq!(PortProtocol::of_name(name), protocol, "{name}");
        }
        assert_eq!(PortProtocol::of_number(22), Some(PortProtocol::Ssh));
        assert_eq!(PortProtocol::of_number(80), None);
    }
}
