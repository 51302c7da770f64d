//! The clusters of the kubeconfigs, each loaded at its first use.

use std::{
    collections::{HashMap, HashSet},
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{debug, info};

use super::Cluster;
use crate::{
    config::KubeconfigPaths,
    k8s::{
        ClusterError,
        exec_path::ExecPath,
        kubeconfig::{self, Access, Files, Fingerprint},
        sign_in::{Report, SignIns},
    },
    routing::{ClusterId, Contexts},
};

/// Timeout for reading the files of a context. A read from a stalled network file system never returns.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout for the check whether the files of a context in use have changed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// All clusters of the kubeconfigs, with one cached [`Cluster`] for each that was used.
pub struct Clusters {
    exec_path: Mutex<ExecPath>,
    files: Arc<Files>,
    made: Mutex<HashMap<ClusterId, Entry>>,
    /// Contexts whose files were not read in time, because a file system hangs. The read is still running.
    hung: Arc<Mutex<HashSet<ClusterId>>>,
    sign_ins: SignIns,
}

struct Entry {
    files: Fingerprint,
    cluster: Arc<Cluster>,
}

/// Files that were read, and their content.
type Loaded = Result<(Fingerprint, Access), ClusterError>;

/// Returns the error for a context whose files are not read in time.
fn hangs(id: &ClusterId) -> ClusterError {
    let files = &id.kubeconfig;
    let (context, within) = (&id.context, READ_TIMEOUT.as_secs());
    ClusterError::Kubeconfig {
        reason: format!(
            "context {context}: {files}, or a file that it names, is not read within {within} s: does its file system \
             hang, or is it a pipe that nobody writes?"
        ),
    }
}

/// State of a cluster, as seen by its last requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Time of the first request without an answer. `None`: the API server answers.
    pub lost_since: Option<SystemTime>,
    /// Expiry of the current credential. `None`: it does not expire, or there is no credential.
    pub sign_in_ends: Option<SystemTime>,
    /// Whether the last sign-in printed anything, so that the next one may need a person.
    pub asks_people: bool,
}

impl Clusters {
    /// Returns no clusters yet. `exec_path`: folders in front of PATH for credential plugins.
    pub fn new(exec_path: &[PathBuf]) -> Arc<Self> {
        let exec_path = Mutex::new(ExecPath::new(exec_path));
        let (files, hung) = (Arc::default(), Arc::default());
        Arc::new(Self { exec_path, files, made: Mutex::default(), hung, sign_ins: SignIns::new() })
    }

    /// Replaces the folders in front of PATH. Applies to clusters that are loaded later.
    pub fn set_exec_path(&self, exec_path: &[PathBuf]) {
        *self.exec_path.lock().expect("no panic while the lock is held") = ExecPath::new(exec_path);
    }

    /// Returns the folders in which to search for programs.
    pub fn exec_path(&self) -> ExecPath {
        self.exec_path.lock().expect("no panic while the lock is held").clone()
    }

    /// Reads the kubeconfig files and returns their contexts for names and routes. Never fails: see
    /// [`Contexts::problem`].
    pub fn contexts(&self, paths: &Arc<KubeconfigPaths>) -> Contexts {
        kubeconfig::contexts(paths, &self.files)
    }

