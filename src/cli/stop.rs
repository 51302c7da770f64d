//! `adit stop`: stops a tunnel of the running adit.

use super::{
    Globals,
    report::{CliError, print},
    status,
};
use crate::{
    admin::{
        api::answers::Overview,
        socket::{self, CallError},
    },
    config::{PortRef, shell},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit status\n  adit stop demo/shop/web\n  adit stop web.shop")]
pub struct Args {
    /// Tunnel as 'adit status' prints it, CONTEXT/NAMESPACE/SERVICE[:PORT], or a target, as for 'adit run'; without a port, all
    /// tunnels of the target
    tunnel: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (path, status) = status::find_one(globals).await?;
    let tunnels: Vec<String> = status.tunnels.into_iter().map(|tunnel| tunnel.id).collect();
    let mut stopped = String::new();
    for id in meant(globals, &status.overview, &args.tunnel, &tunnels) {
        match socket::post(&path, &format!("tunnels/{}/stop", socket::escape(id))).await {
            Ok(()) => stopped += &format!("stopped {id}\n"),
            // It has ended meanwhile.
            Err(CallError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !stopped.is_empty() {
        return print(&stopped);
    }
    let hint = match tunnels.is_empty() {
        true => "there are no tunnels".to_owned(),
        false => format!("the tunnels are {}", tunnels.join(", ")),
    };
    Err(CliError::new(format!("no tunnel {}", args.tunnel)).hint(Some(hint)))
}

/// Returns the tunnels that a text means: the one with this id, else those of the target that it names in the running adit.
fn meant<'a>(globals: &Globals, overview: &Overview, text: &str, tunnels: &'a [String]) -> Vec<&'a String> {
    let found: Vec<_> = tunnels.iter().filter(|tunnel| *tunnel == text).collect();
    if !found.is_empty() {
        return found;
    }
    let of_running = Globals {
        config: overview.config.clone(),
        context: overview.context.as_deref().and_then(|context| context.parse().ok()),
        namespace: overview.namespace.as_deref().and_then(|namespace| namespace.parse().ok()),
        kubeconfig: Some(shell::joined(&overview.kubeconfig)),
        listen: None,
        ..globals.clone()
    };
    let Ok(config) = of_running.load() else { return Vec::new() };
    let Ok(named) = super::router(config).1.named(text, of_running.namespace.as_ref()) else { return Vec::new() };
    let id = named.route.target.to_string();
    let of_any_port = format!("{id}:");
    let has_port = named.route.target.pods().is_none_or(|pods| pods.port != PortRef::Auto);
    tunnels.iter().filter(|tunnel| **tunnel == id || (!has_port && tunnel.starts_with(&of_any_port))).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_tunnel_is_named_by_its_id_or_its_target() {
        let globals = Cli::parse_from(["adit", "stop"].iter().take(1)).globals;
        let overview =
            Overview { context: Some("dev".to_owned()), kubeconfig: vec!["/none".into()], ..Overview::default() };
        let tunnels: Vec<String> =
            ["dev/shop/web", "dev/shop/web:443", "dev/shop/webhook:80", "dev/shop/db:5432"].map(str::to_owned).into();
        for (text, wanted) in [
            ("dev/shop/web", "dev/shop/web"),
            ("web.shop", "dev/shop/web dev/shop/web:443"),
            ("web.shop:443", "dev/shop/web:443"),
            ("svc/db.shop.svc.cluster.local", "dev/shop/db:5432"),
            ("db.shop.dev.cx.localhost", "dev/shop/db:5432"),
            ("other.shop", ""),
            ("/", ""),
        ] {
            let found: Vec<&str> = meant(&globals, &overview, text, &tunnels).into_iter().map(String::as_str).collect();
            assert_eq!(found.join(" "), wanted, "{text}");
        }
    }
}
