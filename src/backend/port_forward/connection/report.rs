//! The error texts that container runtimes send on a port-forward's error stream, and their meaning.

use crate::{backend::StreamFault, printable::printable};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing listens on the port in the pod.
    Refused,
    Reset,
    PodGone,
    /// The runtime on the node restarts, or its streaming server does.
    NodeAway,
    /// The node lacks this program.
    NodeLacks(&'static str),
}

/// Placeholder in a phrase: a colon and the requested port.
const PORT: &str = ":{port}";

/// A row matches if the text contains all its phrases, in any case. The first match counts.
///
/// Each row comes from the source of the runtime in its comment, or from a report of its users.
const TEXTS: &[(&[&str], Meaning)] = &[
    // cri-dockerd, dockershim, CRI-O before 1.20: "unable to do port forwarding: socat not found".
    (&["port forwarding: socat not found"], Meaning::NodeLacks("socat")),
    (&["port forwarding: nsenter not found"], Meaning::NodeLacks("nsenter")),
    // dockershim on Windows nodes.
    (&["port forwarding: wincat not found"], Meaning::NodeLacks("wincat")),
    // The CRI plugin of containerd 1.1 to 1.3: "failed to find socat: exec: "socat": executable file not found in $PATH".
    (&["failed to find socat"], Meaning::NodeLacks("socat")),
    (&["failed to find nsenter"], Meaning::NodeLacks("nsenter")),
    // Go's error for a socket of the node: "dial unix /run/containerd/containerd.sock: connect: connection refused".
    (&["dial unix"], Meaning::NodeAway),
    // Docker's client, in cri-dockerd and dockershim.
    (&["cannot connect to the docker daemon"], Meaning::NodeAway),
    // containerd and CRI-O: "dial tcp4 127.0.0.1:80: connect: connection refused". cri-dockerd, and containerd 1.1 to 1.3
    // by socat: "E connect(5, AF=2 127.0.0.1:80, 16): Connection refused".
    (&["connection refused", PORT], Meaning::Refused),
    // Another port: a server on the node refused, not the pod.
    (&["connection refused", "dial tcp"], Meaning::NodeAway),
    // Nodes that are not kubelets report no address.
    (&["connection refused"], Meaning::Refused),
    // containerd and CRI-O: "read tcp4 127.0.0.1:38268->127.0.0.1:80: read: connection reset by peer"; socat's words too.
    (&["connection reset by peer"], Meaning::Reset),
    (&["broken pipe"], Meaning::Reset),
    // containerd 1.0 to 2.x: "network namespace for sandbox "ID" is closed".
    (&["network namespace for sandbox", "is closed"], Meaning::PodGone),
    // containerd 1.0 to 2.x: "failed to find sandbox "ID" in store: not found". CRI-O: "could not find sandbox ID".
    (&["find sandbox"], Meaning::PodGone),
    // CRI-O: "PodSandbox with ID starting with ID not found: ...".
    (&["podsandbox with id", "not found"], Meaning::PodGone),
    // CRI-O: "sandbox ID is not running".
    (&["sandbox", "is not running"], Meaning::PodGone),
    // CRI-O: "network namespace path of sandbox ID is empty".
    (&["network namespace path of sandbox", "is empty"], Meaning::PodGone),
    // The network namespace's file is gone; the CNI library that containerd and CRI-O share:
    // "failed to Statfs "/var/run/netns/ID": no such file or directory".
    (&["failed to statfs", "no such file"], Meaning::PodGone),
    // cri-dockerd and dockershim: "container not running (ID)", "No such container: ID".
    (&["container not running"], Meaning::PodGone),
    (&["no such container"], Meaning::PodGone),
];

/// Returns the fault that an error text stands for. `port`: the requested port of the pod.
pub fn classify(text: &str, port: u16) -> StreamFault {
    let detail = printable(text);
    match row(&detail, port).map(|row| TEXTS[row].1) {
        Some(Meaning::Refused) => StreamFault::Refused { port },
        Some(Meaning::Reset) => StreamFault::Reset,
        Some(Meaning::PodGone) => StreamFault::PodGone { detail },
        Some(Meaning::NodeAway) => StreamFault::Unavailable { detail, retry_after: None },
        Some(Meaning::NodeLacks(program)) => StreamFault::Other {
            detail: format!(
                "the pod's node has no {program}, which its container runtime needs; install it there ({detail})"
            ),
        },
        None => StreamFault::Other { detail },
    }
}

fn row(text: &str, port: u16) -> Option<usize> {
    let text = text.to_ascii_lowercase();
    TEXTS.iter().position(|(phrases, _)| {
        phrases.iter().all(|phrase| if *phrase == PORT { has_port(&text, port) } else { text.contains(phrase) })
    })
}

