//! `adit url`: the URL of a Service.

use super::{
    Globals,
    place::Place,
    report::{CliError, print},
};
use crate::{
    admin::api::services,
    config::{Namespace, PortRef, Workload},
    k8s::resolve,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit url web.shop\n  adit url web.shop:8080\n  adit url web -n shop")]
pub struct Args {
    /// The Service: SERVICE[.NAMESPACE][:PORT]
    service: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let place = Place::of(globals)?;
    let (name, port) = match args.service.split_once(':') {
        Some((name, port)) => (name, port_ref(port)?),
        None => (args.service.as_str(), PortRef::Auto),
    };
    let (service, namespace) = match name.split_once('.') {
        Some((service, namespace)) => (service, Namespace(namespace.to_owned())),
        None => (name, place.namespace.clone()),
    };
    let cluster = place.cluster().await?;
    let resolved = resolve::resolve(&cluster, &namespace, &Workload::Service(service.to_owned()), &port).await?;
    let number = (port != PortRef::Auto).then_some(resolved.port.number);
    let named = place.named_context();
    print(&format!("{}\n", services::url(&namespace, service, number, named.as_deref(), place.listener())))
}

fn port_ref(text: &str) -> Result<PortRef, CliError> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(PortRef::Number(port)),
        Err(_) if !text.is_empty() && !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(PortRef::Name(text.to_owned()))
        }
        _ => Err(CliError::usage(format!("{text:?} is not a port")).hint(Some("use 1-65535, or the name of a port"))),
    }
}
