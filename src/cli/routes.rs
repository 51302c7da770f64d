//! `adit routes`: what can be reached, with the URL of each.

use std::io;

use super::{
    Globals, Output,
    place::Place,
    report::{CliError, print, table},
};
use crate::{
    config::{Namespace, PortRef, Workload},
    k8s::{
        ServicePort,
        list::{self, Listed},
        ports::choose_port,
    },
    routing::{Router, hostname::DynamicName},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit routes -A\n  adit routes -n shop --context prod -o json")]
pub struct Args {
    /// List the Services of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Print JSON
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// A line of the list.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    port: Option<String>,
    url: String,
    leads_to: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let place = Place::find(globals).await?;
    let (context, namespace, port) = (place.context(), &place.namespace, place.listener());
    let services = list::services(&place.cluster, (!args.all_namespaces).then_some(namespace)).await?;
    let mut rows: Vec<Row> = static_routes(&place.router, port);
    let named = place.named_context();
    rows.extend(services.iter().flat_map(|service| service_rows(service, named.as_deref(), port)));
    match args.output {
        Some(Output::Json) => print(&format!("{}\n", serde_json::to_string_pretty(&rows).map_err(io::Error::other)?)),
        None if rows.is_empty() => {
            print(&format!("no Services in namespace {namespace} of context {context}; -A lists all namespaces\n"))
        }
        None => {
            let mut lines = vec![["NAME", "PORT", "URL"].map(str::to_owned).to_vec()];
            lines.extend(
                rows.into_iter().map(|row| vec![row.name, row.port.unwrap_or_else(|| "-".to_owned()), row.url]),
            );
            print(&table(&lines))
        }
    }
}

fn static_routes(router: &Router, port: u16) -> Vec<Row> {
    let http = router.config.http.routes.keys().map(|host| Row {
        name: host.clone(),
        port: None,
        url: format!("http://{host}:{port}/"),
        leads_to: router.http(host).map_or_else(|error| error.to_string(), |route| route.target.to_string()),
    });
    let tcp = router.config.tcp.routes.keys().map(|address| Row {
        name: address.to_string(),
        port: None,
        url: format!("tcp://{address}"),
        leads_to: router.tcp(*address).map_or_else(|error| error.to_string(), |route| route.target.to_string()),
    });
    http.chain(tcp).collect()
}

fn service_rows(service: &Listed, context: Option<&str>, listener: u16) -> Vec<Row> {
    let obvious = choose_port(&service.ports, &PortRef::Auto).map(|port| port.number);
    let row = |port: &ServicePort| Row {
        name: format!("{}/{}", service.namespace, service.name),
        port: Some(port.to_string()),
        url: service_url(
            &service.namespace,
            &service.name,
            (obvious != Some(port.number)).then_some(port.number),
            context,
            listener,
        ),
        leads_to: format!("{}/{}:{}", service.namespace, service.name, port.number),
    };
    service.ports.iter().map(row).collect()
}

/// Returns the URL of a Service by its short name.
pub fn service_url(
    namespace: &Namespace,
    service: &str,
    port: Option<u16>,
    context: Option<&str>,
    listener: u16,
) -> String {
    let name = DynamicName {
        context: context.map(str::to_owned),
        namespace: namespace.clone(),
        workload: Workload::Service(service.to_owned()),
        port: port.map_or(PortRef::Auto, PortRef::Number),
    };
    format!("http://{name}:{listener}/")
}
