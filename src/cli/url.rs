//! `adit url`: prints the URL of a Service, a pod or a route.

use std::net::SocketAddr;

use super::{
    Globals, place,
    report::{CliError, print},
};
use crate::{
    admin::api::services,
    config::{PortRef, Workload, names::is_host},
    k8s::resolve,
    routing::{alias, hostname::DynamicName, table},
};

const RUN: &str = "adit run --to NAME=TARGET -- COMMAND gives a command its address";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit url web.shop\n  adit url web.shop:8080\n  adit url web -n shop\n  adit url web.shop.prod.cx\n  \
                  adit url pod/web-7c4.shop"
)]
pub struct Args {
    /// Target, as for 'adit run': SERVICE[.NAMESPACE][.CONTEXT.cx][:PORT], pod/POD[.NAMESPACE][:PORT], or the host of a route
    target: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (clusters, router) = super::router(globals.load()?);
    let listener = router.config.http.listen.first().map_or(0, SocketAddr::port);
    let host = table::normalise(&args.target);
    if table::find(&router.config.http.routes, &host).is_some() {
        return print(&format!("http://{host}:{listener}/\n"));
    }
    let named = router.named(&args.target, globals.namespace.as_ref())?;
    let target = named.route.target.pods().filter(|pods| pods.jump.is_none() && named.listener.is_none());
    let target = target.ok_or_else(|| {
        CliError::usage(format!("{:?} has no URL: it is not served by HTTP", args.target)).hint(Some(RUN))
    })?;
    let cluster = clusters.get(&target.cluster).await?;
    let resolved = resolve::resolve(&cluster, &target.namespace, &target.workload, &target.port).await?;
    let context = &target.cluster.context;
    let (_, of_names) = match target.workload {
        // The URL names the context, so it does not matter with which one adit runs.
        Workload::Pod(_) => (None, router.clone()),
        _ => place::serving(globals, &clusters, router.clone()).await?,
    };
    // A pod without a Service has only the long form of a name, which includes context and port.
    let (is_long, name) = match &target.workload {
        Workload::Pod(pod) if !is_host(pod) => {
            return Err(CliError::new(format!("no URL can contain the name of pod {pod}: a part of it is too long"))
                .hint(Some(RUN)));
        }
        Workload::Pod(_) => (true, of_names.name_of(context).map(Some).ok_or(services::NoName)),
        _ => (false, services::named_context(&of_names, context)),
    };
    let context = name.map_err(|services::NoName| {
        let advice = alias::advice(context, &router.http_contexts);
        CliError::new(format!("no URL can contain the name of context {context}")).hint(Some(advice))
    })?;
    let name = DynamicName {
        context,
        namespace: target.namespace.clone(),
        workload: target.workload.clone(),
        port: match target.port {
            PortRef::Auto if !is_long => PortRef::Auto,
            _ => PortRef::number(resolved.port.number).unwrap_or(PortRef::Auto),
        },
    };
    print(&format!("http://{name}:{listener}/\n"))
}
