//! Error pages for requests that no pod answers, one for each reason.

use std::io;

use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, UPGRADE},
};
use rustls::AlertDescription;

use super::{body::innermost, error_page::Page, upstream::RequestError};
use crate::{
    config::{
        DASHBOARD_HOST, HttpOptions, PortRef, Scheme, Workload,
        shell::{adit, quoted},
    },
    error_code::ErrorCode,
    frontend::{door::NotAdmitted, protocol},
    guard::{normaliser::Refused, origin::Foreign},
    routing::{PodTarget, Route, RouteError, hostname::DynamicName},
    tunnel::{ClusterError, Lease, OpenError, SignInReport},
    wire::{database::Database, http1::Refusal},
};

/// Maximum number of bytes that a page shows of an answer that is not HTTP.
const MOST_SHOWN: usize = 60;

/// Returns the page for a name without a target. It lists routes only for names below `localhost`: with other names, a foreign
/// web page could read the list by DNS rebinding.
pub fn of_route(error: &RouteError, has_dashboard: bool) -> Page {
    let mut page = Page::of_route(error);
    let RouteError::Unknown { host, .. } = error else { return page };
    if !host.ends_with(".localhost") {
        return Page::new(page.status, page.code, page.title);
    }
    if has_dashboard {
        page.links.push(("all Services".to_owned(), DASHBOARD_HOST.to_owned()));
    }
    page
}

/// Returns the page of adit's own names. It names no Service, because any client of the port can read it.
pub fn index(has_dashboard: bool) -> Page {
    let mut page = Page::new(StatusCode::OK, ErrorCode::Index, "adit is running");
    page.hint = Some(match has_dashboard {
        true => "'adit ui' opens the dashboard, 'adit routes' lists what can be reached".to_owned(),
        false => "'adit routes' lists what can be reached".to_owned(),
    });
    page.links = has_dashboard.then(|| ("the dashboard".to_owned(), DASHBOARD_HOST.to_owned())).into_iter().collect();
    page
}

/// Returns the page for a client whom the forward proxy does not serve.
pub fn not_admitted(reason: NotAdmitted) -> Page {
    Page::new(StatusCode::PROXY_AUTHENTICATION_REQUIRED, ErrorCode::ProxyPassword, reason.to_string())
}

/// Returns the page for a host of another network that was not reached. `host`: with its port.
pub fn undirected(host: &str, reason: &str, is_timeout: bool) -> Page {
    let status = if is_timeout { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    Page { cause: Some(reason.to_owned()), ..Page::new(status, ErrorCode::Direct, format!("cannot reach {host}")) }
}

/// Returns the page for a request that the guard has refused.
pub fn refused(refused: Option<Refused>) -> Page {
    let (status, code) = match refused {
        Some(Refused::Slow(_)) => (StatusCode::REQUEST_TIMEOUT, ErrorCode::Slow),
        Some(Refused::Ambiguous(Refusal::TooLarge)) => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ErrorCode::TooLarge)
        }
        Some(Refused::Ambiguous(Refusal::TargetTooLong)) => (StatusCode::URI_TOO_LONG, ErrorCode::TargetTooLong),
        Some(Refused::Ambiguous(Refusal::NoHost)) => (StatusCode::BAD_REQUEST, ErrorCode::NoHost),
        Some(Refused::Ambiguous(Refusal::Connect)) => (StatusCode::BAD_REQUEST, ErrorCode::Connect),
        _ => (StatusCode::BAD_REQUEST, ErrorCode::Ambiguous),
    };
    let title = refused.map_or_else(|| "the request was refused".to_owned(), |refused| refused.to_string());
    Page::new(status, code, title)
}

/// Returns the page for a request that has passed through this adit before.
pub fn in_a_circle(host: &str) -> Page {
    Page {
        cause: Some("its CDN-Loop header says that it has been through this adit before".to_owned()),
        hint: Some(format!("the backend of {host} sends requests back to adit: check its route and its pod")),
        ..Page::new(StatusCode::LOOP_DETECTED, ErrorCode::Loop, "routing loop")
    }
}

