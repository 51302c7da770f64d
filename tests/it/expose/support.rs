//! A demo cluster with relays in it, and clients of these relays.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use adit::{
    config::KubeconfigPaths,
    demo::Demo,
    drain::Drain,
    k8s::client::Clusters,
    relay::{
        auth::{Key, Role, Transcript},
        conversation::send,
        expose::{self, Authority, Exposer},
        server::Limits,
    },
    routing::ClusterId,
    wire::relay::{Frame, Kind, Token},
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;

use crate::{
    relay::{Relay, SECRET, frame},
    support::{PATIENCE, eventually, start_demo},
};

/// Kinds of all objects that a takeover may change.
const KINDS: [&str; 4] = ["services", "endpointslices", "endpoints", "leases"];

pub type Objects = BTreeMap<String, Value>;

pub struct Place {
    pub demo: Demo,
    pub client: kube::Client,
    /// Authority of the relays to start.
    pub authority: Authority,
    /// Limits of the relays to start.
    pub limits: Limits,
}

/// A relay in a pod of the demo cluster.
pub struct InPod {
    pub relay: Relay,
    pub drain: Drain,
}

impl Place {
    pub async fn new() -> Self {
        let demo = start_demo().await;
        let kubeconfig = Arc::new(KubeconfigPaths(vec![demo.kubeconfig()]));
        let id = ClusterId { kubeconfig, context: "demo".parse().unwrap() };
        let client = Clusters::new(&[]).get(&id).await.unwrap().client.clone();
        for namespace in ["relay", "kube-system"] {
            demo.world().put("namespaces", json!({"metadata": {"name": namespace}}));
        }
        Self { demo, client, authority: Authority::Keys, limits: Limits::default() }
    }

    pub async fn relay(&self, pod: &str, start: &str) -> InPod {
        self.relay_with(pod, start, "", None).await
    }

    /// Starts a relay in the pod `pod`, which is created if necessary. `key`: rules of its key.
    pub async fn relay_with(&self, pod: &str, start: &str, key: &str, only: Option<&str>) -> InPod {
        let uid = format!("uid-of-{pod}");
        if self.demo.world().get("pods", "relay", pod).is_none() {
            let metadata = json!({"namespace": "relay", "name": pod, "uid": uid});
            self.demo.world().put("pods", json!({"metadata": metadata, "spec": {}, "status": {"phase": "Running"}}));
        }
        let identity = expose::Relay {
            namespace: "relay".into(),
            pod: pod.into(),
            uid,
            start: start.into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            node: Some("demo".into()),
        };
        let drain = Drain::new();
        let (client, only) = (self.client.clone(), only.map(str::to_owned));
        let exposer = Exposer::start(client, identity, only, self.authority, drain.clone());
        let keys: Vec<Key> =
            adit::relay::auth::parse_keys(&format!("default {} {key}", SECRET.replace(' ', "-"))).unwrap();
        let relay = Relay::start(|options| {
            options.exposer = Some(exposer);
            options.limits = self.limits;
            options.keys = keys.into_iter().map(|key| Key { secret: SECRET.into(), ..key }).collect();
        })
        .await;
        InPod { relay, drain }
    }

    /// Ends a relay as a signal does, and asserts that nothing is left.
    pub async fn relay_ends(&self, relay: InPod) {
        relay.relay.drain.start();
        assert_eq!(relay.drain.finish(Duration::from_secs(10)).await, 0, "it gives back what it has in time");
        relay.relay.drain.finish(Duration::from_millis(100)).await;
        assert_eq!(self.ours(), Vec::<String>::new());
    }

    /// Kills a relay at once.
    pub fn kill(&self, relay: InPod) {
        relay.drain.cut();
        relay.relay.drain.cut();
    }

