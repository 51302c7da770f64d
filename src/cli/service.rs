//! `adit service`: runs adit under systemd or launchd, for this user.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use clap::Subcommand;

use super::{
    Globals,
    listeners::{self, Owner},
    report::{CliError, print},
    up,
};
use crate::{
    atomic_file,
    config::{Config, defaults, shell},
    listener::bind::{self, BindError, Kind, Wanted},
    service::{Installed, Service, ServiceFile, launchd, systemd},
    subprocess,
};

/// Variables of credential plugins and of the API client. The service gets those that are set now.
const KEPT: &[&str] = &[
    "PATH",
    "KUBECONFIG",
    "ADIT_CONFIG",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "DISABLE_HTTP2",
    "KUBERC",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "CLOUDSDK_CONFIG",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit service install\n  adit service install --env AWS_REGION --dry-run\n  \
                        adit service status\n  adit service uninstall\n\n\
                        Exit codes of status: 0 installed and running; 3 not")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install and start the service; run again after changing PATH, options or environment
    Install {
        /// Variable to copy into the service's environment, beside PATH, KUBECONFIG, and those of proxies, SSL_CERT_FILE, aws and gcloud
        #[arg(long = "env", value_name = "NAME")]
        variables: Vec<String>,
        /// Print the files and the commands, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Stop the service and delete its files
    Uninstall,
    /// Show whether the service is installed and running
    Status,
}

/// The service manager of this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Systemd,
    Launchd,
}

impl Manager {
    fn here() -> Self {
        if cfg!(target_os = "macos") { Self::Launchd } else { Self::Systemd }
    }

    /// Returns the folder of the user's own services.
    fn folder(self) -> Result<PathBuf, CliError> {
        let home = etcetera::home_dir().map_err(|_| CliError::new("no home folder: set HOME"))?;
        Ok(match self {
            Self::Launchd => home.join("Library/LaunchAgents"),
            Self::Systemd => {
                let usual = home.join(".config/systemd/user");
                let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
                config.map(|config| config.join("systemd/user")).filter(|path| is_read(path)).unwrap_or(usual)
            }
        })
    }

    fn files(self, service: &Service) -> Result<Vec<ServiceFile>, CliError> {
        let folder = self.folder()?;
        Ok(match self {
            Self::Systemd => systemd::files(service, &folder),
            Self::Launchd => {
                let log = folder.with_file_name("Logs").join("adit.log");
                vec![launchd::file(service, &folder, Some(&log))]
            }
        })
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Systemd => &[systemd::SERVICE_UNIT, systemd::SOCKET_UNIT],
            Self::Launchd => &["dev.adit.plist"],
        }
    }

    /// Returns every file that an installation of any version may have created.
    fn possible_files(self) -> Result<Vec<PathBuf>, CliError> {
        let folder = self.folder()?;
        Ok(self.names().iter().map(|name| folder.join(name)).collect())
    }

    /// Returns the files of the user's service: the user's own, or those of a package.
    fn installed_files(self) -> Result<Vec<PathBuf>, CliError> {
        let of_users = UNITS.iter().filter(|(_, of_system)| self == Self::Systemd && !of_system);
        let folders = of_users.map(|(folder, _)| PathBuf::from(folder));
        Ok(first([self.folder()?].into_iter().chain(folders), self.names()))
    }

    /// Returns the commands that start the service of `files`. Commands that stop an older one may fail.
    fn start(self, files: &[ServiceFile]) -> Vec<Step> {
        match self {
            Self::Systemd => {
                let units = || files.iter().filter_map(|file| file.path.file_name()?.to_str());
                let with_units = |words: &[&'static str]| Step::new(words.iter().copied().chain(units()));
                vec![
                    Step::new(["systemctl", "--user", "daemon-reload"]),
                    with_units(&["systemctl", "--user", "enable"]),
                    Step::new(["systemctl", "--user", "stop", systemd::SERVICE_UNIT]).may_fail(),
                    with_units(&["systemctl", "--user", "restart"]).sockets_first(),
                ]
            }
            Self::Launchd => {
                let path = files.first().map(|file| file.path.to_string_lossy().into_owned()).unwrap_or_default();
                vec![
                    Step::new(["launchctl", "bootout", &target()]).may_fail(),
                    // bootout returns before the job is gone, and bootstrap fails until then.
                    Step::new(["launchctl", "print", &target()]).until_it_fails(),
                    Step::new(["launchctl", "bootstrap", &domain(), &path]),
                ]
            }
        }
    }

    /// Checks that the service will have an address: systemd would only say that the unit has failed, after the old service has ended.
    fn can_listen(self, wanted: Wanted) -> Result<(), CliError> {
        let (kind, address) = wanted.key;
        let Err(source) = bind::listen(address) else { return Ok(()) };
        let is_taken = source.kind() == io::ErrorKind::AddrInUse;
        let owner = listeners::owner(address).filter(|_| is_taken);
        if is_taken && self.holds(address, owner.as_ref()) {
            return Ok(());
        }
        let by = owner.map(|owner| format!("{} (pid {}) has it", owner.name, owner.pid));
        let error = BindError { kind, address, asked_by: wanted.asked_by, source };
        Err(CliError::new(&error).cause(by).hint(error.hint()))
    }

    /// Returns whether the installed service listens on an address: itself, or through its socket unit.
    fn holds(self, address: SocketAddr, owner: Option<&Owner>) -> bool {
        let own = restart_unit(false);
        match self {
            Self::Systemd => {
                let is_active = || Step::new(["systemctl", "--user", "is-active", systemd::SOCKET_UNIT]).run().is_ok();
                owner.is_some_and(|owner| restart(owner.pid).as_ref() == Some(&own))
                    || (of_address(address).as_ref() == Some(&own) && is_active())
            }
            Self::Launchd => Step::new(["launchctl", "print", &target()]).run().is_ok(),
        }
    }

    fn stop(self, installed: &[PathBuf]) -> Vec<Step> {
        match self {
            Self::Systemd => {
                let units = installed.iter().filter_map(|path| path.file_name()?.to_str());
                vec![Step::new(["systemctl", "--user", "disable", "--now"].into_iter().chain(units))]
            }
            Self::Launchd => vec![Step::new(["launchctl", "bootout", &target()]).may_fail()],
        }
    }
}

