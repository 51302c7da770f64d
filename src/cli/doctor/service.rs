//! Checks the service that starts adit: its program, and whether it finds what a sign-in needs.

use std::{env, ffi::OsString, path::Path};

use super::{
    report::{Check, Group, Status},
    scope::{Of, Scope},
};
use crate::{cli, k8s::exec_path::ExecPath, service::Installed};

/// `PATH` of a service whose file sets none, for systemd (systemd.exec(5)) and launchd.
const BARE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Checks whether the service starts this program.
pub fn unit() -> Check {
    match cli::service::installed() {
        None => Check::new(
            "service-unit",
            Group::Machine,
            Status::Skip,
            "the service (needs 'adit service install': none is installed)",
        ),
        Some((file, installed)) => of_unit(&file, &installed, env::current_exe().ok().as_deref()),
    }
}

fn of_unit(file: &Path, installed: &Installed, own: Option<&Path>) -> Check {
    let check = |status, says: String| Check::new("service-unit", Group::Machine, status, says);
    let again = || Some("adit service install".to_owned());
    let (program, file) = (&installed.program, file.display());
    let real = |path: &Path| path.canonicalize().ok();
    match (program.exists(), own) {
        (false, _) => check(Status::Fail, format!("{file} starts \"{}\", which does not exist", program.display()))
            .fix("write the service again", again()),
        (true, Some(own)) if real(program) != real(own) => {
            check(Status::Warn, format!("the service starts {}, and this is {}", program.display(), own.display()))
                .fix("have it start this one", again())
        }
        (true, _) => check(Status::Ok, format!("the service starts {}", program.display())),
    }
}

/// Checks whether the service finds the context's credential plugin, as this shell does. `None`: no service is installed.
pub fn plugin(scope: &Scope, of: &Of) -> Option<Check> {
    let (_, installed) = cli::service::installed()?;
    let path = installed.path.map_or_else(|| OsString::from(BARE_PATH), OsString::from);
    let exec_path = ExecPath::with_path(&scope.router.config.exec_path, &path);
    let check = |status, says: &str| Check::new("service-plugin", Group::Kubeconfig, status, says);
    Some(match scope.clusters.usable_with(&of.id, &exec_path) {
        Ok(()) => check(Status::Ok, "the service finds everything that a sign-in needs"),
        Err(error) => check(Status::Warn, "the service does not find what a sign-in needs")
            .detail(Some(error.to_string()))
            .fix("write the PATH of this shell into it", Some("adit service install".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_to_start_this_program() {
        let status = |program: &str| {
            let installed = Installed { program: program.into(), path: None };
            of_unit(Path::new("/units/adit.service"), &installed, Some(Path::new("/bin/sh"))).status
        };
        assert_eq!(status("/bin/sh"), Status::Ok);
        assert_eq!(status("/usr/bin/env"), Status::Warn);
        assert_eq!(status("/no/such/adit"), Status::Fail);
        assert_eq!(status(""), Status::Fail);
    }
}