    /// Adds a Service `outside` without a selector, with endpoints written by hand, and two ports.
    pub fn put_outside(&self) {
        let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
        let ports = json!([port("http", 80), port("alt", 81)]);
        let mut of_service = ports.clone();
        for port in of_service.as_array_mut().unwrap() {
            port["targetPort"] = port["port"].clone();
        }
        let (world, metadata) = (self.demo.world(), json!({"namespace": "shop", "name": "outside"}));
        let spec = json!({"clusterIP": "10.96.1.1", "ports": of_service});
        world.put("services", json!({"metadata": metadata, "spec": spec}));
        let labels =
            json!({"kubernetes.io/service-name": "outside", "endpointslice.kubernetes.io/managed-by": "staff"});
        let of_slice = json!({"namespace": "shop", "name": "outside-1", "labels": labels});
        let endpoints = json!([{"addresses": ["10.9.9.9"], "conditions": {"ready": true}}]);
        world.put(
            "endpointslices",
            json!({"metadata": of_slice, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}),
        );
        let subsets = json!([{"addresses": [{"ip": "10.9.9.9"}], "ports": ports}]);
        world.put("endpoints", json!({"metadata": metadata, "subsets": subsets}));
    }

    pub fn service(&self, name: &str) -> Value {
        (*self.demo.world().get("services", "shop", name).unwrap_or_else(|| panic!("no Service {name}"))).clone()
    }

    pub fn slice(&self, name: &str) -> Option<Value> {
        self.demo.world().get("endpointslices", "shop", name).map(|slice| (*slice).clone())
    }

    pub fn lease(&self, service: &str) -> Option<Value> {
        self.demo.world().get("leases", "shop", &format!("adit-{service}")).map(|lease| (*lease).clone())
    }

    fn slices_of(&self, service: &str) -> Vec<Arc<Value>> {
        let (mut slices, _) = self.demo.world().list("endpointslices", Some("shop"));
        slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        slices
    }

    /// Returns the target ports behind a port of a Service, as kube-proxy sees them: from all EndpointSlices.
    pub fn served(&self, service: &str, port: &str) -> Vec<u16> {
        let mut served = Vec::new();
        for slice in self.slices_of(service) {
            let is_served = slice["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty());
            let ports =
                slice["ports"].as_array().into_iter().flatten().filter(|found| is_served && found["name"] == port);
            served.extend(ports.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()));
        }
        served
    }