/// Returns the page for a request from a web page of another site, with the line of configuration that allows it.
pub fn foreign(foreign: &Foreign, host: &str, route: &Route) -> Page {
    let hint = match foreign.from.contains("://") {
        true => {
            let origins = format!("allow_origins: [\"{}\"]", foreign.from);
            // Give a whole route if the name has none: it needs one for the option, and a route without options loses nothing.
            let is_plain = &*route.name == host && *route.options == HttpOptions::default();
            let workload = |pods: &PodTarget| match &pods.workload {
                Workload::Service(service) => Some(format!("service: {service}")),
                Workload::Pod(pod) => Some(format!("pod: {pod}")),
                // Its port may be the Service's, and a route to a pod has that of the pod.
                Workload::PodOfService { .. } | Workload::Address(_) => None,
            };
            let pods = route.target.pods().filter(|pods| is_plain && pods.jump.is_none());
            match pods.and_then(|pods| Some((pods, workload(pods)?))) {
                Some((PodTarget { cluster, namespace, port, .. }, workload)) => {
                    let port = match port {
                        PortRef::Number(port) => format!("port: {port}, "),
                        PortRef::Name(port) => format!("port: {port}, "),
                        PortRef::Auto | PortRef::Https => String::new(),
                    };
                    let context = protocol::context_key(host, &cluster.context);
                    let line = format!("\"{host}\": {{{context}namespace: {namespace}, {workload}, {port}{origins}}}");
                    format!(
                        "if that page is yours, add this line to http.k8s.routes, or to the route of {host}:\n{line}"
                    )
                }
                None => format!("if that page is yours, add this line to the route of {host}:\n{origins}"),
            }
        }
        false => format!("if that page is yours, add its origin to allow_origins of the route for {host}"),
    };
    Page {
        cause: Some("blocked: cross-origin requests may not modify data".to_owned()),
        hint: Some(hint),
        ..Page::new(StatusCode::FORBIDDEN, ErrorCode::ForeignOrigin, foreign.to_string())
    }
}

/// Returns whether a person sees the answer: a browser opens a page.
pub fn is_shown<B>(request: &Request<B>) -> bool {
    let mut accepted = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.headers().contains_key(UPGRADE)
        && accepted.any(|value| value.contains("text/html"))
}

/// Returns the page that asks a person to sign in, or to wait for a sign-in.
pub fn signing_in(report: &SignInReport) -> Page {
    let seconds = report.since.map_or(0, |since| since.elapsed().as_secs());
    Page {
        cause: Some(format!("{} has run for {seconds} s: {}", report.issuer, report.user)),
        hint: Some(report.said.join("\n")).filter(|said| !said.is_empty()),
        reloads: true,
        ..Page::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::SigningIn, format!("signing in with {}", report.issuer))
    }
}

/// Returns the command that opens a database of a Service. `None`: the target is no Service.
fn client(database: Database, route: &Route) -> Option<String> {
    let pods = route.target.pods().filter(|pods| pods.jump.is_none())?;
    let Workload::Service(service) = &pods.workload else { return None };
    let port = match &pods.port {
        PortRef::Auto | PortRef::Https => String::new(),
        PortRef::Number(number) => format!(":{number}"),
        PortRef::Name(name) => format!(":{name}"),
    };
    let program = match database {
        Database::Postgres => "psql",
        Database::MySql => "mysql",
        Database::Redis => "sh -c 'redis-cli -p $DB_PORT'",
    };
    let context = quoted(pods.cluster.context.as_str());
    let adit = adit("run", &pods.cluster.kubeconfig);
    Some(format!("{adit} --context {context} --to db={service}.{}{port} -- {program}", pods.namespace))
}

