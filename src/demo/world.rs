//! The objects of the demo cluster, their versions, and the history for watches.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{kinds, process::Process, tasks::Tasks};

/// Plural of the kind, namespace (empty: none), name.
pub type Key = (&'static str, String, String);

/// Number of changes that a watch may be behind before it must list again.
const HISTORY: usize = 4096;

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub plural: &'static str,
    /// `None`: created.
    pub before: Option<Arc<Value>>,
    /// `None`: deleted.
    pub after: Option<Arc<Value>>,
}

/// Error of a version that is older than the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    pub oldest: u64,
}

/// All objects.
pub struct World {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// State behind the lock. Controllers change it as a whole.
pub(super) struct State {
    pub objects: BTreeMap<Key, Arc<Value>>,
    pub version: u64,
    history: VecDeque<Change>,
    /// Last version that the history no longer has.
    forgotten: u64,
    /// The running container of each pod, by UID.
    pub processes: HashMap<String, Process>,
    /// Time at which a starting or stopping pod is done, by UID.
    pub due: HashMap<String, Instant>,
    /// Parent group of every container's tasks.
    pub tasks: Tasks,
    addresses: u16,
    seed: u64,
}

impl World {
    /// Returns a world without objects. Its containers end with `tasks`.
    pub fn new(tasks: Tasks) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            version: 1,
            history: VecDeque::new(),
            forgotten: 1,
            processes: HashMap::new(),
            due: HashMap::new(),
            tasks,
            addresses: 0,
            seed: RandomState::new().hash_one(0u8),
        };
        Self { state: Mutex::new(state), changed: watch::Sender::new(1) }
    }

    pub fn get(&self, plural: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.lock().get(plural, namespace, name)
    }

    /// Returns the objects of a kind, in one namespace or in all, and the version of the list.
    pub fn list(&self, plural: &'static str, namespace: Option<&str>) -> (Vec<Arc<Value>>, u64) {
        let state = self.lock();
        (state.list(plural, namespace), state.version)
    }

    /// Adds or replaces an object.
    pub fn put(&self, plural: &'static str, object: Value) {
        self.change(|state| state.put(plural, object));
    }

    /// Returns the container of a running pod.
    pub fn process(&self, uid: &str) -> Option<Process> {
        self.lock().processes.get(uid).cloned()
    }

    /// Returns the changes after `version`, and the version for the next call.
    ///
    /// # Errors
    /// `version` is older than the history.
    pub fn changes_after(&self, version: u64) -> Result<(Vec<Change>, u64), Expired> {
        let state = self.lock();
        if version < state.forgotten {
            return Err(Expired { oldest: state.forgotten });
        }
        let changes = state.history.iter().filter(|change| change.version > version).cloned().collect();
        Ok((changes, state.version))
    }

    /// Returns a receiver of the current version.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Clears the history, so that a watch from an old version gets 410 Gone.
    pub fn forget_history(&self) {
        self.change(|state| {
            state.history.clear();
            state.version += 1;
            state.forgotten = state.version;
        });
    }

    /// Changes the state, and wakes the receivers of the version.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, version) = {
            let mut state = self.lock();
            (change(&mut state), state.version)
        };
        self.changed.send_if_modified(|seen| std::mem::replace(seen, version) != version);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

