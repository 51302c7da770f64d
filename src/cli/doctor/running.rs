//! Checks the adit that runs with this configuration.

use futures::future::join_all;

use super::{
    report::{Check, Group, Status},
    scope::Scope,
};
use crate::{
    admin::{api::answers::Status as Answer, socket},
    cli::{running::Running, service},
};

const GROUP: Group = Group::Running;

pub async fn checks(scope: &Scope) -> Vec<Check> {
    let check = |status, says: String| Check::new("running-adit", GROUP, status, says);
    let at_port = async {
        let socket = socket::of_port(scope.port()).await?;
        let (owner, status) = tokio::join!(socket::owner(&socket), socket::status(&socket));
        Some((socket, owner, status))
    };
    let with_configuration = async {
        let running = Running::find(&scope.globals, &scope.router).await?;
        socket::status(&running.socket).await.ok()
    };
    // Concurrently, because a hanging process makes each of them wait.
    let (found, with_file, at_port) = tokio::join!(with_configuration, with_file(scope), at_port);
    // The file may have been edited since the start: it may name another listener, or be invalid.
    if let Some(status) = found.or(with_file) {
        return of_status(scope, &status);
    }
    let Some((socket, owner, status)) = at_port else { return vec![none(check)] };
    vec![match (owner, status) {
        (_, Ok(status)) => {
            let pid = status.overview.pid;
            let with = status.overview.config.map_or("no file".to_owned(), |file| file.display().to_string());
            check(
                Status::Skip,
                format!("running adit: not checked, pid {pid} uses another configuration or context ({with})"),
            )
        }
        // No process listens: a killed one has left the socket.
        (None, _) => none(check),
        (Some(pid), Err(error)) => check(Status::Fail, format!("{error} (pid {pid})"))
            .detail(Some(format!("its socket is {}", socket.display())))
            .fix("end it and start it again", Some(again(scope, pid.cast_unsigned(), "kill -9"))),
    }]
}

/// Returns the status of the adit that runs with this configuration file.
async fn with_file(scope: &Scope) -> Option<Answer> {
    let file = scope.router.config.source.as_ref()?;
    let answers = join_all(socket::sockets().iter().map(|socket| socket::status(socket))).await;
    answers.into_iter().flatten().find(|status| status.overview.config.as_ref() == Some(file))
}

/// Returns the command that restarts an adit: by its service manager, if it is a service.
fn again(scope: &Scope, pid: u32, kill: &str) -> String {
    service::restart(pid).unwrap_or_else(|| format!("{kill} {pid} && adit{}", scope.option()))
}

fn none(check: impl Fn(Status, String) -> Check) -> Check {
    check(Status::Skip, "running adit: not checked, none runs with this configuration".to_owned())
}

fn of_status(scope: &Scope, status: &Answer) -> Vec<Check> {
    let overview = &status.overview;
    let mut all = vec![Check::new("running-adit", GROUP, Status::Ok, format!("adit answers (pid {})", overview.pid))];
    let own = env!("CARGO_PKG_VERSION");
    all.push(match overview.version == own {
        true => Check::new("running-version", GROUP, Status::Ok, format!("it has this program's version, {own}")),
        false => Check::new(
            "running-version",
            GROUP,
            Status::Warn,
            format!("its version is {}, and this program's {own}", overview.version),
        )
        .fix("end it and start it again", Some(again(scope, overview.pid, "kill"))),
    });
    all.push(match &overview.rejected {
        None => Check::new(
            "rejected-configuration",
            GROUP,
            Status::Ok,
            format!("it uses the configuration that it loaded at {}", overview.loaded_at),
        ),
        Some(reason) => Check::new(
            "rejected-configuration",
            GROUP,
            Status::Warn,
            "it has rejected the last change of its configuration",
        )
        .detail(Some(reason.clone()))
        .fix("see each mistake with its line", Some(format!("adit{} check", scope.option()))),
    });
    let failed: Vec<String> = status
        .tunnels
        .iter()
        .filter(|tunnel| tunnel.state == "failed")
        .map(|tunnel| format!("{}: {}", tunnel.id, tunnel.last_error.as_deref().unwrap_or("unknown")))
        .collect();
    all.push(match failed.is_empty() {
        true => Check::new(
            "failed-tunnels",
            GROUP,
            Status::Ok,
            format!("no tunnel has failed, of {}", status.tunnels.len()),
        ),
        false => Check::new(
            "failed-tunnels",
            GROUP,
            Status::Warn,
            format!("{} of {} tunnels have failed", failed.len(), status.tunnels.len()),
        )
        .detail(Some(failed.join("\n")))
        .fix("look at the last errors", Some("adit status".to_owned())),
    });
    all.extend(memory(overview.pid));
    all
}

/// Reads the memory and open files of the process (proc(5)).
fn memory(pid: u32) -> Option<Check> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Check::new(
        "memory",
        GROUP,
        Status::Ok,
        format!("it uses {} MiB of memory and {files} open files", kib / 1024),
    ))
}