/// Returns the command that finds out what is wrong with a target.
fn doctor(host: &str, route: &Route) -> String {
    // A command (`sni.routes`) reads no kubeconfig.
    let files = route.target.pods().map(|pods| pods.cluster.kubeconfig.clone()).unwrap_or_default();
    format!("{} {}", adit("doctor", &files), quoted(host))
}

/// Returns the page for a target that cannot be reached. Its links are names that contain a port.
pub fn unopened(error: &OpenError, host: &str, route: &Route) -> Page {
    let mut page = Page::of_open(error, host);
    if page.hint.is_none() && page.links.is_empty() && page.status.is_server_error() {
        page.hint = Some(doctor(host, route));
    }
    // A route's name cannot contain a port: link to the dynamic name of the same target.
    if !error.ports().is_empty()
        && let Some(target) = route.target.pods()
        && let Workload::Service(service) | Workload::PodOfService { service, .. } = &target.workload
        && (matches!(target.workload, Workload::Service(_))
            || matches!(error, OpenError::Cluster(ClusterError::PortAsPod { .. })))
    {
        let base = DynamicName {
            context: None,
            namespace: target.namespace.clone(),
            workload: Workload::Service(service.clone()),
            port: PortRef::Auto,
        };
        if !host.ends_with(&base.to_string()) && !host.ends_with(".cx.localhost") {
            page.links =
                error.ports().iter().map(|port| (port.to_string(), format!("{}.{base}", port.number))).collect();
        }
    }
    match page.status.is_server_error() {
        true => page.with_tunnel(&route.target.to_string()),
        false => page,
    }
}

/// Returns the page for a request that the pod did not answer.
pub fn unanswered(error: &RequestError, host: &str, route: &Route, lease: &Lease) -> Page {
    let mut page = of_request(error, host, route, lease);
    if let Some(reason) = lease.not_ready() {
        let note = format!("the pod is not ready ({reason})");
        page.cause = Some(page.cause.map_or_else(|| note.clone(), |cause| format!("{cause}; {note}")));
    }
    match error {
        // `unopened` has added the link.
        RequestError::Open(_) => page,
        _ => page.with_tunnel(&route.target.to_string()),
    }
}

fn of_request(error: &RequestError, host: &str, route: &Route, lease: &Lease) -> Page {
    if let Some(alert) = error.alert() {
        return Page {
            cause: Some(describe(error)),
            hint: Some(after_alert(alert, host, route)),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::BackendTls, format!("no TLS with {}", route.target))
        };
    }
    match (error, error.fault()) {
        (RequestError::Open(OpenError::Stream(fault)), _) => Page::of_stream(fault, &route.target.to_string()),
        (RequestError::Open(error), _) => unopened(error, host, route),
        (RequestError::Client(cause), _) => Page {
            cause: Some(cause.clone()),
            ..Page::new(StatusCode::BAD_REQUEST, ErrorCode::Body, "the request's body is not complete")
        },
        (_, Some(fault)) => Page::of_stream(fault, &route.target.to_string()),
        (RequestError::TlsFile(error), None) => Page {
            cause: Some(error.to_string()),
            hint: Some(format!("correct ca, client_cert or client_key of the route of {host}; adit check tests them")),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::BackendTls, format!("no TLS with {}", route.target))
        },
        (RequestError::Tls(error), None) => Page {
            cause: Some(of_tls(error)),
            hint: Some(
                match is_about_the_certificate(error) {
                    true => "correct the route's ca or server_name; verify: false accepts any certificate",
                    false => "is the backend https? set scheme: http, https or h2c for the route",
                }
                .to_owned(),
            ),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::BackendTls, format!("no TLS with {}", route.target))
        },
        (RequestError::WrongScheme { spoke, speaks, is_fixed }, None) => {
            let (spoke, name) = (protocol::name(*spoke), protocol::name(*speaks));
            let cause = match is_fixed {
                true => format!("the route of {host} says scheme: {spoke}"),
                false => format!("adit sent {spoke}, the backend answered {name}; adit sends {name} from now on"),
            };
            Page {
                cause: Some(cause),
                hint: Some(protocol::fix(route, &lease.endpoint(), *speaks)),
                ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::WrongScheme, format!("{} speaks {name}", route.target))
            }
        }
        (RequestError::OnlyHttp2, None) => Page {
            cause: Some(describe(error)),
            hint: Some("let the server accept HTTP/1.1 on this port too".to_owned()),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::NoSwitch, format!("{} does not switch", route.target))
        },
        (RequestError::Database(database), None) => Page {
            cause: Some(format!(
                "port {} of the Service is declared as a {} port",
                lease.endpoint().port.number,
                database.name()
            )),
            hint: Some(match client(*database, route) {
                Some(command) => {
                    format!("{command}\n(if it speaks HTTP: {})", protocol::fix(route, &lease.endpoint(), Scheme::Http))
                }
                None => doctor(host, route),
            }),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::BadAnswer, format!("{} does not speak HTTP", route.target))
        },
        (_, None) => Page {
            cause: Some(describe(error)),
            // It recognises databases and other servers, and prints the command for them.
            hint: Some(doctor(host, route)),
            reset: error.reset(),
            ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::BadAnswer, format!("no HTTP answer from {}", route.target))
        },
    }
}

