//! Jump hosts: adit runs a program in a pod (socat or nc) that connects to a host which only the cluster can see.
//!
//! Each connection is one `exec`. adit finds out which program the container has before it sends the first byte of a client.

pub mod framing;
pub mod jump_pod;
pub mod left;
pub mod program;
pub mod stream;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::AsyncReadExt,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use self::{
    left::Leavable,
    program::{Nc, Program},
    stream::ExecStream,
};
use super::{
    CloseReason, ConnectError, Endpoint, OpenError, Placement, ServicePort, Session, SessionGauges, StreamFault,
};
use crate::{
    config::{Jump, JumpMethod, Label, Namespace, Workload},
    drain::Drain,
    io::{BoxedIo, held::Held},
    k8s::{
        ClusterError,
        client::{Cluster, Clusters},
        endpoints::{Reachable, ReadyPod},
        pods,
        resolve::{Resolution, Source, resolve_pods},
        upgrade::{
            self, UpgradeError,
            exec::{ExecTransport, Executed, exec_by, outdone},
            probation,
        },
        watch::follow,
    },
    routing::PodTarget,
};

/// Timeout of the check for a program. A healthy node answers it at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of pods to try if the node of each does not run commands.
const MOST_PODS: usize = 3;

/// How long an exec has no answer until another pod is used. A caller waits for 10 s, and the other pod needs some of them.
const SLOW_EXEC: Duration = Duration::from_secs(5);

/// Pause after an exec that the API server or the node could not do at that moment.
const PAUSE: Duration = Duration::from_millis(250);

/// Pod UID, container and configured method.
type ProgramKey = (String, Option<Label>, JumpMethod);

/// Programs of the containers.
type Programs = Mutex<HashMap<ProgramKey, Program>>;

/// The backend of jump hosts.
pub struct Exec {
    clusters: Arc<Clusters>,
    programs: Arc<Programs>,
    /// Counter that spreads sessions over the pods of a Service.
    turn: AtomicUsize,
    drain: Drain,
}

impl Exec {
    /// `drain` waits for programs that have lost their client.
    pub fn new(clusters: Arc<Clusters>, drain: Drain) -> Self {
        Self { clusters, programs: Arc::default(), turn: AtomicUsize::new(0), drain }
    }

    /// Opens a session through a pod of `target` to the host and port of `jump`.
    ///
    /// # Errors
    /// No pod of the jump runs, one cannot be created, or the exec is refused.
    pub async fn open(&self, target: &PodTarget, jump: &Jump) -> Result<Box<dyn Session>, OpenError> {
        let cluster = self.clusters.get(&target.cluster).await?;
        let find = || resolve_pods(&cluster, &target.namespace, &target.workload);
        let found = match find().await {
            Err(ClusterError::NotFound { .. } | ClusterError::NotReady { .. } | ClusterError::NoPod { .. })
                if jump.create.is_some() =>
            {
                let Workload::Pod(name) = &target.workload else { return Err(not_a_pod(&cluster, target)) };
                jump_pod::ensure(&cluster, &target.namespace, name, jump).await?;
                find().await?
            }
            found => found?,
        };
        let pods = &found.reachable.pods;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % pods.len();
        let (before, after) = pods.split_at(turn);
        let mut first_error = None;
        let mut left = after.iter().chain(before).take(MOST_PODS);
        while let Some(pod) = left.next() {
            let others = left.size_hint().0 > 0;
            let opening = self.open_through(&cluster, &found, pod, jump);
            let opened = match others {
                true => cluster.within(SLOW_EXEC, opening).await.unwrap_or_else(|| Err(slow(&cluster, pod))),
                false => opening.await,
            };
            match opened {
                Ok(session) => return Ok(Box::new(session)),
                Err(error) if others && is_of_node(&error) => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(first_error.filter(|_| is_of_node(&error)).unwrap_or(error)),
            }
        }
        Err(first_error.unwrap_or(OpenError::Stopped))
    }

