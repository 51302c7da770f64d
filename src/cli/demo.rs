//! `adit demo`: a small cluster in this process, served by adit.

mod traffic;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use super::{
    Globals,
    report::{CliError, print},
    run::signals::{ENDS, Signals},
    up,
};
use crate::{
    app::{App, Bound, Overrides},
    config::{Config, Destination, HttpRoute, KubeconfigPaths, PortRef, TcpRoute, Workload, defaults},
    demo::Demo,
    telemetry,
};

/// Local ports of the demo's database and echo server, used if they are free.
const TCP: [(u16, &str, &str, u16); 2] = [(15432, "data", "postgres", 5432), (17001, "shop", "tools", 7001)];

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit demo\n  adit demo --quiet --listen 127.0.0.1:9999\n\nIt needs no cluster, and prints the URLs and the kubeconfig of its own. Its database listens on 127.0.0.1:15432 and its echo \
                  server on 127.0.0.1:17001, if these ports are free. Ctrl-C ends it."
)]
pub struct Args {
    /// Send no traffic, and restart no pod
    #[arg(long, short)]
    quiet: bool,
    /// Folder with the dashboard's files, read again for each request
    #[arg(long, hide = true, value_name = "FOLDER")]
    ui_dir: Option<PathBuf>,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let verbosity = telemetry::init(globals.format(), globals.verbose);
    let overrides = globals.overrides()?;
    up::run_to_end(async {
        let mut signals = Signals::new(ENDS)?;
        let demo =
            Demo::start().await.map_err(|error| CliError::new("cannot start the demo cluster").cause(Some(error)))?;
        // The demo has a kubeconfig of its own, with one context and all namespaces.
        let overrides = Overrides { verbose: globals.verbose, listen: overrides.listen, ..Overrides::default() };
        let config = config(&demo);
        let bound = up::bind(
            App { overrides, admin: true, verbosity: Some(verbosity), ui_dir: args.ui_dir, ..App::default() },
            config,
        )?;
        print(&banner(&demo, &bound))?;
        let traffic = (!args.quiet).then(|| tokio::spawn(traffic::run(bound.http_addresses(), demo.kubeconfig())));
        let ended = up::serve(bound, async || _ = signals.next().await).await;
        if let Some(traffic) = traffic {
            traffic.abort();
        }
        drop(demo);
        ended
    })
}

/// Returns a configuration with routes into the demo, without the user's own file.
fn config(demo: &Demo) -> Config {
    let mut config = defaults::config();
    let paths = KubeconfigPaths(vec![demo.kubeconfig()]);
    (config.http.kubeconfig, config.tcp.kubeconfig) = (paths.clone(), paths);
    let destination = |namespace: &str, service: &str, port: PortRef| {
        let (namespace, service) = (namespace.parse().ok()?, service.parse().ok()?);
        let workload = Workload::Service(service);
        Some(Destination { context: None, namespace: Some(namespace), workload, port, jump: None })
    };
    let idle_timeout = config.http.idle_timeout;
    if let Some(destination) = destination("shop", "web", PortRef::Auto) {
        let shop = HttpRoute { destination, idle_timeout, options: Default::default() };
        config.http.routes.insert("shop.localhost".to_owned(), shop);
    }
    for (local, namespace, service, port) in TCP {
        let address = SocketAddr::from(([127, 0, 0, 1], local));
        // Another demo, or a real database, may use the port.
        let is_free = std::net::TcpListener::bind(address).is_ok();
        if let Some(port) = PortRef::number(port).filter(|_| is_free)
            && let Some(destination) = destination(namespace, service, port)
        {
            config.tcp.routes.insert(address, TcpRoute { destination, also: None, idle_timeout });
        }
    }
    config
}

fn banner(demo: &Demo, bound: &Bound) -> String {
    let port = bound.http_addresses().first().map_or(0, SocketAddr::port);
    let has = |local: u16| bound.tcp_addresses().iter().any(|address| address.port() == local);
    let mut text = format!(
        "A small cluster runs in this process, and adit in front of it. Open in a browser, or with curl:\n\n\
         \x20 http://web.shop.localhost:{port}/              a web page that says what you are looking at\n\
         \x20 http://shop.localhost:{port}/headers           the request as the pod gets it, by a route of your own name\n\
         \x20 http://443.tools.shop.localhost:{port}/        an https backend\n\
         \x20 http://queue.shop.localhost:{port}/            several ports, none of them obvious\n\
         \x20 http://broken.shop.localhost:{port}/           no pod is ready\n\n"
    );
    if has(TCP[0].0) {
        text += &format!("  psql \"host=127.0.0.1 port={} user=demo dbname=demo\" -c 'select 1'\n", TCP[0].0);
    }
    if has(TCP[1].0) {
        text += &format!("  nc 127.0.0.1 {}                           speaks first, then echoes\n", TCP[1].0);
    }
    let listen = if port == defaults::PORT { String::new() } else { format!(" --listen {port}") };
    text += &format!(
        "\nIn another terminal:\n\n\
         \x20 export KUBECONFIG={}\n\
         \x20 adit routes -A{listen}    every Service, with its URL\n\
         \x20 adit ui{listen}           the dashboard in your browser\n\
         \x20 adit status{listen}       the tunnels\n\
         \x20 kubectl get pods,svc -A\n\nCtrl-C ends it.\n",
        super::doctor::report::quoted(&demo.kubeconfig().display().to_string())
    );
    text
}
