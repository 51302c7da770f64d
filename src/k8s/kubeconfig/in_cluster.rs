//! The cluster that adit runs in, detected as in client-go (`rest.InClusterConfig`).

use std::{env, fs, path::PathBuf};

use http::HeaderMap;

use super::{
    Fingerprint,
    access::{Access, bundle_of, digest, open_token, pem},
    server,
};
use crate::{
    config::{InvalidValue, Namespace},
    k8s::{ClusterError, credentials::Login, proxy::Environment},
};

/// A pod with its service account files.
pub(super) struct Pod {
    folder: PathBuf,
    /// Address of the API server. `None`: adit does not run in a cluster.
    server: Option<String>,
    namespace: Option<String>,
    environment: Environment,
}

impl Pod {
    pub(super) fn of_process() -> Self {
        let read = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let server =
            read("KUBERNETES_SERVICE_HOST").zip(read("KUBERNETES_SERVICE_PORT")).map(|(host, port)| {
                match host.contains(':') {
                    true => format!("https://[{host}]:{port}"),
                    false => format!("https://{host}:{port}"),
                }
            });
        Self {
            folder: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
            server,
            namespace: read("POD_NAMESPACE"),
            environment: Environment::of_process(),
        }
    }

    /// Returns whether kubectl would use the service account.
    pub(super) fn is_there(&self) -> bool {
        self.server.is_some() && self.folder.join("token").is_file()
    }

    /// Returns the namespace for names without one.
    pub(super) fn namespace(&self) -> Result<Namespace, InvalidValue> {
        let of_file = || fs::read_to_string(self.folder.join("namespace")).ok();
        let namespace = self.namespace.clone().or_else(of_file).unwrap_or_default();
        match namespace.trim() {
            "" => Ok(Namespace::default()),
            name => Namespace::new(name),
        }
    }

    /// # Errors
    /// Fails if adit does not run in a cluster, or if a service account file cannot be used.
    pub(super) fn access(&self) -> Result<Access, ClusterError> {
        let user = "the pod's service account".to_owned();
        let unusable = |reason: String| ClusterError::Kubeconfig { reason };
        let of_pod = |reason: String| unusable(format!("{user}: {reason}"));
        let server = self.server.as_deref().filter(|_| self.is_there());
        let server = server.ok_or_else(|| unusable(super::NOT_IN_CLUSTER.to_owned()))?;
        let server = server::url(server).map_err(|reason| of_pod(format!("KUBERNETES_SERVICE_HOST: {reason}")))?.url;
        let path = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let ca = path("ca.crt");
        let files = Fingerprint::of([&PathBuf::from(&ca)]);
        // As in client-go, the system's CA bundle is used without the file.
        let pem = pem("certificate-authority", None, Some(&ca)).ok().flatten();
        let provider = crate::tls::provider();
        let bundle = pem.as_deref().map(|pem| bundle_of(pem, Some(&ca), &provider)).transpose().map_err(of_pod)?;
        let token = open_token(path("token"), None, None).map_err(of_pod)?;
        let mut config = kube::Config::new(server);
        config.default_namespace = self.namespace().unwrap_or_default().to_string();
        config.proxy_url = self.environment.proxy_for(&config.cluster_url);
        let login = Login::TokenFile(token);
        let headers = HeaderMap::new();
        let digest = digest(&config, pem.as_deref(), &headers, &login);
        Ok(Access { config, bundle, login, user, headers, files, digest })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::KubeconfigPaths,
        k8s::{kubeconfig::Files, kubectl::IN_CLUSTER},
    };

    fn pod(folder: &tempfile::TempDir) -> Pod {
        fs::write(folder.path().join("token"), "secret\n").unwrap();
        let server = Some("https://10.96.0.1:443".to_owned());
        Pod { folder: folder.path().into(), server, namespace: None, environment: Environment::default() }
    }

    #[test]
    fn a_pod_without_namespace_or_ca_bundle_is_in_a_cluster_and_the_namespace_is_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let mut pod = pod(&folder);
        assert_eq!((pod.is_there(), pod.namespace()), (true, Ok(Namespace::default())));
        assert!(pod.access().unwrap().bundle.is_none());
        fs::write(folder.path().join("namespace"), "shop\n").unwrap();
        assert_eq!(pod.namespace(), Ok("shop".parse().unwrap()));
        pod.namespace = Some("other".to_owned());
        assert_eq!(pod.namespace(), Ok("other".parse().unwrap()));
        fs::write(folder.path().join("ca.crt"), "none").unwrap();
        assert!(pod.access().err().unwrap().to_string().contains("there is no certificate in PEM form"));
        fs::remove_file(folder.path().join("token")).unwrap();
        assert!(!pod.is_there());
        assert!(pod.access().err().unwrap().to_string().ends_with(super::super::NOT_IN_CLUSTER));
    }

    #[test]
    fn the_service_account_is_a_context_beside_those_of_a_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let contexts = |text: &str, pod: &Pod| {
            fs::write(&path, text).unwrap();
            super::super::contexts_in(pod, &Arc::new(KubeconfigPaths(vec![path.clone()])), &Files::default())
        };
        let (name, one) = (IN_CLUSTER.parse().unwrap(), "one".parse().unwrap());
        let text = "current-context: one\ncontexts: [{name: one, context: {cluster: c}}]\n";
        let both = contexts(text, &pod(&folder));
        assert_eq!(both.current.as_ref(), Some(&one));
        assert!(!both.lacks(&name) && !both.lacks(&one) && both.lacks(&"two".parse().unwrap()));
        assert_eq!(contexts("", &pod(&folder)).current.as_ref(), Some(&name));
        assert!(contexts(text, &Pod { server: None, ..pod(&folder) }).lacks(&name));
        assert!(contexts("[", &pod(&folder)).problem.is_some());
    }

    #[test]
    fn the_api_server_is_reached_through_the_proxy_of_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment { https: Some("http://proxy:3128".into()), ..Environment::default() };
        let access = Pod { environment, ..pod(&folder) }.access().unwrap();
        assert_eq!(access.config.proxy_url.unwrap(), "http://proxy:3128/");
    }
}