impl State {
    pub fn get(&self, plural: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.objects.get(&(plural, namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn list(&self, plural: &'static str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let of_kind = self.objects.iter().filter(|((of, ..), _)| *of == plural);
        of_kind.filter(|((_, within, _), _)| namespace.is_none_or(|n| n == within)).map(|(_, o)| o.clone()).collect()
    }

    /// Adds or replaces an object, and fills in the server's own fields. An identical object changes nothing.
    pub fn put(&mut self, plural: &'static str, mut object: Value) {
        let kind = kinds::of_plural(plural);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (plural, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let before = self.objects.get(&key).cloned();
        (object["apiVersion"], object["kind"]) = (json!(kind.api_version()), json!(kind.name));
        let old = before.as_ref().map_or(&Value::Null, |before| &before["metadata"]);
        let uid = if old["uid"].is_null() { json!(self.new_uid()) } else { old["uid"].clone() };
        let since = if old.is_null() { json!(now()) } else { old["creationTimestamp"].clone() };
        let metadata = &mut object["metadata"];
        for (field, value) in [("uid", uid), ("creationTimestamp", since)] {
            if metadata[field].is_null() {
                metadata[field] = value;
            }
        }
        metadata["resourceVersion"] = old["resourceVersion"].clone();
        if before.as_deref() == Some(&object) {
            return;
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.objects.insert(key, object.clone());
        self.remember(plural, before, Some(object));
    }

    pub fn remove(&mut self, plural: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let before = self.objects.remove(&(plural, namespace.to_owned(), name.to_owned()))?;
        self.version += 1;
        self.remember(plural, Some(before.clone()), None);
        Some(before)
    }

    fn remember(&mut self, plural: &'static str, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.history.push_back(Change { version: self.version, plural, before, after });
        if self.history.len() > HISTORY {
            self.forgotten = self.history.pop_front().map_or(self.forgotten, |gone| gone.version);
        }
    }

    pub fn new_uid(&mut self) -> String {
        let (a, b) = (self.random(), self.random());
        let (high, low) = (a & 0xffff_ffff_ffff, b >> 4);
        // The format of a UUID, version 4 (RFC 9562, section 5.4).
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 16,
            high & 0xffff,
            b & 0xfff,
            0x8000 | a >> 50,
            low & 0xffff_ffff_ffff
        )
    }

    /// Returns a suffix like those of Kubernetes for generated names: five characters without vowels, which spell no words.
    pub fn new_suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let number = self.random();
        (0..5).map(|at| char::from(LETTERS[(number >> (8 * at)) as usize % LETTERS.len()])).collect()
    }

    /// Returns the next address of the pods' network.
    pub fn new_address(&mut self) -> String {
        self.addresses += 1;
        format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1)
    }

    /// Returns a random number (splitmix64): names must differ, but need not be secret.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Returns the current time in the format of objects.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: u16) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"ports": [{"port": port}]}})
    }

    #[test]
    fn what_changes_after_a_version_is_told_once_and_in_order() {
        let world = World::new(Tasks::default());
        world.put("services", service("a", 1));
        let (_, version) = world.list("services", None);
        world.put("services", service("a", 1));
        assert!(world.changes_after(version).unwrap().0.is_empty(), "the same again is no change");
        world.put("services", service("a", 2));
        world.put("services", service("b", 1));
        world.change(|state| state.remove("services", "shop", "a"));
        let (changes, next) = world.changes_after(version).unwrap();
        let kinds: Vec<_> = changes.iter().map(|change| (change.before.is_some(), change.after.is_some())).collect();
        assert_eq!(kinds, [(true, true), (false, true), (true, false)]);
        assert!(world.changes_after(next).unwrap().0.is_empty());
    }

    #[test]
    fn a_replaced_object_keeps_its_uid_and_gets_a_new_version() {
        let world = World::new(Tasks::default());
        world.put("services", service("a", 1));
        let first = world.get("services", "shop", "a").unwrap();
        world.put("services", service("a", 2));
        let second = world.get("services", "shop", "a").unwrap();
        assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);
        assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
        assert_eq!(first["metadata"]["uid"].as_str().unwrap().len(), 36);
    }

    #[test]
    fn a_version_before_the_history_has_expired() {
        let world = World::new(Tasks::default());
        let (_, version) = world.list("services", None);
        world.put("services", service("a", 1));
        assert!(world.changes_after(version).is_ok());
        world.forget_history();
        assert!(world.changes_after(version).is_err());
        let (_, version) = world.list("services", None);
        assert!(world.changes_after(version).is_ok());
    }
}