    /// Returns the cluster. Loads it at its first use, and again when its kubeconfig files, or their certificates and
    /// keys, have changed. If they have another cluster or user for the context, retires the one before. Never starts a
    /// sign-in; requests do.
    ///
    /// # Errors
    /// Fails if the context cannot be used, or if its files are not read within `READ_TIMEOUT` because a file system
    /// hangs. A cluster that was loaded before stays in use.
    pub async fn get(&self, id: &ClusterId) -> Result<Arc<Cluster>, ClusterError> {
        let present = {
            let made = self.made.lock().expect("no panic while the lock is held");
            made.get(id).map(|entry| (entry.files.clone(), entry.cluster.clone()))
        };
        let (known, cluster) = present.unzip();
        // Loaded before an entry is added: made-up context names in hostnames must not fill the map.
        let (files, access) = match (self.read(id, known).await, cluster) {
            (Ok(Some(loaded)), _) => loaded?,
            // What was read before stays in use.
            (Ok(None) | Err(_), Some(cluster)) => return Ok(cluster),
            (Ok(None), None) => return Err(hangs(id)),
            (Err(hangs), None) => return Err(hangs),
        };
        access.login.offer(&self.sign_ins);
        let keep = |made: &mut HashMap<ClusterId, Entry>, digest: u64| {
            let entry = made.get_mut(id).filter(|entry| entry.cluster.digest == digest)?;
            entry.files = files.clone();
            Some(entry.cluster.clone())
        };
        let digest = access.digest;
        if let Some(kept) = keep(&mut self.made.lock().expect("no panic while the lock is held"), digest) {
            return Ok(kept);
        }
        let cluster = Arc::new(Cluster::make(id, access, &self.sign_ins)?);
        let mut made = self.made.lock().expect("no panic while the lock is held");
        // Another caller may have been faster.
        if let Some(kept) = keep(&mut made, digest) {
            return Ok(kept);
        }
        if let Some(before) = made.insert(id.clone(), Entry { files, cluster: cluster.clone() }) {
            info!(context = %id.context, "the context has another cluster or user now");
            before.cluster.replaced.cancel();
        }
        Ok(cluster)
    }

    /// Reads the files of the clusters in use again if they have changed, and retires the clusters that their contexts do
    /// not lead to any more.
    pub async fn refresh(&self) {
        let ids: Vec<_> = self.made.lock().expect("no panic while the lock is held").keys().cloned().collect();
        join_all(ids.iter().map(|id| async {
            if let Err(error) = self.get(id).await {
                debug!(context = %id.context, %error, "the context cannot be used now");
            }
        }))
        .await;
    }

