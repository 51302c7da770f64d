//! Checks the connection to an API server: name, TCP, TLS, version, and the signed-in user.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{Request, header::DATE};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{net::lookup_host, time::timeout};

use super::{
    kubeconfig::of_error,
    report::{Check, Group, Status, quoted},
    scope::Scope,
};
use crate::{
    error_code::ErrorCode,
    k8s::{
        ClusterError, Namespaces,
        client::{AskError, Cluster},
        upgrade,
    },
};

const GROUP: Group = Group::Cluster;

/// Time limit of a look-up or a connection.
const WITHIN: Duration = Duration::from_secs(3);

/// Maximum error of a clock. Tokens and certificates are valid from the moment of issue.
const MOST_SKEW: Duration = Duration::from_secs(60);

/// Adds the checks, and returns the server's minor version if it answers and the checks passed.
pub async fn checks(scope: &Scope, cluster: &Arc<Cluster>, all: &mut Vec<Check>) -> Option<u32> {
    let from = all.len();
    let mut minor = None;
    if way(scope, cluster, all).await {
        minor = answers(cluster, all).await;
    }
    // The clock check belongs to the machine, not to the context.
    for check in all[from..].iter_mut().filter(|check| check.group == GROUP) {
        check.context = Some(cluster.context.to_string());
    }
    let is_well = all[from..].iter().all(|check| check.status != Status::Fail || check.id == "clock");
    minor.filter(|_| is_well)
}

async fn way(scope: &Scope, cluster: &Cluster, all: &mut Vec<Check>) -> bool {
    let host = cluster.server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = cluster.server.port_u16().unwrap_or(if cluster.tls_server_name.is_some() { 443 } else { 80 });
    if cluster.proxy.is_none() && host.parse::<std::net::IpAddr>().is_err() {
        let found = timeout(WITHIN, lookup_host((host.as_str(), port))).await;
        let addresses: Vec<String> = match found {
            Ok(Ok(found)) => found.map(|address| address.ip().to_string()).collect(),
            _ => Vec::new(),
        };
        if addresses.is_empty() {
            let says = format!("the name {host} of the API server does not resolve");
            all.push(
                Check::new("api-dns", GROUP, Status::Fail, says)
                    .fix("check DNS and the VPN", Some(format!("getent hosts {host}"))),
            );
            return false;
        }
        all.push(Check::new("api-dns", GROUP, Status::Ok, format!("{host} is {}", addresses.join(", "))));
    }
    let through = cluster.proxy.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
    let connecting = timeout(WITHIN, cluster.dialer.connect(cluster.server.clone())).await;
    let reason = match connecting {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(cluster.why_unreachable(&*error)),
        Err(_) => Some(format!("no answer within {} s", WITHIN.as_secs())),
    };
    if let Some(reason) = reason {
        let says = format!("no connection to {host}:{port}{through}");
        let fix = match &cluster.proxy {
            Some(proxy) => format!(
                "is the proxy {proxy} running, and may it connect to the server? 'proxy-url' of the kubeconfig or $HTTPS_PROXY names it"
            ),
            None => "is the cluster running, and the VPN up?".to_owned(),
        };
        let command = curl("-vk", &cluster.server.to_string(), cluster.proxy.as_deref());
        all.push(Check::new("api-tcp", GROUP, Status::Fail, says).detail(Some(reason)).fix(fix, Some(command)));
        return false;
    }
    all.push(Check::new("api-tcp", GROUP, Status::Ok, format!("{host}:{port} accepts connections{through}")));
    if cluster.tls_server_name.is_some() {
        match upgrade::dial(cluster).await {
            Ok(_) => all.push(Check::new(
                "api-tls",
                GROUP,
                Status::Ok,
                "TLS handshake ok, certificate signed by the CA bundle",
            )),
            Err(error) => {
                all.push(tls_failed(scope, cluster, &error).await);
                return false;
            }
        }
    }
    true
}

/// Returns a command that asks the server for its version, through the same proxy as adit.
fn curl(options: &str, server: &str, proxy: Option<&str>) -> String {
    let proxy = proxy.map(|proxy| format!(" -x {}", quoted(proxy))).unwrap_or_default();
    format!("curl {options}{proxy} {}", quoted(&format!("{}/version", server.trim_end_matches('/'))))
}