/// Returns whether the user's systemd reads units in a folder: it may have been started without the variables of this shell.
/// `true` if it does not answer.
fn is_read(folder: &Path) -> bool {
    let mut show = Command::new("systemctl");
    show.args(["--user", "show", "--property=UnitPath", "--value"]);
    let Ok(answer) = subprocess::output(&mut show, ANSWER_WITHIN) else { return true };
    let folders = String::from_utf8_lossy(&answer.stdout).into_owned();
    folders.trim().is_empty() || folders.split_whitespace().any(|other| Path::new(other) == folder)
}

/// Returns the installed service and its file: the user's own, else that of the system.
pub fn installed() -> Option<(PathBuf, Installed)> {
    let manager = Manager::here();
    let own = manager.possible_files().unwrap_or_default();
    // A package installs its units, and the user decides whether to enable them.
    let is_used = |folder: &str, of_system| !folder.starts_with("/usr") || is_enabled(of_system);
    let units =
        UNITS.iter().map(|(folder, of_system)| (Path::new(folder).join(systemd::SERVICE_UNIT), folder, of_system));
    let units = units.filter(|(unit, folder, of_system)| unit.exists() && is_used(folder, **of_system));
    let is_service = |path: &PathBuf| path.extension().is_none_or(|end| end != "socket");
    own.into_iter().chain(units.map(|(unit, ..)| unit)).filter(is_service).find_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        let installed = match manager {
            Manager::Systemd => systemd::installed(&text),
            Manager::Launchd => launchd::installed(&text),
        };
        Some((path, installed))
    })
}

/// Folders with units of systemd, beside the user's own; `true`: of the whole system, not of a user.
const UNITS: [(&str, bool); 4] = [
    ("/etc/systemd/user", false),
    ("/usr/lib/systemd/user", false),
    ("/etc/systemd/system", true),
    ("/usr/lib/systemd/system", true),
];

/// Returns whether systemd starts the service, or listens for it.
fn is_enabled(of_system: bool) -> bool {
    let mut ask = Command::new("systemctl");
    ask.arg(if of_system { "--system" } else { "--user" }).args([
        "is-enabled",
        systemd::SERVICE_UNIT,
        systemd::SOCKET_UNIT,
    ]);
    subprocess::output(&mut ask, ANSWER_WITHIN).is_ok_and(|answer| answer.status.success())
}

/// Returns the files of the first folder that has any: the user's own, or that of a package.
fn first(folders: impl IntoIterator<Item = PathBuf>, names: &[&str]) -> Vec<PathBuf> {
    let there = |folder: PathBuf| names.iter().map(|name| folder.join(name)).filter(|file| file.exists()).collect();
    folders.into_iter().map(there).find(|files: &Vec<_>| !files.is_empty()).unwrap_or_default()
}