    /// Returns the ports in the EndpointSlices that relays have written for a Service.
    pub fn served_by_us(&self, service: &str) -> Vec<u16> {
        let ours = self.slices_of(service).into_iter();
        let ours = ours.filter(|slice| slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "adit");
        let ports = ours.flat_map(|slice| slice["ports"].as_array().cloned().unwrap_or_default());
        ports.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()).collect()
    }

    /// Returns the number of ready endpoints of a Service.
    pub fn ready(&self, service: &str) -> usize {
        let slices = self.slices_of(service).into_iter();
        let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] == true && endpoint["targetRef"]["namespace"] == "shop")
            .count()
    }

    pub fn events(&self, service: &str) -> Vec<String> {
        let (mut events, _) = self.demo.world().list("events", Some("shop"));
        events.retain(|event| event["involvedObject"]["name"] == service);
        events.sort_by_key(|event| {
            event["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse::<u64>().ok())
        });
        events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns every object that a takeover may change, without fields that the API server counts.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects::new();
        for kind in KINDS {
            for object in self.demo.world().list(kind, None).0 {
                let mut object = (*object).clone();
                let metadata = object["metadata"].as_object_mut().unwrap();
                ["resourceVersion", "generation", "managedFields"]
                    .iter()
                    .for_each(|field| drop(metadata.remove(*field)));
                let key = format!(
                    "{kind} {}/{}",
                    metadata["namespace"].as_str().unwrap(),
                    metadata["name"].as_str().unwrap()
                );
                objects.insert(key, object);
            }
        }
        objects
    }

    /// Returns the names of all objects that a relay has marked.
    pub fn ours(&self) -> Vec<String> {
        let is_ours = |object: &Value| object.to_string().contains("adit");
        self.objects().into_iter().filter(|(_, object)| is_ours(object)).map(|(key, _)| key).collect()
    }

    /// Waits until every object is restored.
    pub async fn is_again(&self, before: &Objects) {
        self.is_again_within(before, PATIENCE).await;
    }

    pub async fn is_again_within(&self, before: &Objects, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let now = self.objects();
            if now == *before {
                return;
            }
            if tokio::time::Instant::now() > deadline {
                let differs = |key: &&String| now.get(*key) != before.get(*key);
                let keys: Vec<_> = now.keys().chain(before.keys()).filter(differs).collect();
                let of = |key: &String| format!("{key}\n  is  {:?}\n  was {:?}\n", now.get(key), before.get(key));
                panic!("not as before:\n{}", keys.into_iter().map(of).collect::<String>());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every object of a kind is restored.
    pub async fn is_as_before(&self, kind: &str, before: &Objects) {
        let of =
            |objects: Objects| -> Objects { objects.into_iter().filter(|(key, _)| key.starts_with(kind)).collect() };
        let before = of(before.clone());
        eventually(&format!("{kind} are as before"), || async { of(self.objects()) == before }).await;
    }

    /// Deletes an object as a user does.
    pub async fn delete(&self, plural: &str, name: &str) {
        let group = match plural {
            "services" => "/api/v1",
            "leases" => "/apis/coordination.k8s.io/v1",
            _ => "/apis/discovery.k8s.io/v1",
        };
        let request =
            http::Request::delete(format!("{group}/namespaces/shop/{plural}/{name}")).body(Vec::new()).unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }
}

/// Returns the kind of a tunnel to a Service. `fresh` does not exist.
pub fn kind(service: &str) -> Kind {
    if service.starts_with("fresh.") && !service.contains(' ') { Kind::Service } else { Kind::ReplacedService }
}

/// A client of a relay that sends single frames.
pub struct Laptop {
    tls: TlsStream<TcpStream>,
    pub resume: Token,
    next: u32,
}

impl Laptop {
    pub async fn connect(relay: &InPod) -> Self {
        Self::connect_as(relay, "default").await
    }

    pub async fn connect_as(relay: &InPod, key: &str) -> Self {
        let (mut tls, exporter) = relay.relay.dial().await;
        let hello = Frame::Hello { version: 2, nonce: [1; 32], port: 0, key: key.into() };
        send(&mut tls, &[hello]).await.unwrap();
        let Frame::Challenge { nonce, .. } = frame(&mut tls).await else { panic!("no challenge") };
        let transcript = Transcript { key: key.into(), port: 0, client: [1; 32], server: nonce, exporter };
        send(&mut tls, &[Frame::Proof { proof: transcript.proof(SECRET, Role::Client) }]).await.unwrap();
        let Frame::Welcome { .. } = frame(&mut tls).await else { panic!("not welcome") };
        Self { tls, resume: [0; 16], next: 0 }
    }

    /// Takes over a Service, or creates it if its name is `fresh`. Returns the tunnel's port.
    pub async fn take(&mut self, service: &str) -> Result<u16, String> {
        self.open(kind(service), service).await
    }

    pub async fn open(&mut self, kind: Kind, service: &str) -> Result<u16, String> {
        self.ask(kind, service).await;
        match self.frame().await {
            Frame::Opened { port, resume, .. } => {
                self.resume = resume;
                Ok(port)
            }
            Frame::Refused { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Requests a Service, and does not wait for the answer.
    pub async fn ask(&mut self, kind: Kind, service: &str) {
        self.next += 1;
        let resume = std::mem::take(&mut self.resume);
        let open = Frame::Open { tunnel: self.next, kind, port: 0, resume, name: service.into() };
        self.send(open).await;
    }

    pub async fn send(&mut self, frame: Frame) {
        send(&mut self.tls, &[frame]).await.unwrap();
    }

    /// Returns the next frame that is not a heartbeat.
    pub async fn frame(&mut self) -> Frame {
        loop {
            match frame(&mut self.tls).await {
                Frame::Ping { cookie } => self.send(Frame::Pong { cookie }).await,
                Frame::Pong { .. } => {}
                other => return other,
            }
        }
    }

    /// Waits for a ping that is not a heartbeat, and does not answer it.
    pub async fn next_ping(&mut self) {
        while !matches!(frame(&mut self.tls).await, Frame::Ping { cookie: 1.. }) {}
    }

    /// Reads frames until a Pong with this cookie.
    pub async fn pong(&mut self, cookie: u64) {
        let answered = async { while frame(&mut self.tls).await != (Frame::Pong { cookie }) {} };
        timeout(PATIENCE, answered).await.expect("the relay answers");
    }

    /// Says goodbye, and waits for the relay's close_notify: without it, reading ends with an error.
    pub async fn goodbye(mut self) {
        self.send(Frame::Goodbye { reason: "done".into() }).await;
        let mut rest = Vec::new();
        timeout(PATIENCE, self.tls.read_to_end(&mut rest)).await.expect("an end").expect("close_notify");
    }
}