/// Returns advice after a TLS alert of the backend.
fn after_alert(alert: AlertDescription, host: &str, route: &Route) -> String {
    use AlertDescription as Alert;
    match (alert, route.options.tls.client_cert.is_some()) {
        (Alert::UnrecognisedName, _) => {
            "set server_name of the route to a name that the backend has a certificate for".to_owned()
        }
        (alert, false) if is_about_the_clients_certificate(alert) => {
            "the backend wants a client certificate: set client_cert and client_key of the route".to_owned()
        }
        (alert, true) if is_about_the_clients_certificate(alert) => {
            "the backend does not accept client_cert of the route".to_owned()
        }
        // OpenSSL says no more to a client without a certificate in TLS 1.2.
        (Alert::HandshakeFailure, false) => {
            "if the backend wants a client certificate: set client_cert and client_key of the route".to_owned()
        }
        _ => doctor(host, route),
    }
}

/// RFC 8446, section 6.2.
fn is_about_the_clients_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

/// Returns the name of an alert in RFC 8446: `unrecognized_name`.
fn alert_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    for letter in format!("{alert:?}").chars() {
        if letter.is_uppercase() && name.ends_with(char::is_lowercase) {
            name.push('_');
        }
        name.push(letter);
    }
    // The library spells it the British way.
    name.to_lowercase().replace("unrecognised", "unrecognized")
}

/// Returns an error's message.
pub fn describe(error: &RequestError) -> String {
    if let Some(alert) = error.alert() {
        return format!("the backend ended TLS with the alert {}", alert_name(alert));
    }
    match error {
        RequestError::Open(error) => error.to_string(),
        RequestError::Stream(fault) => fault.to_string(),
        RequestError::TlsFile(error) => error.to_string(),
        RequestError::Tls(error) => of_tls(error),
        RequestError::Client(cause) => format!("the request's body is not complete: {cause}"),
        RequestError::NotHttp2 => "it does not speak HTTP/2".to_owned(),
        RequestError::OnlyHttp2 => "it speaks only HTTP/2, and adit sends WebSockets over HTTP/1.1".to_owned(),
        RequestError::Database(database) => format!("its port is declared as a {} port", database.name()),
        RequestError::WrongScheme { spoke, speaks, .. } => {
            format!("adit sent {}, the backend answered {}", protocol::name(*spoke), protocol::name(*speaks))
        }
        RequestError::Http1(error, said) => of_http1(error, said),
        RequestError::Http2(error) => match error.reason() {
            Some(reason) if error.is_reset() => format!("it reset the stream of HTTP/2: {}", reason.description()),
            Some(reason) => format!("the connection of HTTP/2 ended: {}", reason.description()),
            None => "it closed the connection of HTTP/2 before it had answered".to_owned(),
        },
    }
}