/// Returns a failed check that names the issuer of the untrusted certificate: often a proxy that intercepts TLS.
async fn tls_failed(scope: &Scope, cluster: &Cluster, error: &ClusterError) -> Check {
    let issuer = timeout(WITHIN, upgrade::shown_issuer(cluster)).await.ok().flatten();
    let cause = error.cause().unwrap_or_default();
    let detail = match issuer {
        Some(issuer) => format!("{cause}\nthe certificate was issued by {issuer}"),
        None => cause.clone(),
    };
    let check = Check::new("api-tls", GROUP, Status::Fail, error.to_string()).detail(Some(detail));
    // Another CA bundle helps only if the current one did not sign the certificate.
    if !cause.contains("CA bundle") {
        return match cause.contains("tls-server-name") {
            true => {
                let view = format!(
                    "{} config view --minify -o jsonpath='{{.contexts[0].context.cluster}}'",
                    scope.kubectl_of(&cluster.context)
                );
                let name = presented(&cause).map(|name| {
                    format!("{} config set-cluster \"$({view})\" --tls-server-name={}", scope.kubectl(), quoted(name))
                });
                check.fix("where the server is the right one, name it as its certificate does", name)
            }
            false => check,
        };
    }
    let command = BUNDLES.iter().find(|bundle| Path::new(bundle).exists()).map(|bundle| {
        let name = "-o jsonpath='{.contexts[0].context.cluster}'";
        let view = format!("{} config view --minify {name}", scope.kubectl_of(&cluster.context));
        format!("{} config set-cluster \"$({view})\" --certificate-authority={bundle}", scope.kubectl())
    });
    check.fix("where that is your company's proxy, and this system trusts its CA, use the system's CA bundle", command)
}

/// Returns the first name of a certificate, extracted from the error text.
fn presented(cause: &str) -> Option<&str> {
    let (names, _) = cause.split_once("certificate is for ")?.1.split_once(", and not for ")?;
    names.split(", ").next().filter(|name| *name != "no name" && !name.contains('*'))
}

