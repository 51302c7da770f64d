//! `adit browser`: a Chromium with its own profile, which resolves the cluster's names.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Globals, proxy,
    report::{CliError, print},
};
use crate::{
    config::{Namespace, Workload, defaults},
    routing::cluster_name::ClusterName,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit browser web.shop\n  adit browser http://grafana.monitoring.svc.cluster.local:3000/"
)]
pub struct Args {
    /// The Service, SERVICE[.NAMESPACE][:PORT], or a URL
    target: String,
    /// Use this program [default: the first Chromium, Chrome, Brave or Edge that is found]
    #[arg(long, value_name = "PROGRAM")]
    browser: Option<PathBuf>,
}

/// Executables of Chromium and browsers built from it.
const NAMES: [&str; 8] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "brave-browser",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
];

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let config = globals.load()?;
    if let Some(context) = proxy::other_context(globals, &config).await? {
        let title = format!("the browser would not reach context {context}: its proxy settings cannot name a context");
        let hint = "restart adit with this --context, or open the URL that 'adit url' prints for the Service";
        return Err(CliError::new(title).hint(Some(hint)));
    }
    let address = proxy::address(&config)?;
    let domain = config.proxy.as_ref().map_or(defaults::CLUSTER_DOMAIN, |proxy| proxy.cluster_domain.as_str());
    let url = url(&args.target, globals.namespace.as_ref(), domain)?;
    let browser = match &args.browser {
        Some(browser) => browser.clone(),
        None => NAMES.iter().find_map(|name| found(name)).ok_or_else(|| {
            CliError::new("no Chromium, Chrome, Brave or Edge was found").hint(Some("say which one: --browser PROGRAM"))
        })?,
    };
    let profile =
        profile(address.port()).ok_or_else(|| CliError::new("there is no home folder for the browser's profile"))?;
    let mut command = Command::new(&browser);
    command.arg(format!("--user-data-dir={}", profile.display()));
    command.arg(format!("--proxy-pac-url={}", proxy::pac(address)));
    command.args(["--no-first-run", "--no-default-browser-check", &url]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn();
    started.map_err(|error| CliError::new(format!("cannot start {}", browser.display())).cause(Some(error)))?;
    print(&format!("{url}\n"))
}

/// Returns the URL of a Service by its name in the cluster; URLs unchanged.
fn url(target: &str, namespace: Option<&Namespace>, domain: &str) -> Result<String, CliError> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return Ok(target.to_owned());
    }
    let (name, port) = target.split_once(':').map_or((target, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err(CliError::usage(format!("{target:?} has no port from 1 to 65535 behind its colon")));
    }
    let Some(parsed) = ClusterName::parse(&name.to_ascii_lowercase(), domain) else {
        return Err(
            CliError::usage(format!("{target:?} is not a Service")).hint(Some("write SERVICE.NAMESPACE, or a URL"))
        );
    };
    // The browser sends only full names to the proxy, so the URL has one.
    let scheme = if port == Some("443") { "https" } else { "http" };
    let port = port.filter(|port| !matches!(*port, "80" | "443")).map(|port| format!(":{port}")).unwrap_or_default();
    let namespace = parsed.namespace.or_else(|| namespace.cloned());
    let Some(namespace) = namespace else {
        return Err(
            CliError::usage(format!("{target:?} names no namespace")).hint(Some("write SERVICE.NAMESPACE, or use -n"))
        );
    };
    let host = match parsed.workload {
        Workload::Address(_) => {
            return Err(
                CliError::usage(format!("{target:?} is an address")).hint(Some("write SERVICE.NAMESPACE, or a URL"))
            );
        }
        Workload::PodOfService { pod, service } => format!("{pod}.{service}"),
        Workload::Service(name) => name.into(),
        Workload::Pod(name) => name.into(),
    };
    Ok(format!("{scheme}://{host}.{namespace}.svc.{domain}{port}/"))
}

/// Returns the path of a program, which is a path or a name in `PATH`.
fn found(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Returns the folder of the profile for the adit at a port. A Chromium that runs with a profile ignores other proxy settings, so each
/// adit has its own.
fn profile(port: u16) -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    Some(state.or_else(|| Some(etcetera::home_dir().ok()?.join(".local/state")))?.join(format!("adit/browser-{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_adit_has_its_own_profile() {
        assert!(profile(8989).unwrap().ends_with("adit/browser-8989"));
    }

    #[test]
    fn services_have_urls_of_the_cluster() {
        for (target, namespace, wanted) in [
            ("web.shop", None, Some("http://web.shop.svc.cluster.local/")),
            ("web.shop:8080", None, Some("http://web.shop.svc.cluster.local:8080/")),
            ("web.shop:443", None, Some("https://web.shop.svc.cluster.local/")),
            ("web.shop:80", Some("x"), Some("http://web.shop.svc.cluster.local/")),
            ("web", Some("shop"), Some("http://web.shop.svc.cluster.local/")),
            ("db-0.db.shop.svc", None, Some("http://db-0.db.shop.svc.cluster.local/")),
            ("https://a.test/b", None, Some("https://a.test/b")),
            ("web", None, None),
            ("web.shop:0", None, None),
            ("web.shop:http", None, None),
            ("a b", None, None),
        ] {
            let namespace = namespace.map(|namespace| namespace.parse().unwrap());
            assert_eq!(url(target, namespace.as_ref(), "cluster.local").ok().as_deref(), wanted, "{target}");
        }
    }
}
