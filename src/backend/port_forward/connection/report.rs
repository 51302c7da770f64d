//! The error texts that container runtimes send on a port-forward's error stream, and their meaning.

use crate::backend::StreamFault;

#[derive(Clone, Copy)]
enum Meaning {
    Refused,
    Reset,
    PodGone,
    NoSocat,
}

/// All parts of a row are in the text, in any case. The first row that matches counts.
const TEXTS: &[(&[&str], Meaning)] = &[
    // cri-dockerd and dockershim, CRI-O before 1.20: the node lacks the program that forwards.
    (&["socat not found"], Meaning::NoSocat),
    (&["\"socat\": executable file not found"], Meaning::NoSocat),
    // containerd and CRI-O: "connect: connection refused" (Go); socat: "E connect(5, AF=2 ...): Connection refused".
    (&["connection refused"], Meaning::Refused),
    (&["reset by peer"], Meaning::Reset),
    (&["broken pipe"], Meaning::Reset),
    // containerd: the pod's network is taken down.
    (&["network namespace", "closed"], Meaning::PodGone),
    // containerd: "failed to find sandbox "ID" in store: not found".
    (&["find sandbox"], Meaning::PodGone),
    (&["sandbox", "not found"], Meaning::PodGone),
    (&["sandbox", "does not exist"], Meaning::PodGone),
    (&["sandbox", "not running"], Meaning::PodGone),
    (&["network namespace", "does not exist"], Meaning::PodGone),
    (&["no such container"], Meaning::PodGone),
    // cri-dockerd: "container not running (ID)".
    (&["container not running"], Meaning::PodGone),
    // kubelet: "pod not found", "pods "NAME" not found".
    (&["pod not found"], Meaning::PodGone),
    (&["pods \"", "not found"], Meaning::PodGone),
];

/// Returns the fault that an error text stands for. `port`: the pod's port that was asked for.
pub fn classify(text: &str, port: u16) -> StreamFault {
    let detail: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned();
    let lower = detail.to_ascii_lowercase();
    let row = TEXTS.iter().find(|(parts, _)| parts.iter().all(|part| lower.contains(part)));
    match row.map(|(_, meaning)| meaning) {
        Some(Meaning::Refused) => StreamFault::Refused { port },
        Some(Meaning::Reset) => StreamFault::Reset,
        Some(Meaning::PodGone) => StreamFault::PodGone { detail },
        Some(Meaning::NoSocat) => StreamFault::Other {
            detail: format!(
                "the pod's node has no socat, which its container runtime needs; install it there ({detail})"
            ),
        },
        None => StreamFault::Other { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_runtime_is_the_fault_that_it_reports() {
        let refused = "refused";
        for (text, wanted) in [
            ("dial tcp4 127.0.0.1:9999: connect: connection refused", refused),
            ("2026/01/01 socat[7] E connect(5, AF=2 127.0.0.1:9999, 16): Connection refused", refused),
            ("read: connection reset by peer", "reset"),
            ("write: Broken pipe", "reset"),
            ("network namespace for sandbox \"x\" is closed", "gone"),
            ("failed to find sandbox \"x\" in store: not found", "gone"),
            ("container not running (0a1b)", "gone"),
            ("pods \"web-1\" not found", "gone"),
            ("unable to do port forwarding: socat not found", "other"),
            ("unable to do port forwarding: nsenter not found", "other"),
            ("exec: \"socat\": executable file not found in $PATH", "other"),
            ("host db not found", "other"),
        ] {
            let fault = classify(text, 9999);
            let name = match &fault {
                StreamFault::Refused { port: 9999 } => "refused",
                StreamFault::Reset => "reset",
                StreamFault::PodGone { .. } => "gone",
                StreamFault::Other { .. } => "other",
                _ => "unexpected",
            };
            assert_eq!(name, wanted, "{text}");
            assert_eq!(
                fault.to_string().contains("has no socat"),
                wanted == "other" && text.contains("socat"),
                "{text}"
            );
        }
    }
}