/// CA bundles of Debian, Fedora, openSUSE, Alpine and macOS.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Checks the server's version, its clock, and the signed-in user. Returns the server's minor version. `None`: it is not an API
/// server, or refused the credentials.
async fn answers(cluster: &Cluster, all: &mut Vec<Check>) -> Option<u32> {
    let started = Instant::now();
    let version = ask(cluster, "/version", None).await;
    let took = started.elapsed();
    let minor = match version {
        Ok((version, _)) if !version["gitVersion"].is_string() => {
            let says = "the server answers, but it is not a Kubernetes API server";
            let said = version.as_str().map(|said| format!("its answer begins with {said:?}"));
            all.push(Check::new("api-server", GROUP, Status::Fail, says).detail(said).fix(
                "look at the answer: a login page or a proxy may be in front of it",
                Some(curl("-k", &cluster.server.to_string(), cluster.proxy.as_deref())),
            ));
            return None;
        }
        Ok((version, date)) => {
            // Builds of cloud providers report `36+`.
            let minor = version["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse().unwrap_or_default();
            let version = version["gitVersion"].as_str().unwrap_or_default().to_owned();
            let says = format!("the API server answers ({version}, {} ms)", took.as_millis());
            all.push(Check::new("api-server", GROUP, Status::Ok, says).took(took));
            all.extend(date.map(|date| clock(date, SystemTime::now())));
            minor
        }
        Err(error) if error.code() == ErrorCode::Credentials => {
            let says = format!("the API server answers ({} ms)", took.as_millis());
            all.push(Check::new("api-server", GROUP, Status::Ok, says).took(took));
            all.push(of_error("authentication", GROUP, &error));
            return None;
        }
        Err(error) => {
            all.push(of_error("api-server", GROUP, &error));
            return None;
        }
    };
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    all.push(match ask(cluster, "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(review)).await {
        Ok((review, _)) => {
            let user = review["status"]["userInfo"]["username"].as_str().unwrap_or("an unknown user");
            Check::new("authentication", GROUP, Status::Ok, format!("signed in as {user}"))
        }
        // The API exists since Kubernetes 1.28.
        Err(ClusterError::Protocol { reason, .. }) if reason == NOT_FOUND => {
            Check::new("authentication", GROUP, Status::Skip, "user name (needs Kubernetes 1.28)")
        }
        Err(error) => of_error("authentication", GROUP, &error),
    });
    Some(minor)
}

/// Compares the clock of this machine with that of the API server.
fn clock(server: SystemTime, here: SystemTime) -> Check {
    let (skew, is_behind) = match here.duration_since(server) {
        Ok(ahead) => (ahead, false),
        Err(error) => (error.duration(), true),
    };
    let way = if is_behind { "behind" } else { "ahead of" };
    let says = format!("the clock of this machine is {} s {way} that of the API server", skew.as_secs());
    match skew > MOST_SKEW {
        true => Check::new("clock", Group::Machine, Status::Fail, says)
            .detail(Some("tokens and certificates are not valid yet, or not any more"))
            .fix("set the clock", Some("sudo timedatectl set-ntp true".to_owned())),
        false => {
            Check::new("clock", Group::Machine, Status::Ok, "the clocks of this machine and of the API server agree")
        }
    }
}

const NOT_FOUND: &str = "it does not know the path";

/// Sends a request, and returns the answer and its date. `body`: sent with POST; `None`: GET.
///
/// # Errors
/// The API server refuses, or cannot be reached.
pub async fn ask(
    cluster: &Cluster,
    path: &str,
    body: Option<Value>,
) -> Result<(Value, Option<SystemTime>), ClusterError> {
    let builder = Request::builder().uri(path).header("content-type", "application/json");
    let request = match &body {
        Some(body) => builder.method("POST").body(Body::from(body.to_string().into_bytes())),
        None => builder.method("GET").body(Body::empty()),
    };
    let context = cluster.context.clone();
    let malformed = |reason: String| ClusterError::Protocol { context: context.clone(), reason };
    let request = request.map_err(|error| malformed(error.to_string()))?;
    let asking = async {
        let response = cluster.client.send(request).await?;
        let date = response.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let status = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await
            .map_err(|error| kube::Error::Service(Box::new(error)))?;
        Ok((status, bytes.to_bytes(), date))
    };
    let asked = cluster.ask(&format!("asking for {path}"), Namespaces::All, asking).await;
    let (status, bytes, date) = asked.map_err(|error| match error {
        AskError::NotFound => malformed(NOT_FOUND.to_owned()),
        AskError::Failed(error) => error,
    })?;
    match status.as_u16() {
        // An answer that is not JSON is returned as the first characters of its text.
        200..=299 => {
            let text = || String::from_utf8_lossy(&bytes).trim().chars().take(40).collect::<String>().into();
            Ok((serde_json::from_slice(&bytes).unwrap_or_else(|_| text()), date))
        }
        404 => Err(malformed(NOT_FOUND.to_owned())),
        code => {
            let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let message = said["message"]
                .as_str()
                .map_or_else(|| String::from_utf8_lossy(&bytes).chars().take(200).collect(), str::to_owned);
            Err(cluster.refused(code, &message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_certificate_is_read_from_the_words_about_it() {
        let words =
            |names: &str| format!("the server's certificate is for {names}, and not for a.b: set tls-server-name");
        assert_eq!(presented(&words("foo.example, bar.example")), Some("foo.example"));
        assert_eq!((presented(&words("no name")), presented("expired")), (None, None));
    }

    #[test]
    fn the_command_for_a_server_behind_a_proxy_goes_through_the_proxy() {
        let of = |proxy| curl("-vk", "https://10.0.0.1:6443/", proxy);
        assert_eq!(of(None), "curl -vk https://10.0.0.1:6443/version");
        assert_eq!(of(Some("127.0.0.1:9")), "curl -vk -x 127.0.0.1:9 https://10.0.0.1:6443/version");
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_which_way() {
        let now = SystemTime::now();
        assert_eq!(clock(now, now + Duration::from_secs(30)).status, Status::Ok);
        let ahead = clock(now, now + Duration::from_secs(300));
        assert!(ahead.status == Status::Fail && ahead.says.contains("300 s ahead of"), "{ahead:?}");
        assert!(clock(now, now - Duration::from_secs(300)).says.contains("300 s behind"));
    }
}
