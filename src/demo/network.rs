//! The network between the demo's pods: names, addresses, and connections, which are pipes in memory.

use serde_json::Value;
use tokio::io::DuplexStream;

use super::{Node, process::Sandbox, workloads};

/// Error of a connection to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The pod is gone.
    Gone,
    /// No process listens there.
    Refused,
    /// The name cannot be resolved.
    UnknownHost,
}

impl Node {
    /// Connects to a port of a pod.
    ///
    /// # Errors
    /// The pod does not run, or nothing listens on the port.
    pub fn dial(&self, sandbox: &Sandbox, port: u16) -> Result<DuplexStream, DialError> {
        let pod = self
            .world
            .get("pods", &sandbox.namespace, &sandbox.name)
            .filter(|pod| pod["metadata"]["uid"] == sandbox.uid.as_str());
        if pod.is_none() {
            return Err(DialError::Gone);
        }
        let process = self.world.process(&sandbox.uid).ok_or(DialError::Refused)?;
        if self.faults.refuses(port) || !process.ports.contains(&port) {
            return Err(DialError::Refused);
        }
        let (near, far) = tokio::io::duplex(workloads::PIPE);
        if self.faults.stalls(port) {
            process.tasks.spawn(async move {
                let _held = far;
                std::future::pending::<()>().await;
            });
        } else {
            workloads::accept(process, &self.site, port, far);
        }
        Ok(near)
    }

    /// Connects like a program in a pod: to a Service, another pod, or itself.
    ///
    /// # Errors
    /// The name is not known, or as [`dial`](Self::dial).
    pub fn dial_host(&self, from: &Sandbox, host: &str, port: u16) -> Result<DuplexStream, DialError> {
        if matches!(host, "localhost" | "127.0.0.1" | "::1") {
            return self.dial(from, port);
        }
        let (pods, _) = self.world.list("pods", None);
        if let Some(pod) = pods.iter().find(|pod| pod["status"]["podIP"] == host) {
            return self.dial(&sandbox(pod), port);
        }
        let (services, _) = self.world.list("services", None);
        if let Some(service) = services.iter().find(|service| service["spec"]["clusterIP"] == host) {
            return self.dial_service(service, None, port);
        }
        let name = host.trim_end_matches('.').trim_end_matches(".cluster.local").trim_end_matches(".svc");
        let (pod, service, namespace) = match name.split('.').collect::<Vec<_>>()[..] {
            [service] => (None, service, from.namespace.as_str()),
            [service, namespace] => (None, service, namespace),
            [pod, service, namespace] => (Some(pod), service, namespace),
            _ => return Err(DialError::UnknownHost),
        };
        let service = self.world.get("services", namespace, service).ok_or(DialError::UnknownHost)?;
        self.dial_service(&service, pod, port)
    }

    fn dial_service(&self, service: &Value, pod: Option<&str>, port: u16) -> Result<DuplexStream, DialError> {
        let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
        let (slices, _) = self.world.list("endpointslices", namespace.as_str());
        let slice = slices.iter().find(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name);
        let slice = slice.ok_or(DialError::UnknownHost)?;
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let mut ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let endpoint = ready.find(|endpoint| pod.is_none_or(|pod| endpoint["hostname"] == pod));
        // A headless Service resolves to its pods, so the port is the pod's own.
        let is_headless = service["spec"]["clusterIP"] == "None";
        if is_headless && endpoint.is_none() {
            return Err(DialError::UnknownHost);
        }
        let wanted = service["spec"]["ports"].as_array().into_iter().flatten().find(|one| one["port"] == port);
        let target = wanted.and_then(|wanted| {
            let name = wanted["name"].as_str().unwrap_or_default();
            let mut ports = slice["ports"].as_array().into_iter().flatten();
            ports.find(|port| port["name"] == name)?["port"].as_u64()
        });
        let target = if is_headless { Some(port) } else { target.and_then(|target| u16::try_from(target).ok()) };
        match (endpoint.map(|endpoint| &endpoint["targetRef"]), target) {
            (Some(pod), Some(target)) if pod.is_object() => self.dial(&of_reference(pod), target),
            _ => Err(DialError::Refused),
        }
    }

    /// Returns the identity of a pod, as its node knows it.
    pub fn sandbox(&self, namespace: &str, name: &str) -> Option<Sandbox> {
        self.world.get("pods", namespace, name).map(|pod| sandbox(&pod))
    }
}

fn sandbox(pod: &Value) -> Sandbox {
    of_reference(&pod["metadata"])
}

/// Returns the fields that a targetRef and an object's metadata have in common.
fn of_reference(reference: &Value) -> Sandbox {
    let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    Sandbox { namespace: text("namespace"), name: text("name"), uid: text("uid") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Node;

    #[tokio::test]
    async fn names_and_addresses_lead_to_pods() {
        let node = Node::for_tests();
        let tools = node.sandbox("shop", "tools-0").unwrap();
        let dial = |host: &str, port| node.dial_host(&tools, host, port).map(|_| ());
        for host in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local."] {
            assert_eq!(dial(host, 80), Ok(()), "{host}");
        }
        assert_eq!(dial("web", 8080), Err(DialError::Refused), "a Service has its own ports");
        assert_eq!(dial("localhost", 8080), Ok(()));
        assert_eq!(dial("localhost", 5432), Err(DialError::Refused));
        assert_eq!(dial("postgres", 5432), Err(DialError::UnknownHost), "in another namespace");
        assert_eq!(dial("postgres-1.postgres.data", 5432), Ok(()));
        assert_eq!(dial("postgres-9.postgres.data", 5432), Err(DialError::UnknownHost));
        assert_eq!(dial("broken", 80), Err(DialError::Refused));
        let address =
            node.world.get("pods", "data", "postgres-0").unwrap()["status"]["podIP"].as_str().unwrap().to_owned();
        assert_eq!(dial(&address, 5432), Ok(()));
        let address =
            node.world.get("services", "shop", "web").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert_eq!(dial(&address, 80), Ok(()));
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_is_not_mistaken_for_its_successor() {
        let node = Node::for_tests();
        let old = node.sandbox("data", "postgres-0").unwrap();
        assert!(node.world.delete_pod("data", "postgres-0", Some("postgres-0")));
        assert_eq!(node.dial(&old, 5432).unwrap_err(), DialError::Gone);
        assert!(node.dial(&node.sandbox("data", "postgres-0").unwrap(), 5432).is_ok());
    }
}
