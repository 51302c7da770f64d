//! Default values and default paths.

use std::{
    env,
    ffi::OsStr,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Config, ForwardProxy, Http, KubeconfigPaths, PortRange, Tcp};

pub const PORT: u16 = 8989;
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Shorter default for SNI routes, because databases keep their connections open.
pub const SNI_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Time limit until a command listens.
pub const COMMAND_STARTUP: Duration = Duration::from_secs(15);
/// Ports that adit assigns to commands.
pub const COMMAND_PORTS: PortRange =
    PortRange::new(NonZeroU16::new(20_000).unwrap(), NonZeroU16::new(20_999).unwrap()).unwrap();
/// adit searches `PATH` for it.
pub const CLOUDFLARED: &str = "cloudflared";
/// Time limit until the pod of a jump is ready.
pub const JUMP_POD_TIMEOUT: Duration = Duration::from_secs(60);
pub const CLUSTER_DOMAIN: &str = "cluster.local";
pub const DYNAMIC_HOST: &str = "k8s.localhost";

/// Returns the loopback addresses for a port: 127.0.0.1, and `[::1]`, which browsers try first.
pub fn loopback(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
}

/// Returns the configuration that holds without a file: every Service of the current context by name.
pub fn config() -> Config {
    let kubeconfig = kubeconfig_paths(None);
    Config {
        source: None,
        shown: serde_json::Value::Null,
        verbose: false,
        auto_reload: true,
        workers: None,
        exec_path: Vec::new(),
        default_context: None,
        contexts: Default::default(),
        http: Http {
            listen: loopback(PORT),
            idle_timeout: IDLE_TIMEOUT,
            kubeconfig: kubeconfig.clone(),
            dynamic_host: DYNAMIC_HOST.to_owned(),
            proxy_protocol: Default::default(),
            routes: Default::default(),
        },
        tcp: Tcp {
            idle_timeout: IDLE_TIMEOUT,
            proxy_protocol: Default::default(),
            kubeconfig,
            routes: Default::default(),
        },
        sni: None,
        local: Vec::new(),
        notes: Vec::new(),
        proxy: Some(ForwardProxy::default()),
        admin: Default::default(),
        dashboard: true,
        audit: None,
    }
}

/// Returns the path of the configuration: `--config`, `$ADIT_CONFIG`, `$XDG_CONFIG_HOME/adit/config.yaml`, or
/// `~/.config/adit/config.yaml`. `None`: there is no home folder.
pub fn config_path(option: Option<PathBuf>) -> Option<PathBuf> {
    option.or_else(|| non_empty("ADIT_CONFIG")).or_else(|| {
        let folder = non_empty("XDG_CONFIG_HOME").or_else(|| Some(etcetera::home_dir().ok()?.join(".config")))?;
        Some(folder.join("adit/config.yaml"))
    })
}

/// Returns the paths of the kubeconfig files: those of `option` (a list like `$KUBECONFIG`), else of `$KUBECONFIG`, else
/// `~/.kube/config`. In a pod, files that do not exist are left out, so the result may be empty.
pub fn kubeconfig_paths(option: Option<&str>) -> KubeconfigPaths {
    // A `~` that the shell has left is a folder's name for kubectl.
    let split = |list: &OsStr| env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect();
    if let Some(list) = option.filter(|list| !list.is_empty()) {
        // `--kubeconfig` of kubectl is one path, which may contain a colon.
        if Path::new(list).exists() {
            return KubeconfigPaths(vec![list.into()]);
        }
        return KubeconfigPaths(split(list.as_ref()));
    }
    let paths: Vec<PathBuf> = match non_empty("KUBECONFIG") {
        Some(list) => split(list.as_os_str()),
        None => etcetera::home_dir().ok().map(|home| home.join(".kube/config")).into_iter().collect(),
    };
    let in_cluster = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    KubeconfigPaths(paths.into_iter().filter(|path| !in_cluster || path.exists()).collect())
}

/// Returns the path with a leading `~` or `~/` replaced by the home folder; other paths unchanged.
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), etcetera::home_dir()) {
        (Some(rest), Ok(home)) if rest.is_empty() || rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