/// Returns whether the text contains an address with this port.
fn has_port(text: &str, port: u16) -> bool {
    let wanted = port.to_string();
    text.split(':').skip(1).any(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits] == *wanted
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Texts that nodes send, and the start of the fault's message. The pod's port is 80.
    const SAMPLES: &[(&str, &str)] = &[
        ("unable to do port forwarding: socat not found", "the tunnel failed: the pod's node has no socat"),
        ("unable to do port forwarding: socat not found.", "the tunnel failed: the pod's node has no socat"),
        ("unable to do port forwarding: nsenter not found", "the tunnel failed: the pod's node has no nsenter"),
        ("unable to do port forwarding: wincat not found", "the tunnel failed: the pod's node has no wincat"),
        (
            "failed to find socat: exec: \"socat\": executable file not found in $PATH",
            "the tunnel failed: the pod's node has no socat",
        ),
        (
            "failed to find nsenter: exec: \"nsenter\": executable file not found in $PATH",
            "the tunnel failed: the pod's node has no nsenter",
        ),
        (
            "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix \
             /run/containerd/containerd.sock: connect: connection refused\"",
            "the pod's node cannot be reached",
        ),
        ("dial unix /var/run/crio/crio.sock: connect: no such file or directory", "the pod's node cannot be reached"),
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "the pod's node cannot be reached",
        ),
        (
            "failed to execute portforward in network namespace \"/var/run/netns/cni-1\": failed to connect to \
             localhost:80 inside namespace \"ab\", IPv4: dial tcp4 127.0.0.1:80: connect: connection refused IPv6 dial \
             tcp6: address localhost: no suitable address found ",
            "the pod refused the connection on port 80",
        ),
        (
            "failed to connect to localhost:80 inside namespace ab: dial tcp [::1]:80: connect: connection refused",
            "the pod refused the connection on port 80",
        ),
        (
            "exit status 1: 2021/12/15 10:43:28 socat[11386] E connect(5, AF=2 127.0.0.1:80, 16): Connection refused",
            "the pod refused the connection on port 80",
        ),
        (
            "socat command returns error: exit status 1, stderr: \"2020/06/06 17:58:49 socat[26785] E connect(5, AF=2 \
             127.0.0.1:80, 16): Connection refused\\n\"",
            "the pod refused the connection on port 80",
        ),
        (
            "error dialing backend: dial tcp 127.0.0.1:8010: connect: connection refused",
            "the pod's node cannot be reached",
        ),
        ("error forwarding port 80 to pod: connection refused", "the pod refused the connection on port 80"),
        ("read tcp4 127.0.0.1:38268->127.0.0.1:80: read: connection reset by peer", "the pod reset"),
        ("write tcp4 127.0.0.1:38268->127.0.0.1:80: write: broken pipe", "the pod reset"),
        ("socat[9] E read(5, 0x55d, 8192): Connection reset by peer", "the pod reset"),
        ("network namespace for sandbox \"ab\" is closed", "the pod is gone"),
        ("failed to find sandbox \"ab\" in store: not found", "the pod is gone"),
        ("could not find sandbox ab", "the pod is gone"),
        ("PodSandbox with ID starting with ab not found: ID does not exist", "the pod is gone"),
        ("sandbox ab is not running", "the pod is gone"),
        ("network namespace path of sandbox ab is empty", "the pod is gone"),
        (
            "port forward into network namespace \"/var/run/netns/1\": failed to Statfs \"/var/run/netns/1\": no such \
             file or directory",
            "the pod is gone",
        ),
        ("container not running (0a1b)", "the pod is gone"),
        ("Error response from daemon: No such container: 0a1b", "the pod is gone"),
        // Similar words with another meaning.
        ("host db not found", "the tunnel failed"),
        ("dial tcp4 127.0.0.1:80: connect: connection timed out", "the tunnel failed"),
        (
            "failed to execute portforward in network namespace \"host\": use of closed network connection",
            "the tunnel failed",
        ),
        ("", "the tunnel failed"),
    ];

    #[test]
    fn a_text_of_a_runtime_is_the_fault_that_it_reports() {
        for (text, wanted) in SAMPLES {
            let whole = format!("error forwarding port 80 to pod 0a1b, uid : {text}");
            for text in [text, whole.as_str()] {
                let fault = classify(text, 80).to_string();
                assert!(fault.starts_with(wanted), "{text}: {fault}");
            }
        }
    }

    #[test]
    fn every_row_has_a_text() {
        let matched: BTreeSet<usize> = SAMPLES.iter().filter_map(|(text, _)| row(text, 80)).collect();
        assert_eq!(matched, (0..TEXTS.len()).collect());
    }

    #[test]
    fn control_characters_do_not_reach_people() {
        let StreamFault::Other { detail } = classify("odd \x1b[31m\r\n", 80) else { panic!() };
        assert_eq!(detail, "odd  [31m");
    }
}