    /// Opens a session through one of the pods that were found.
    async fn open_through(
        &self,
        cluster: &Arc<Cluster>,
        found: &Resolution,
        pod: &ReadyPod,
        jump: &Jump,
    ) -> Result<JumpSession, OpenError> {
        let (cluster, namespace, pod) = (cluster.clone(), found.namespace.clone(), pod.clone());
        let mut jump = jump.clone();
        // Without permission to get the pod, the node says what is wrong.
        if let Some(containers) = pods::containers(&cluster, &namespace, &pod.name).await {
            match &jump.container {
                None => jump.container = containers.default,
                Some(wanted) if !containers.all.iter().any(|name| **name == **wanted) => {
                    return Err(no_container(&cluster, &pod, wanted, &containers.all));
                }
                Some(_) => {}
            }
        }
        let way = Arc::new(Way { cluster, namespace, pod, jump });
        let program = way.program(&self.programs).await?;
        let port = way.jump.target.port.get();
        let endpoint = Endpoint {
            pod: way.pod.name.to_string(),
            container_port: port,
            port: ServicePort { number: port, name: None, app_protocol: None },
            protocol: program.name(),
        };
        let entry = Entry { placement: Placement::new(&way.pod.name), closed: watch::Sender::new(None) };
        let following = tokio::spawn(follow_pod(way.clone(), found.source.clone(), entry.clone()));
        Ok(JumpSession {
            way,
            program,
            programs: self.programs.clone(),
            endpoint,
            entry,
            has_others: found.reachable.pods.len() > 1,
            answers: AtomicUsize::new(0),
            gauges: Arc::default(),
            drain: self.drain.clone(),
            following,
        })
    }
}

fn is_of_node(error: &OpenError) -> bool {
    matches!(error, OpenError::Cluster(error) if error.is_of_node())
}

fn slow(cluster: &Cluster, pod: &ReadyPod) -> OpenError {
    cluster.timed_out(format!("running a command in pod {}", pod.name), SLOW_EXEC).into()
}

fn not_a_pod(cluster: &Cluster, target: &PodTarget) -> OpenError {
    ClusterError::Unsupported {
        what: target.to_string(),
        context: cluster.context.clone(),
        why: "only a pod that is named can be created".to_owned(),
        hint: Some("name it: via: {pod: NAME, create: {...}}".to_owned()),
    }
    .into()
}

fn no_container(cluster: &Cluster, pod: &ReadyPod, wanted: &Label, all: &[String]) -> OpenError {
    ClusterError::Unsupported {
        what: format!("pod {}", pod.name),
        context: cluster.context.clone(),
        why: format!("it has no container {:?}; it has {}", &**wanted, all.join(", ")),
        hint: Some("set via.container to one of them, or leave it out for the pod's default container".to_owned()),
    }
    .into()
}

/// Parameters of every exec in the pod.
struct Way {
    cluster: Arc<Cluster>,
    namespace: Namespace,
    pod: ReadyPod,
    jump: Jump,
}

impl Way {
    async fn exec(self: &Arc<Self>, command: &[String]) -> Result<ExecStream, UpgradeError> {
        let container = self.jump.container.as_deref();
        let executed = upgrade::exec::exec(&self.cluster, &self.namespace, &self.pod.name, container, command).await?;
        let (way, transport, patience) = (self.clone(), executed.transport, probation::patience(executed.took));
        let probation = async move {
            sleep(patience).await;
            way.outdo(transport).await
        };
        Ok(self.stream(executed).on_probation(Box::pin(probation)))
    }

    /// Tries the other transport while this one is silent. Returns why to give this one up, if the other one carries bytes.
    async fn outdo(&self, silent: ExecTransport) -> Option<StreamFault> {
        let (container, command) = (self.jump.container.as_deref(), help("socat"));
        let trial = async {
            let by = silent.other();
            let trying = exec_by(by, &self.cluster, &self.namespace, &self.pod.name, container, &command).await;
            let mut stream = self.stream(trying?);
            // Any answer counts.
            let _ = stream.read_u8().await;
            stream.has_heard().then_some(())
        };
        timeout(probation::TRY, trial).await.ok().flatten()?;
        Some(StreamFault::Unavailable { detail: outdone(&self.cluster, silent), retry_after: None })
    }

    fn stream(&self, executed: Executed) -> ExecStream {
        ExecStream::new(executed, self.jump.target.to_string(), self.pod.name.to_string())
    }

    fn program_key(&self) -> ProgramKey {
        (self.pod.uid.clone(), self.jump.container.clone(), self.jump.method)
    }

    /// Returns the program to run: the configured one, else the first that the container has.
    async fn program(self: &Arc<Self>, known: &Programs) -> Result<Program, OpenError> {
        let key = self.program_key();
        let remembered = known.lock().expect("no panic while the lock is held").get(&key).copied();
        if let Some(program) = remembered {
            return Ok(program);
        }
        let wanted = match self.jump.method {
            // No check: all versions of socat take the same options, and a missing one shows in the exec's error.
            JumpMethod::Socat => return Ok(Program::Socat),
            JumpMethod::Nc => &["nc"][..],
            JumpMethod::Auto => &["socat", "nc"],
        };
        for name in wanted {
            if let Some(program) = self.probe(name).await? {
                known.lock().expect("no panic while the lock is held").insert(key, program);
                return Ok(program);
            }
        }
        Err(ClusterError::Unsupported {
            what: format!("pod {}/{}", self.namespace, self.pod.name),
            context: self.cluster.context.clone(),
            why: format!("its container has no {}", wanted.join(" and no ")),
            hint: Some(
                "go through a pod that has one, or let adit create it: via: {pod: NAME, create: {image: IMAGE}}"
                    .to_owned(),
            ),
        }
        .into())
    }

