//! The clients that the suite is run with are there: a missing one is a failure, not a pass.

use std::process::Command;

use crate::support::run;

#[test]
fn every_client_of_the_suite_is_installed() {
    for client in [
        "kubectl version --client",
        "curl --version",
        "openssl version",
        "psql --version",
        "redis-cli --version",
        "mariadb --version",
        "ssh -V",
        "rsync --version",
        "script --version",
    ] {
        let mut words = client.split(' ');
        let output = run(Command::new(words.next().expect("a program")).args(words));
        assert!(output.status.success(), "{client}: {}", output.status);
    }
}