    /// Loads the context, unless the files of `known` are current. Runs on another thread, so that a hanging file system
    /// does not block other tasks.
    ///
    /// # Errors
    /// Fails after [`READ_TIMEOUT`] or [`CHECK_TIMEOUT`], or at once if an earlier read of the context still hangs.
    async fn read(&self, id: &ClusterId, known: Option<Fingerprint>) -> Result<Option<Loaded>, ClusterError> {
        if self.hung.lock().expect("no panic while the lock is held").contains(id) {
            return Err(hangs(id));
        }
        let limit = if known.is_some() { CHECK_TIMEOUT } else { READ_TIMEOUT };
        let (id, files, exec_path, hung) = (id.clone(), self.files.clone(), self.exec_path(), self.hung.clone());
        let (wanted, has_ended) = (id.clone(), Arc::new(AtomicBool::new(false)));
        let ended = has_ended.clone();
        let reading = spawn_blocking(move || {
            let now = Fingerprint::of(&wanted.kubeconfig.0);
            let is_current = known.is_some_and(|known| known.is_current());
            let load = || kubeconfig::load(&wanted, &files, &exec_path);
            let loaded = (!is_current).then(|| load().map(|access| (now.and(access.files.clone()), access)));
            let mut hung = hung.lock().expect("no panic while the lock is held");
            hung.remove(&wanted);
            ended.store(true, Ordering::Relaxed);
            loaded
        });
        match timeout(limit, reading).await {
            Ok(read) => Ok(read.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))),
            Err(_) => {
                let mut hung = self.hung.lock().expect("no panic while the lock is held");
                // The read may have ended just now, and then nothing would ever remove the entry.
                if !has_ended.load(Ordering::Relaxed) {
                    hung.insert(id.clone());
                }
                Err(hangs(&id))
            }
        }
    }

    /// Checks whether a process with another PATH could use a context: its plugin must be in one of the folders of
    /// `exec_path`.
    ///
    /// # Errors
    /// Fails if it could not.
    pub fn usable_with(&self, id: &ClusterId, exec_path: &ExecPath) -> Result<(), ClusterError> {
        kubeconfig::load(id, &self.files, exec_path).map(drop)
    }

    /// Returns the sign-in that requests to a cluster wait for. `None`: its credentials need no sign-in.
    pub fn sign_in(&self, id: &ClusterId) -> Option<Report> {
        let made = self.made.lock().expect("no panic while the lock is held");
        made.get(id)?.cluster.user.sign_in().map(|sign_in| sign_in.report())
    }

    /// Returns the state of a cluster. `None`: it was not used yet.
    pub fn health(&self, id: &ClusterId) -> Option<Health> {
        let made = self.made.lock().expect("no panic while the lock is held");
        let cluster = &made.get(id)?.cluster;
        let sign_in = cluster.user.sign_in();
        Some(Health {
            lost_since: cluster.contact.lost_since(),
            sign_in_ends: sign_in.and_then(|sign_in| sign_in.present()?.expires()),
            asks_people: sign_in.is_some_and(|sign_in| !sign_in.report().said.is_empty()),
        })
    }

    /// Returns the sign-ins of all users.
    pub fn sign_ins(&self) -> &SignIns {
        &self.sign_ins
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_ca_bundle_that_is_rotated_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("ca.crt");
        let ca = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        fs::write(&bundle, ca()).unwrap();
        let path = folder.path().join("config");
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let id = ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![path])), context: "one".parse().unwrap() };
        let clusters = Clusters::new(&[]);
        let first = clusters.get(&id).await.unwrap();
        assert!(Arc::ptr_eq(&first, &clusters.get(&id).await.unwrap()));
        fs::write(&bundle, ca() + &ca()).unwrap();
        assert!(!Arc::ptr_eq(&first, &clusters.get(&id).await.unwrap()));
    }

    #[tokio::test]
    async fn a_cluster_is_replaced_when_its_own_settings_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let id =
            ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![path.clone()])), context: "one".parse().unwrap() };
        let write = |server: &str, token: &str, current: &str| {
            let kubeconfig = json!({
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
                "current-context": current,
            });
            fs::write(&path, kubeconfig.to_string()).unwrap();
        };
        let clusters = Clusters::new(&[]);
        write("https://127.0.0.1:1", "a", "");
        let first = clusters.get(&id).await.unwrap();
        write("https://127.0.0.1:1", "a", "another");
        clusters.refresh().await;
        assert!(!first.replaced().is_cancelled() && Arc::ptr_eq(&first, &clusters.get(&id).await.unwrap()));
        // A file that is broken, or without the context for a moment, changes nothing yet.
        fs::write(&path, "{}").unwrap();
        clusters.refresh().await;
        assert!(!first.replaced().is_cancelled() && clusters.get(&id).await.is_err());
        write("https://127.0.0.1:1", "rotated", "");
        clusters.refresh().await;
        assert!(first.replaced().is_cancelled());
        let second = clusters.get(&id).await.unwrap();
        write("https://127.0.0.1:22", "rotated", "");
        assert!(!Arc::ptr_eq(&second, &clusters.get(&id).await.unwrap()) && second.replaced().is_cancelled());
    }

    /// Returns a kubeconfig with an OIDC user, and its ID token, which is valid for these hours.
    fn with_oidc(hours: u64) -> (String, String) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\": {}}}", now + hours * 3600));
        let token = format!("e30.{claims}.c2ln");
        let provider =
            json!({"idp-issuer-url": "http://127.0.0.1:1", "client-id": "c", "id-token": token, "refresh-token": "r"});
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"auth-provider": {"name": "oidc", "config": provider}}}],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        });
        (kubeconfig.to_string(), token)
    }

    #[tokio::test]
    async fn a_new_sign_in_in_the_kubeconfig_is_used_before_the_old_one_expires() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let id =
            ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![path.clone()])), context: "one".parse().unwrap() };
        let clusters = Clusters::new(&[]);
        let token = async || clusters.get(&id).await.unwrap().bearer_token().await.unwrap().unwrap();
        let [(first, old), (second, new)] = [1, 2].map(with_oidc);
        fs::write(&path, &first).unwrap();
        assert_eq!(token().await, old);
        fs::write(&path, second).unwrap();
        assert_eq!(token().await, new);
        fs::write(&path, first + "\n").unwrap();
        assert_eq!(token().await, new, "a token that was used before is no new sign-in");
    }

    #[tokio::test]
    async fn an_oidc_user_of_a_kubeconfig_from_a_pipe_signs_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (kubeconfig, token) = with_oidc(1);
        let writing = tokio::task::spawn_blocking({
            let path = path.clone();
            move || fs::write(path, kubeconfig)
        });
        let id = ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![path])), context: "one".parse().unwrap() };
        let clusters = Clusters::new(&[]);
        let cluster = clusters.get(&id).await.unwrap();
        writing.await.unwrap().unwrap();
        let signed_in = timeout(Duration::from_secs(5), cluster.bearer_token()).await;
        assert_eq!(signed_in.expect("no second read of the pipe").unwrap(), Some(token));
    }

    #[tokio::test]
    async fn files_of_a_context_that_was_loaded_and_hang_hold_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bundle) = (folder.path().join("config"), folder.path().join("ca.crt"));
        let kubeconfig = json!({
            "clusters": [
                {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}},
                {"name": "d", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca.crt"}},
            ],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}, {"name": "two", "context": {"cluster": "d"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        fs::write(&bundle, ca).unwrap();
        let kubeconfig = Arc::new(KubeconfigPaths(vec![path]));
        let id = |context: &str| ClusterId { kubeconfig: kubeconfig.clone(), context: context.parse().unwrap() };
        let clusters = Clusters::new(&[]);
        clusters.get(&id("two")).await.unwrap();
        let known = clusters.made.lock().unwrap()[&id("two")].files.clone();
        fs::remove_file(&bundle).unwrap();
        clusters.get(&id("one")).await.unwrap();
        let made = clusters.made.lock().unwrap();
        assert!(made[&id("two")].files == known, "only the files of the wanted context are looked at");
    }

    #[tokio::test]
    async fn files_that_hang_hold_up_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("ca.crt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let path = folder.path().join("config");
        let kubeconfig = json!({
            "clusters": [
                {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}},
                {"name": "hangs", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca.crt"}},
            ],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}, {"name": "hangs", "context": {"cluster": "hangs"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let kubeconfig = Arc::new(KubeconfigPaths(vec![path]));
        let id = |context: &str| ClusterId { kubeconfig: kubeconfig.clone(), context: context.parse().unwrap() };
        let clusters = Clusters::new(&[]);
        let hangs = id("hangs");
        let mut waiting = std::pin::pin!(clusters.get(&hangs));
        assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err());
        clusters.get(&id("one")).await.unwrap();
        // Only now is the pipe written.
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        tokio::task::spawn_blocking(move || fs::write(pipe, ca)).await.unwrap().unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_cluster_in_use_stays_while_its_files_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let bundle = folder.path().join("ca.crt");
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        fs::write(&bundle, &ca).unwrap();
        let id = ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![path])), context: "one".parse().unwrap() };
        let clusters = Clusters::new(&[]);
        let first = clusters.get(&id).await.unwrap();
        fs::remove_file(&bundle).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&bundle).status().unwrap().success());
        for _ in 0..2 {
            assert!(Arc::ptr_eq(&first, &clusters.get(&id).await.unwrap()));
        }
        assert!(clusters.hung.lock().unwrap().contains(&id));
        tokio::task::spawn_blocking(move || fs::write(bundle, ca)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_context_that_does_not_exist_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let kubeconfig = Arc::new(KubeconfigPaths(vec![path]));
        let id = |context: &str| ClusterId { kubeconfig: kubeconfig.clone(), context: context.parse().unwrap() };
        let clusters = Clusters::new(&[]);
        for name in ["two", "three"] {
            let refused = clusters.get(&id(name)).await.err().unwrap();
            assert!(matches!(refused, ClusterError::UnknownContext { .. }), "{refused}");
        }
        assert!(clusters.made.lock().unwrap().is_empty());
    }
}