    /// Checks whether the container has a program, with a command that ends at once in any case.
    async fn probe(self: &Arc<Self>, name: &str) -> Result<Option<Program>, OpenError> {
        let (stream, mut said, ended) = loop {
            let mut stream = match self.exec(&help(name)).await {
                Ok(stream) => stream,
                Err(UpgradeError::Cluster(error)) => return Err(error.into()),
                Err(UpgradeError::PodGone(cause)) => return Err(self.gone(cause)),
            };
            let mut said = Vec::new();
            let ended = timeout(PROBE_TIMEOUT, (&mut stream).take(64 * 1024).read_to_end(&mut said)).await;
            debug!(pod = &*self.pod.name, name, ?ended, "probed");
            match ended.as_ref().map(|read| read.as_ref().err().and_then(StreamFault::of)) {
                // The other transport carries bytes, and adit uses it from here on.
                Ok(Some(StreamFault::Unavailable { .. })) => {}
                _ => break (stream, said, ended),
            }
        };
        // The help may end with any code. The container runtime reports that there is no such program.
        if matches!(ended, Ok(Err(_))) && stream.is_without_program() {
            return Ok(None);
        }
        // A check that did not end by itself says nothing about the program.
        match ended {
            Err(_) => return Err(self.cluster.timed_out(self.checking(name), PROBE_TIMEOUT).into()),
            Ok(Err(error)) if !stream.has_exited() => return Err(self.cut_off(name, &error)),
            Ok(_) => {}
        }
        if name == "socat" {
            return Ok(Some(Program::Socat));
        }
        said.extend_from_slice(stream.stderr());
        Ok(Some(Program::Nc(Nc::of_help(&String::from_utf8_lossy(&said)))))
    }

    fn checking(&self, name: &str) -> String {
        format!("checking pod {}/{} for {name}", self.namespace, self.pod.name)
    }

    fn cut_off(&self, name: &str, error: &io::Error) -> OpenError {
        ClusterError::Unavailable {
            context: self.cluster.context.clone(),
            reason: format!("{}: {error}", self.checking(name)),
            retry_after: None,
            hint: format!("{} -n {} get pods", self.cluster.kubectl(), self.namespace),
        }
        .into()
    }

    /// Ends a process in the container, unless that needs a sign-in: nobody waits for one. A shell has `kill` even if the image has no
    /// such program.
    async fn end(self: Arc<Self>, pid: u32) {
        if !self.cluster.has_credential() {
            return;
        }
        let command = ["sh".to_owned(), "-c".to_owned(), format!("kill {pid}")];
        if let Ok(mut stream) = self.exec(&command).await {
            let mut said = Vec::new();
            let ended = (&mut stream).take(4096).read_to_end(&mut said).await;
            debug!(pod = &*self.pod.name, pid, ?ended, "ended a process");
        }
    }

    fn gone(&self, cause: String) -> OpenError {
        ClusterError::NotReady {
            what: format!("pod {}/{}", self.namespace, self.pod.name),
            context: self.cluster.context.clone(),
            cause,
            hint: format!("{} -n {} get pods", self.cluster.kubectl(), self.namespace),
        }
        .into()
    }
}

/// Returns a command that prints the version or the options of a program, and ends at once.
fn help(name: &str) -> [String; 2] {
    [name.to_owned(), if name == "socat" { "-V" } else { "-h" }.to_owned()]
}

/// Takes new streams until it is closed.
#[derive(Clone)]
struct Entry {
    placement: Placement,
    closed: watch::Sender<Option<CloseReason>>,
}

impl Entry {
    fn close(&self, reason: CloseReason) -> CloseReason {
        self.placement.leave();
        self.closed.send_replace(Some(reason.clone()));
        reason
    }
}

/// Closes `entry` once the pod is terminating, not ready or gone while other pods are ready. Its open streams stay open.
async fn follow_pod(way: Arc<Way>, source: Source, entry: Entry) {
    let tell = |reachable: Reachable| {
        // Without another pod, a next session could only fail, and this pod may still run commands.
        if !reachable.pods.is_empty() && !reachable.pods.contains(&way.pod) && entry.closed.borrow().is_none() {
            let detail = format!("pod {} is terminating, not ready, or gone", way.pod.name);
            info!(pod = &*way.pod.name, "takes no new streams: terminating, not ready, or gone");
            entry.close(CloseReason::PodGone { detail });
        }
    };
    way.cluster.replaced().run_until_cancelled(follow(&way.cluster, &way.namespace, source, tell)).await;
}

