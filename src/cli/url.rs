//! `adit url`: the URL of a Service.

use super::{
    Globals,
    named_service::NamedService,
    place::Place,
    report::{CliError, print},
};
use crate::{
    admin::api::services,
    config::{InvalidValue, PortRef, Workload},
    k8s::resolve,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit url web.shop\n  adit url web.shop:8080\n  adit url web -n shop")]
pub struct Args {
    /// The Service: SERVICE[.NAMESPACE][:PORT]
    service: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (name, port) = match args.service.split_once(':') {
        Some((name, port)) => (name, port.parse().map_err(wrong)?),
        None => (args.service.as_str(), PortRef::Auto),
    };
    let NamedService { name: service, namespace } = name.parse().map_err(wrong)?;
    let place = Place::of(globals)?;
    let namespace = namespace.unwrap_or_else(|| place.namespace.clone());
    let cluster = place.cluster().await?;
    let resolved = resolve::resolve(&cluster, &namespace, &Workload::Service(service.clone()), &port).await?;
    let number = (port != PortRef::Auto).then_some(resolved.port.number);
    let named = place.named_context();
    print(&format!("{}\n", services::url(&namespace, &service, number, named.as_ref(), place.listener())))
}

fn wrong(invalid: InvalidValue) -> CliError {
    CliError::usage(invalid).hint(Some("write SERVICE, SERVICE.NAMESPACE or SERVICE.NAMESPACE:PORT"))
}