fn restart_unit(of_system: bool) -> String {
    let manager = if of_system { "sudo systemctl" } else { "systemctl --user" };
    format!("{manager} restart {}", systemd::SERVICE_UNIT)
}

/// Returns the command that starts, or restarts, the service to whose socket unit an address belongs. `None`: it belongs to no
/// socket unit of adit.
pub fn of_address(address: SocketAddr) -> Option<String> {
    let own = Manager::Systemd.folder().ok().map(|folder| (folder, false));
    let all = own.into_iter().chain(UNITS.map(|(folder, of_system)| (folder.into(), of_system)));
    let has_it = |folder: &Path| {
        let text = fs::read_to_string(folder.join(systemd::SOCKET_UNIT)).unwrap_or_default();
        text.lines().any(|line| line.trim() == format!("ListenStream={address}"))
    };
    all.into_iter().find(|(folder, _)| has_it(folder)).map(|(_, of_system)| restart_unit(of_system))
}

/// Returns the command that restarts adit where a service manager has started it. `None`: it is no service.
pub fn restart(pid: u32) -> Option<String> {
    match Manager::here() {
        Manager::Systemd => of_cgroup(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?),
        Manager::Launchd => {
            let output = subprocess::output(Command::new("launchctl").args(["list", launchd::LABEL]), ANSWER_WITHIN);
            let is_it = String::from_utf8_lossy(&output.ok()?.stdout).contains(&format!("\"PID\" = {pid};"));
            is_it.then(|| format!("launchctl kickstart -k {}", target()))
        }
    }
}

/// Returns the command for a process in these control groups (cgroups(7)): systemd gives each unit one with its name.
fn of_cgroup(groups: &str) -> Option<String> {
    let unit = format!("/{}", systemd::SERVICE_UNIT);
    let group = groups.lines().find(|line| line.ends_with(&unit))?;
    Some(restart_unit(!group.contains("/user@")))
}

/// Returns launchd's name of the user's session.
fn domain() -> String {
    format!("gui/{}", rustix::process::getuid().as_raw())
}

fn target() -> String {
    format!("{}/{}", domain(), launchd::LABEL)
}

/// Time limit of the service manager's command. systemd gives a service 90 s to stop and 90 s to start.
const PATIENCE: Duration = Duration::from_secs(200);

/// Time limit of launchd's answer about a service.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Time limit for the end of the old job. adit ends within 11 s of SIGTERM; launchd kills a job that hangs after its own ExitTimeOut (20 s by
/// default).
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Pause between two questions whether a job is gone.
const PAUSE: Duration = Duration::from_millis(100);

/// Required result of a command of the service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Success,
    Any,
    /// It is repeated until it fails.
    Failure,
}

/// A command of the service manager.
struct Step {
    words: Vec<String>,
    end: End,
}