/// A session through a pod.
struct JumpSession {
    way: Arc<Way>,
    program: Program,
    programs: Arc<Programs>,
    endpoint: Endpoint,
    entry: Entry,
    /// Whether another pod would do as well.
    has_others: bool,
    /// Number of execs that were answered.
    answers: AtomicUsize,
    gauges: Arc<SessionGauges>,
    drain: Drain,
    following: JoinHandle<()>,
}

impl Drop for JumpSession {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl JumpSession {
    async fn open_stream(&self) -> Result<(BoxedIo, Placement), ConnectError> {
        if self.way.cluster.replaced().is_cancelled() {
            return Err(ConnectError::Over(CloseReason::replaced(&self.way.cluster)));
        }
        let mut unanswered = Unanswered { session: self, since: Some(Instant::now()), answers: self.answers() };
        let command = self.program.command(&self.way.jump.target);
        let mut executed = std::pin::pin!(self.way.exec(&command));
        let executed = loop {
            if !self.has_others {
                break executed.await;
            }
            match self.way.cluster.within(SLOW_EXEC, executed.as_mut()).await {
                Some(executed) => break executed,
                None if unanswered.is_dead() => return Err(ConnectError::Over(unanswered.reason())),
                // A busy node answers other execs meanwhile.
                None => unanswered.answers = self.answers(),
            }
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
        unanswered.since = None;
        match executed {
            Ok(mut stream) => {
                if let Program::Nc(Nc { announces: true, .. }) = self.program {
                    stream.expect_announcement();
                }
                stream.if_without_program(self.forget_program());
                let counted = (self.gauges.count_stream(), self.gauges.count_connection());
                let stream: BoxedIo = match self.program {
                    Program::Socat => {
                        stream.expect_report();
                        let way = self.way.clone();
                        let end = Box::new(move |pid| -> BoxFuture<'static, ()> { Box::pin(way.end(pid)) });
                        Box::new(Held::new(Leavable::new(stream, end, self.drain.clone()), counted))
                    }
                    Program::Nc(_) => Box::new(Held::new(stream, counted)),
                };
                Ok((stream, self.entry.placement.clone()))
            }
            Err(error) => {
                let reason = match error {
                    UpgradeError::PodGone(detail) => CloseReason::PodGone { detail },
                    UpgradeError::Cluster(error) => {
                        let error = OpenError::from(error);
                        let pause = error.retry_after().unwrap_or_default().max(PAUSE);
                        // The next session would fail as well, for example without permission.
                        let is_slow = matches!(error, OpenError::Cluster(ClusterError::TimedOut { .. }));
                        if pause > error.patience() && !is_slow {
                            return Err(ConnectError::Retry(error));
                        }
                        sleep(pause).await;
                        CloseReason::Lost { detail: error.to_string() }
                    }
                };
                Err(ConnectError::Over(self.entry.close(reason)))
            }
        }
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Returns a function for an exec that finds no program: the container has changed, and the next session checks it again.
    fn forget_program(&self) -> impl FnOnce() + Send + use<> {
        let (programs, key, entry) = (self.programs.clone(), self.way.program_key(), self.entry.clone());
        move || {
            let was_known = programs.lock().expect("no panic while the lock is held").remove(&key).is_some();
            if was_known {
                entry.close(CloseReason::Lost { detail: "the program is not in the container any more".to_owned() });
            }
        }
    }
}

/// An exec that waits for its answer. If its caller gives up, and the pod answers no other exec either, the session closes, so
/// that the next caller gets another pod.
struct Unanswered<'a> {
    session: &'a JumpSession,
    /// `None`: there is an answer.
    since: Option<Instant>,
    /// Number of answers to the session's execs at the last look.
    answers: usize,
}

impl Unanswered<'_> {
    /// Returns whether the pod has answered no other exec since the last look either.
    fn is_dead(&self) -> bool {
        self.session.answers() == self.answers
    }

    fn reason(&self) -> CloseReason {
        let seconds = self.since.map_or(0, |since| since.elapsed().as_secs());
        let pod = &self.session.way.pod.name;
        CloseReason::Lost { detail: format!("no answer to an exec in pod {pod} within {seconds} s") }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // If the client leaves sooner, the pod may still be fine.
        if self.since.is_some_and(|since| since.elapsed() >= SLOW_EXEC) && self.is_dead() {
            self.session.entry.close(self.reason());
        }
    }
}

impl Session for JumpSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(self.open_stream())
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(CloseReason::of_session(self.entry.closed.subscribe(), &self.way.cluster))
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}
