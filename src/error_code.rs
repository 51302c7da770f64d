//! Stable codes of adit's own errors: in the header `x-adit-error`, in error pages, logs and the API.

use std::fmt;

macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $meaning:literal;)*) => {
        /// Code of an error. Scripts may rely on it: a code keeps its meaning, and its text never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ErrorCode {
            /// All codes, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the code as text: `not-ready`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns the HTTP statuses of its responses: `502`, `400, 431`.
            const fn statuses(self) -> &'static str {
                match self {
                    $(Self::$variant => $status,)*
                }
            }

            /// Returns its line in the reference.
            const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

codes! {
    UnknownHost "unknown-host" "404" "No route has this host, and it is not a dynamic name. The page lists similar ones.";
    MalformedHost "malformed-host" "404" "The host ends in a dynamic suffix but has none of the forms in [names](../names.md).";
    DynamicDenied "dynamic-denied" "403" "The context refuses names without a route (`dynamic: deny`): add a route.";
    Elsewhere "elsewhere" "403" "A client of the forward proxy requests a host outside the cluster: set `proxy.elsewhere`, or add a route with `via`.";
    NoContext "no-context" "502" "The kubeconfig has no current context: set `default_context`.";
    NoNamespace "no-namespace" "502" "The name gives no namespace, and the context in the kubeconfig has an invalid one: write SERVICE.NAMESPACE.";
    UnknownContext "unknown-context" "404" "The kubeconfig has no context of this name; the hint lists those that it has.";
    Kubeconfig "kubeconfig" "502" "adit cannot read the kubeconfig; the message has the file and the line.";
    Credentials "credentials" "502" "The plugin or token of the context failed; the message has the plugin's last lines. `adit doctor` checks the sign-in.";
    SigningIn "signing-in" "503" "A credential plugin runs; for browsers, the page shows its output and reloads.";
    Unreachable "unreachable" "502" "The API server cannot be reached: VPN, proxy, stopped cluster.";
    TimedOut "timeout" "502, 504" "The API server or the pod does not answer in time: `adit doctor` says which.";
    Forbidden "forbidden" "502" "The user lacks a permission; the message names it, and `adit doctor --rbac` prints the Role. Or a policy of the cluster forbids it; the message is that of the policy.";
    NotFound "not-found" "404" "There is no such Service, pod or namespace; the hint has similar names.";
    ChoosePort "choose-port" "404" "The Service has several ports; the page has them as links.";
    NoSuchPort "no-such-port" "404" "The Service does not have this port; the page has its ports as links.";
    NotReady "not-ready" "503" "The Service has no ready pod, or not the pod that is named; the page has each pod's reason, and reloads.";
    Unsupported "unsupported" "404" "An ExternalName, addresses outside the cluster, no endpoints, or UDP: a port-forward needs a pod. Use `via` or `tcp.k8s.jump`.";
    NotServed "not-served" "502" "The node refuses port-forwards, as virtual nodes do: use a pod on another node.";
    Protocol "protocol" "502" "The API server, or a gateway in front of it, answered unexpectedly.";
    Refused "refused" "502" "No process listens on the port in the pod, or it listens on another address only: let it listen on 127.0.0.1 or on all addresses.";
    PodGone "pod-gone" "502" "The pod went away during the request: send it again.";
    Reset "reset" "502" "The pod reset the connection: see the log of the pod.";
    Lost "lost" "502" "The connection to the pod broke (node, network or API server): send the request again.";
    Unavailable "unavailable" "502" "The API server or the node is overloaded or restarts: try again.";
    PortForward "port-forward" "502" "The node reported another error of the port-forward; the page has its text.";
    NoStream "no-stream" "502" "The connection to the pod could not be opened; the page has the reason.";
    Jump "jump" "502" "socat or nc in the pod did not reach the target, or lost it; the page has its message.";
    Command "command" "502" "The command of the name ended, or never listened; the message has its last lines.";
    NoClient "no-client" "502" "Relay only: the client of the tunnel is not connected, or does not answer: start `adit local` or `adit expose` again.";
    Stopped "stopped" "503" "`adit stop` closed the tunnel, or adit itself ends. The next request opens the tunnel again.";
    BackendTls "backend-tls" "502" "The TLS handshake with the backend failed; the page says why: `ca`, `server_name`, `verify`, `client_cert`.";
    WrongScheme "wrong-scheme" "502" "The backend speaks another protocol than the route's `scheme`; the page has the line that fixes it, see [protocols](../protocols.md).";
    BadAnswer "bad-answer" "502" "The backend's answer is not HTTP, e.g. of a database; `adit doctor` prints the command for its protocol.";
    NoSwitch "no-switch" "502" "The backend refuses to switch to WebSocket: check the path and the port.";
    Switched "switched" "502" "The backend switched to a protocol that the client did not ask for.";
    Direct "direct" "502, 504" "`proxy.elsewhere: direct`, and the host does not answer.";
    ProxyPassword "proxy-password" "407" "The forward proxy of `adit run --proxy` needs the password in its URL; or the user name has control characters.";
    ReadOnly "read-only" "403" "The context accepts some methods only; the hint has the `adit unlock` command.";
    ForeignOrigin "foreign-origin" "403" "A page of another site sent the request: `allow_origins`, see [security](../security.md).";
    Ambiguous "ambiguous" "400" "Two parsers could read the request differently: two lengths, two Host headers, a bare LF and the like. Correct the client.";
    NoHost "no-host" "400" "The request names no host.";
    Connect "connect" "400" "A CONNECT request that this port does not accept.";
    Body "body" "400" "The request's body is not complete.";
    TooLarge "too-large" "431" "The request headers are longer than 256 KiB, or more than 2,000: delete cookies of the site.";
    TargetTooLong "target-too-long" "414" "The request target is too long.";
    Slow "slow" "408" "The request headers did not arrive in time.";
    Loop "loop" "508" "The backend of the route sends requests back to adit: correct its target.";
    Moved "moved" "409" "A replay only: the name has another target now.";
    TooManyNames "too-many-names" "429" "Too many new names in a short time; wait a moment.";
    TooManyConnections "too-many-connections" "503" "All connections, or those of one client address, are in use: close some; a relay has options, `adit server --help`.";
    OpenFileLimit "open-file-limit" "503" "adit has reached its open-file limit: `ulimit -n`. It raises its own soft limit to the hard one.";
    Index "index" "200" "No error: adit's own page at `localhost`.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns docs/reference/errors.md.
pub fn markdown() -> String {
    let mut page = "# Error codes\n\n\
        Each error that adit answers itself has its code in the header `x-adit-error`. The page has it too, as HTML, JSON or text by the\n\
        client's Accept header. [Troubleshooting](../troubleshooting.md) has the cases that need more than a line.\n\n\
        | code | status | meaning and remedy |\n|---|---|---|\n"
        .to_owned();
    for code in ErrorCode::ALL {
        page.push_str(&format!("| `{code}` | {} | {} |\n", code.statuses(), code.meaning()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_errors_share_a_code() {
        let mut codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn the_reference_has_every_code() {
        assert!(
            markdown() == include_str!("../docs/reference/errors.md"),
            "docs/reference/errors.md is out of date: just docs"
        );
    }
}