impl Step {
    fn new<'w>(words: impl IntoIterator<Item = &'w str>) -> Self {
        Self { words: words.into_iter().map(str::to_owned).collect(), end: End::Success }
    }

    fn may_fail(self) -> Self {
        Self { end: End::Any, ..self }
    }

    fn until_it_fails(self) -> Self {
        Self { end: End::Failure, ..self }
    }

    /// Moves sockets before services: a service that starts first would bind their addresses itself.
    fn sockets_first(mut self) -> Self {
        self.words.sort_by_key(|word| (word.ends_with(".service"), word.ends_with(".socket")));
        self
    }

    fn run(&self) -> Result<(), CliError> {
        let until = Instant::now() + GONE_WITHIN;
        while self.succeeds()? && self.end == End::Failure {
            if Instant::now() >= until {
                let title =
                    format!("the job has not ended within {} s: '{self}' still succeeds", GONE_WITHIN.as_secs());
                return Err(CliError::new(title).hint(Some("run 'adit service install' again")));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Returns whether the command succeeds.
    ///
    /// # Errors
    /// It cannot be run, or fails although it must not.
    fn succeeds(&self) -> Result<bool, CliError> {
        let (program, arguments) = self.words.split_first().ok_or_else(|| CliError::new("no command"))?;
        let output = subprocess::output(Command::new(program).args(arguments), PATIENCE).map_err(|error| {
            let hint = (error.kind() == io::ErrorKind::NotFound)
                .then(|| format!("{program} is not installed: run 'adit' from what starts your programs instead"));
            CliError::new(format!("cannot run '{self}'")).cause(Some(error)).hint(hint)
        })?;
        if output.status.success() || self.end != End::Success {
            return Ok(output.status.success());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let has_no_session = said.contains("Failed to connect") || said.contains("No medium found");
        let hint = if has_no_session {
            "there is no systemd session of this user: sign in as the user itself, not by sudo or su"
        } else if program == "launchctl" {
            "~/Library/Logs/adit.log has what adit said"
        } else {
            "journalctl --user -u adit.service -u adit.socket -n 20 shows what adit said"
        };
        Err(CliError::new(format!("'{self}' failed")).cause(Some(said)).hint(Some(hint)))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let manager = Manager::here();
    match args.action {
        Action::Install { variables, dry_run } => install(manager, globals, &variables, dry_run)?,
        Action::Uninstall => uninstall(manager)?,
        Action::Status => return status(manager),
    }
    Ok(ExitCode::SUCCESS)
}

fn install(manager: Manager, globals: &Globals, variables: &[String], dry_run: bool) -> Result<(), CliError> {
    let service = service(manager, globals, variables)?;
    let files = manager.files(&service)?;
    let steps = manager.start(&files);
    if dry_run {
        let texts = files.iter().map(|file| format!("# {}\n{}\n", file.path.display(), file.text));
        let commands = steps.iter().map(|step| format!("$ {step}\n"));
        return print(&texts.chain(commands).collect::<String>());
    }
    let config = globals.load()?;
    up::run_to_end(async { wanted(&config).into_iter().try_for_each(|wanted| manager.can_listen(wanted)) })?;
    let kept: Vec<_> = files.iter().map(|file| &file.path).collect();
    for stale in manager.possible_files()?.iter().filter(|path| !kept.contains(path) && path.exists()) {
        manager.stop(std::slice::from_ref(stale)).iter().try_for_each(Step::run)?;
        delete(stale)?;
    }
    for file in &files {
        write(file)?;
        print(&format!("wrote {}\n", file.path.display()))?;
    }
    for step in &steps {
        step.run()?;
        print(&format!("ran {step}\n"))?;
    }
    print("adit runs, and starts when you sign in. Its log: ")?;
    print(match manager {
        Manager::Systemd => {
            "journalctl --user -u adit.service\n'loginctl enable-linger' keeps it running while you are signed out.\n"
        }
        Manager::Launchd => "~/Library/Logs/adit.log\n",
    })
}

/// Returns the service for this command line.
fn service(manager: Manager, globals: &Globals, variables: &[String]) -> Result<Service, CliError> {
    let config = globals.load()?;
    globals.check_context(&config)?;
    let program = env::current_exe()?;
    let mut command = vec![program.to_string_lossy().into_owned(), "up".to_owned()];
    let mut option = |name: &str, value: Option<String>| {
        command.extend(value.map(|value| [name.to_owned(), value]).into_iter().flatten());
    };
    let absolute = |path: &PathBuf| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    option("--config", globals.config.as_ref().map(absolute).transpose()?);
    option("--context", globals.context.clone().map(String::from));
    option("--namespace", globals.namespace.clone().map(String::from));
    let files = globals.kubeconfig.as_deref().map(|list| defaults::kubeconfig_paths(Some(list)).0);
    option("--kubeconfig", files.map(absolute_list));
    option("--listen", globals.listen.clone());
    if globals.verbose {
        command.push("--verbose".to_owned());
    }
    let mut environment: BTreeMap<String, String> =
        KEPT.iter().filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?))).collect();
    // The service starts in another folder.
    environment
        .entry("KUBECONFIG".to_owned())
        .and_modify(|list| *list = absolute_list(env::split_paths(list).collect()));
    if let Some(file) = environment.get_mut("ADIT_CONFIG").filter(|file| !file.is_empty()) {
        *file = absolute(&PathBuf::from(&*file))?;
    }
    for name in variables {
        let value = env::var(name)
            .map_err(|_| CliError::usage(format!("--env {name}: the variable is not set in this shell")))?;
        environment.insert(name.clone(), value);
    }
    let listeners = wanted(&config).into_iter().map(|wanted| wanted.key.1).filter(|_| manager == Manager::Systemd);
    let listeners = listeners.collect();
    Ok(Service { command, environment, listeners })
}

/// Returns the paths as a list with absolute ones, without empty ones.
fn absolute_list(paths: Vec<PathBuf>) -> String {
    let paths = paths.into_iter().filter(|path| !path.as_os_str().is_empty());
    shell::joined(&paths.map(|path| std::path::absolute(&path).unwrap_or(path)).collect::<Vec<_>>())
}

/// Returns the addresses for systemd to listen on: those for clients, if this machine has them.
fn wanted(config: &Config) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    for wanted in bind::wanted(config) {
        let (kind, address) = wanted.key;
        let is_there = wanted.beside.is_none() || has(address.ip());
        if kind != Kind::Admin && address.port() != 0 && is_there && all.iter().all(|other| other.key.1 != address) {
            all.push(wanted);
        }
    }
    all
}

