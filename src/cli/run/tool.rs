//! `--for TOOL`: the environment variables that database clients read.

use clap::ValueEnum;

use crate::{app::opened::Opened, routing::PortProtocol};

/// Variables that libpq prefers to PGHOST (PostgreSQL, "libpq: Environment Variables").
pub const PREFERRED_TO_PGHOST: [&str; 2] = ["PGHOSTADDR", "PGSERVICE"];

/// A client that knows variables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// PGHOST and PGPORT
    Psql,
    /// MYSQL_HOST and MYSQL_TCP_PORT
    Mysql,
    /// REDIS_URL
    Redis,
    /// MONGODB_URI
    Mongo,
}

impl Tool {
    /// Returns the tool whose variables a program reads.
    pub fn of_program(program: &std::path::Path) -> Option<Self> {
        match program.file_name()?.to_str()? {
            "psql" | "pgbench" | "pg_dump" | "pg_dumpall" | "pg_restore" | "pg_isready" | "createdb" | "dropdb"
            | "createuser" | "dropuser" | "vacuumdb" | "reindexdb" | "pgcli" => Some(Self::Psql),
            "mysql" | "mysqldump" | "mysqladmin" | "mysqlimport" | "mariadb" | "mariadb-dump" | "mariadb-admin" => {
                Some(Self::Mysql)
            }
            _ => None,
        }
    }

    fn protocol(self) -> PortProtocol {
        match self {
            Self::Psql => PortProtocol::Postgres,
            Self::Mysql => PortProtocol::MySql,
            Self::Redis => PortProtocol::Redis,
            Self::Mongo => PortProtocol::MongoDb,
        }
    }

    /// Returns the target for the tool: the only one, else the only one with a port of its protocol, else the only one that
    /// is named after it.
    pub fn choose<'o>(self, targets: &[&'o Opened]) -> Option<&'o Opened> {
        let only = |is: &dyn Fn(&Opened) -> bool| {
            let mut found = targets.iter().copied().filter(|target| is(target));
            found.next().filter(|_| found.next().is_none())
        };
        let protocol = Some(self.protocol());
        let is_called = |text: &str| PortProtocol::of_name(text) == protocol;
        let is_numbered = |number| PortProtocol::of_number(number) == protocol;
        only(&|_| true)
            .or_else(|| only(&|target| target.port.as_ref().is_some_and(|port| is_numbered(port.number))))
            .or_else(|| {
                only(&|target| {
                    let port = target.port.as_ref().and_then(|port| port.name.as_deref());
                    port.is_some_and(is_called) || target.called().is_some_and(is_called)
                })
            })
    }

    /// Returns the variables by which a user names the host to connect to.
    pub fn host_variables(self) -> &'static [&'static str] {
        match self {
            Self::Psql => &["PGHOST", "PGHOSTADDR", "PGSERVICE"],
            Self::Mysql => &["MYSQL_HOST"],
            Self::Redis => &["REDIS_URL"],
            Self::Mongo => &["MONGODB_URI"],
        }
    }

    /// Returns the variables that make the tool connect to `target`.
    pub fn variables(self, target: &Opened) -> Vec<(&'static str, String)> {
        let (address, host, port) =
            (target.address, target.address.ip().to_string(), target.address.port().to_string());
        match self {
            Self::Psql => vec![("PGHOST", host), ("PGPORT", port)],
            Self::Mysql => vec![("MYSQL_HOST", host), ("MYSQL_TCP_PORT", port)],
            Self::Redis => vec![("REDIS_URL", format!("redis://{address}"))],
            // Without directConnection, the client would resolve the members of a replica set, whose names are unknown on this
            // machine.
            Self::Mongo => vec![("MONGODB_URI", format!("mongodb://{address}/?directConnection=true"))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::ServicePort;

    fn target(name: &str, number: u16, port_name: &str) -> Opened {
        let port = ServicePort { number, name: Some(port_name.to_owned()), app_protocol: None };
        let (name, address) = (Some(name.to_owned()), ([127, 0, 0, 1], 5000).into());
        Opened { name, address, scheme: None, port: Some(port), service: None }
    }

    #[test]
    fn the_target_is_found_where_it_is_clear() {
        let targets = [target("a", 5432, "x"), target("b", 6000, "redis"), target("mysql-main", 6001, "x")];
        let all: Vec<&Opened> = targets.iter().collect();
        let chosen = |tool: Tool| tool.choose(&all).and_then(|target| target.called());
        assert_eq!(chosen(Tool::Psql), Some("a"));
        assert_eq!(chosen(Tool::Redis), Some("b"));
        assert_eq!(chosen(Tool::Mysql), Some("mysql-main"));
        assert_eq!(chosen(Tool::Mongo), None);
        assert_eq!(Tool::Mongo.choose(&all[..1]).and_then(Opened::called), Some("a"));
        let two = [target("a", 5432, "x"), target("b", 5432, "x")];
        assert_eq!(Tool::Psql.choose(&two.each_ref()), None);
    }

    #[test]
    fn mongo_is_not_sent_on_to_members_of_its_set() {
        let target = target("m", 27017, "mongo");
        assert_eq!(
            Tool::Mongo.variables(&target),
            [("MONGODB_URI", "mongodb://127.0.0.1:5000/?directConnection=true".to_owned())]
        );
        assert_eq!(Tool::Redis.variables(&target), [("REDIS_URL", "redis://127.0.0.1:5000".to_owned())]);
    }
}
