//! `adit url`: prints the URL of a Service, a pod or a route.

use super::{
    Globals, place,
    report::{CliError, print},
    running::Running,
};
use crate::{
    admin::api::{services, ways::Speaks},
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
    let running = Running::find(globals, &router).await;
    let listener = place::listener(running.as_ref(), &router);
    let given = of_url(&args.target, listener)?;
    let host = table::normalise(given);
    if given != args.target
        && table::find(&router.config.http.routes, &host).is_none()
        && let Err(error) = DynamicName::parse(&host, &router.config.http.dynamic_host)
    {
        return Err(not_ours(&args.target, &format!("its host is {host:?}: {error}")));
    }
    if table::find(&router.config.http.routes, &host).is_some() {
        return show(&format!("http://{host}:{listener}/"), running.as_ref(), listener);
    }
    let named = router.named(given, globals.namespace.as_ref())?;
    let target = named.route.target.pods().filter(|pods| pods.jump.is_none() && named.listener.is_none());
    let target = target.ok_or_else(|| {
        CliError::usage(format!("{:?} has no URL: it is not served by HTTP", args.target)).hint(Some(RUN))
    })?;
    let cluster = clusters.get(&target.cluster).await?;
    let resolved = resolve::resolve(&cluster, &target.namespace, &target.workload, &target.port).await?;
    let context = &target.cluster.context;
    let (of_others, of_names) = match target.workload {
        // The URL names the context, so it does not matter with which one adit runs.
        Workload::Pod(_) => (None, router.clone()),
        _ => place::serving(globals, &clusters, router.clone()).await?,
    };
    let running = running.or(of_others);
    let listener = place::listener(running.as_ref(), &router);
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
    let speaks = Speaks::of(&resolved.port);
    let url = speaks.url(Some(&name.to_string()), listener, None);
    if url.is_empty() {
        let (port, speaks) = (&resolved.port, speaks.as_str());
        let message = format!("{:?} has no URL: port {port} speaks {speaks}, which has no hostname", args.target);
        return Err(CliError::usage(message).hint(Some(RUN)));
    }
    show(&url, running.as_ref(), listener)
}

/// Prints a URL, with a note if no adit serves it.
fn show(url: &str, running: Option<&Running>, listener: u16) -> Result<(), CliError> {
    print(&format!("{url}\n"))?;
    if running.is_none() {
        place::note_not_running(listener);
    }
    Ok(())
}

/// Returns the host of a URL that adit has printed; any other text as it is.
///
/// # Errors
/// It is a URL with another scheme or port.
fn of_url(text: &str, listener: u16) -> Result<&str, CliError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(text) };
    if !["http", "https", "postgresql", "postgres"].contains(&scheme) {
        return Err(not_ours(text, &format!("its scheme is {scheme:?}")));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once(':') {
        Some((host, port)) if port == listener.to_string() => Ok(host),
        Some((_, port)) => Err(not_ours(text, &format!("its port is {port:?}, and adit listens on {listener}"))),
        None => Ok(authority),
    }
}

fn not_ours(url: &str, why: &str) -> CliError {
    let hint = "write SERVICE.NAMESPACE[:PORT], or http://SERVICE.NAMESPACE.localhost/";
    CliError::usage(format!("{url:?} is not a URL of adit: {why}")).hint(Some(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_url_is_a_target() {
        for (text, host) in [
            ("web.shop:80", "web.shop:80"),
            ("http://web.shop.localhost:8989/", "web.shop.localhost"),
            ("http://web.shop.localhost:8989", "web.shop.localhost"),
            ("https://web.shop.localhost/a:b?c", "web.shop.localhost"),
            ("postgresql://postgres.shop.localhost:8989/?sslmode=require", "postgres.shop.localhost"),
        ] {
            assert_eq!(of_url(text, 8989).unwrap(), host, "{text}");
        }
        for (text, part) in
            [("ftp://web.shop.localhost/", "scheme is \"ftp\""), ("http://web.shop.localhost:80/", "port is \"80\"")]
        {
            let error = of_url(text, 8989).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