/// Returns whether this machine has an address.
fn has(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

fn write(file: &ServiceFile) -> Result<(), CliError> {
    let failed = |error: io::Error| CliError::new(format!("cannot write {}", file.path.display())).cause(Some(error));
    if let Some(folder) = file.path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // A proxy variable may hold a password.
    atomic_file::write(&file.path, file.text.as_bytes(), 0o600).map_err(failed)
}

fn delete(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CliError::new(format!("cannot delete {}", path.display())).cause(Some(error)))
        }
        _ => Ok(()),
    }
}

fn uninstall(manager: Manager) -> Result<(), CliError> {
    let (installed, own) = (manager.installed_files()?, manager.folder()?);
    if installed.is_empty() {
        return print("adit is not installed as a service\n");
    }
    for step in manager.stop(&installed) {
        step.run()?;
        print(&format!("ran {step}\n"))?;
    }
    for path in &installed {
        if !path.starts_with(&own) {
            print(&format!("kept {}: it belongs to a package or to the system\n", path.display()))?;
            continue;
        }
        delete(path)?;
        print(&format!("deleted {}\n", path.display()))?;
    }
    if manager == Manager::Systemd {
        Step::new(["systemctl", "--user", "daemon-reload"]).run()?;
    }
    Ok(())
}

/// Prints the state. Exit code: 0 if the service runs, else 3, as for systemctl.
fn status(manager: Manager) -> Result<ExitCode, CliError> {
    let installed = manager.installed_files()?;
    if installed.is_empty() {
        print("not installed: 'adit service install' does it\n")?;
        return Ok(ExitCode::from(3));
    }
    for path in &installed {
        print(&format!("installed {}\n", path.display()))?;
    }
    let step = match manager {
        Manager::Systemd => Step::new(["systemctl", "--user", "is-active", systemd::SERVICE_UNIT]),
        Manager::Launchd => Step::new(["launchctl", "print", &target()]),
    };
    let runs = step.run().is_ok();
    print(if runs { "running\n" } else { "not running: 'adit service install' starts it\n" })?;
    Ok(ExitCode::from(if runs { 0 } else { 3 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchd_starts_a_job_once_the_old_one_is_gone() {
        let words: Vec<_> = Manager::Launchd.start(&[]).iter().map(|step| (step.words[1].clone(), step.end)).collect();
        let wanted = [("bootout", End::Any), ("print", End::Failure), ("bootstrap", End::Success)];
        assert_eq!(words, wanted.map(|(word, end)| (word.to_owned(), end)));
        // The job is there for two more questions.
        let folder = tempfile::tempdir().unwrap();
        let asked = folder.path().join("asked").display().to_string();
        let script = "echo >> \"$0\"; [ $(wc -l < \"$0\") -lt 3 ]";
        Step::new(["sh", "-c", script, &asked]).until_it_fails().run().unwrap();
        assert_eq!(fs::read_to_string(&asked).unwrap().lines().count(), 3);
    }

    #[test]
    fn the_service_of_a_package_is_found_unless_the_user_has_an_own_one() {
        let home = tempfile::tempdir().unwrap();
        let folders = ["own", "package"].map(|name| home.path().join(name));
        let found = || first(folders.clone(), Manager::Systemd.names());
        assert!(found().is_empty());
        for folder in [1, 0] {
            let unit = folders[folder].join(systemd::SERVICE_UNIT);
            fs::create_dir(&folders[folder]).unwrap();
            fs::write(&unit, "").unwrap();
            assert_eq!(found(), [unit]);
        }
    }

    #[test]
    fn a_service_is_restarted_by_its_manager() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/adit.service\n";
        assert_eq!(of_cgroup(user).as_deref(), Some("systemctl --user restart adit.service"));
        let system = "1:name=systemd:/system.slice/adit.service\n0::/system.slice/adit.service\n";
        assert_eq!(of_cgroup(system).as_deref(), Some("sudo systemctl restart adit.service"));
        for other in ["", "0::/user.slice/session-1.scope\n", "0::/system.slice/my-adit.service\n"] {
            assert_eq!(of_cgroup(other), None, "{other}");
        }
    }
}