fn of_http1(error: &hyper::Error, said: &[u8]) -> String {
    if error.is_parse_too_large() {
        return "the headers of its answer are too many or too long".to_owned();
    }
    if error.is_parse() && !said.is_empty() && !said.starts_with(b"HTTP/") {
        let shown = said[..said.len().min(MOST_SHOWN)].escape_ascii();
        return format!("it does not answer with HTTP, but with \"{shown}\"");
    }
    if error.is_parse() {
        return "its answer is not valid HTTP/1".to_owned();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "it closed the connection before it had answered".to_owned();
    }
    format!("the connection to it broke: {}", innermost(error))
}

/// Returns the message of a failed TLS handshake.
fn of_tls(error: &io::Error) -> String {
    use rustls::{CertificateError as Certificate, Error};
    let Some(of_tls) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return format!("TLS: {error}");
    };
    match of_tls {
        Error::InvalidMessage(_) => "the backend does not speak TLS".to_owned(),
        Error::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature) => {
            "the backend's certificate is not signed by the CA bundle".to_owned()
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "the backend's certificate has expired".to_owned()
        }
        // rustls-webpki's own error has no variant in rustls.
        Error::InvalidCertificate(Certificate::Other(other)) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the backend's certificate is a CA certificate".to_owned()
        }
        Error::InvalidCertificate(problem) => format!("the backend's certificate is not valid: {problem}"),
        other => format!("TLS: {other}"),
    }
}

fn is_about_the_certificate(error: &io::Error) -> bool {
    let of_tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(of_tls, Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, InvalidMessage, OtherError};

    use super::*;

    #[test]
    fn a_failed_handshake_says_what_is_wrong_with_the_backend() {
        let said = |error: rustls::Error| of_tls(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(said(InvalidMessage::InvalidContentType.into()), "the backend does not speak TLS");
        let ca = OtherError(std::sync::Arc::new(webpki_error()));
        assert_eq!(said(CertificateError::Other(ca).into()), "the backend's certificate is a CA certificate");
        assert!(said(CertificateError::UnknownIssuer.into()).contains("not signed by the CA bundle"));
        assert_eq!(of_tls(&io::ErrorKind::UnexpectedEof.into()), "TLS: unexpected end of file");
    }

    #[test]
    fn the_line_that_allows_a_page_is_valid_and_keeps_the_target() {
        use crate::{
            config::validate,
            routing::{Contexts, Router},
        };
        let router = |text: &str| {
            let config = validate::parse(std::path::Path::new("c"), text.as_bytes()).unwrap();
            let contexts =
                std::sync::Arc::new(Contexts { current: Some("dev".parse().unwrap()), ..Contexts::default() });
            Router { config: config.into(), http_contexts: contexts.clone(), tcp_contexts: contexts }
        };
        let foreign_page = Foreign { from: "https://app.test".to_owned() };
        for host in [
            "web.shop.localhost",
            "8080.web.shop.localhost",
            "web.shop.prod.cx.localhost",
            "web-http.svc.shop.ns.prod.cx.k8s.localhost",
            "db-0-80.pod.shop.ns.prod.cx.k8s.localhost",
        ] {
            let before = router("{}").http(host).unwrap();
            let hint = foreign(&foreign_page, host, &before).hint.unwrap();
            let line = hint.split_once('\n').unwrap().1;
            let after = router(&format!("http: {{k8s: {{routes: {{{line}}}}}}}\n")).http(host).unwrap();
            assert_eq!(after.target, before.target, "{line}");
            assert!(!after.options.allow_origins.is_empty(), "{line}");
        }
    }

    /// Stands for the error of rustls-webpki.
    fn webpki_error() -> impl std::error::Error + Send + Sync {
        #[derive(Debug, thiserror::Error)]
        #[error("CaUsedAsEndEntity")]
        struct CaUsedAsEndEntity;
        CaUsedAsEndEntity
    }
}
