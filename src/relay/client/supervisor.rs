//! Keeps the client of a relay running: it retries, with a back-off.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::mpsc, time::sleep};
use tracing::{info, warn};

use super::{Client, Ended, Fatal, Given, LocalEnd, Open, Options, tls};
use crate::{drain::Drain, random};

/// Pause between two attempts to reach the relay.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Reaction to refusals such as a wrong secret or a port in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// The client ends, unless its tunnels have been open before: a person waits for the answer.
    End,
    /// The client tries again: ports become free, and secrets are corrected.
    Retry,
}

/// State of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientState {
    Open(Vec<Open>),
    /// A local service refuses the Host header of its visitors. The tunnels stay open.
    HostRefused {
        local_port: u16,
    },
    /// The client retries after `pause`.
    Waiting {
        reason: String,
        pause: Duration,
    },
}

/// Keeps the tunnels open until the drain starts. Calls `options` before each attempt, so that a secret file is read
/// again; it must return the same tunnels each time. Calls `tell` at each change of the state.
///
/// # Errors
/// Fails if a retry would not help, or if `refusals` forbids it.
pub async fn run(
    options: impl Fn() -> Result<Options, Fatal>,
    refusals: Refusals,
    drain: Drain,
    tell: impl Fn(&ClientState),
) -> Result<(), Fatal> {
    let given: Arc<Mutex<Vec<Given>>> = Arc::default();
    let (mut pause, mut has_been_open) = (FIRST_PAUSE, false);
    loop {
        let mut was_open = false;
        let (to, ended) = match options().and_then(|options| client(options, given.clone(), drain.clone())) {
            Ok((client, states)) => (client.options.dial.name(), client.once(states, &tell, &mut was_open).await),
            // No relay was dialled.
            Err(fatal) => (String::new(), Ended::Fatal(fatal)),
        };
        let relay = (!to.is_empty()).then_some(to.as_str());
        has_been_open |= was_open;
        if was_open {
            pause = FIRST_PAUSE;
        }
        // With the jitter, clients of one relay do not all reconnect at the same moment.
        let jitter = f64::from(random::bytes::<1>().map_or(128, |[byte]| byte)) / 255.0;
        let again_in = Duration::from_millis(100 * (pause.mul_f64(0.75 + jitter / 2.0).as_millis() as u64 / 100));
        let reason = match ended {
            Ended::Drained => return Ok(()),
            Ended::Fatal(fatal @ Fatal::Undone { .. }) => return Err(fatal),
            Ended::Fatal(fatal) if refusals == Refusals::End && !has_been_open => return Err(fatal),
            Ended::Fatal(fatal) => {
                warn!(relay, error = %fatal, ?again_in, "the tunnels are not open");
                fatal.to_string()
            }
            Ended::Goodbye(reason) => {
                info!(relay, reason, ?again_in, "the relay says goodbye");
                format!("the relay at {to} ended the session: {reason}")
            }
            Ended::Lost(error) => {
                warn!(relay, %error, ?again_in, "no connection to the relay");
                format!("no connection to the relay at {to}: {error}")
            }
        };
        tell(&ClientState::Waiting { reason, pause: again_in });
        tokio::select! {
            () = sleep(again_in) => {}
            () = drain.started() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns a client, and the states that its visitors' connections report.
fn client(
    options: Options,
    given: Arc<Mutex<Vec<Given>>>,
    drain: Drain,
) -> Result<(Arc<Client>, mpsc::Receiver<ClientState>), Fatal> {
    let config = tls::client_config(&options.trust).map_err(|error: io::Error| Fatal::Setup(error.to_string()))?;
    let end = |wanted: &super::Wanted| LocalEnd::new(options.local_host.as_deref(), wanted.local_port);
    let local_ends = options.tunnels.iter().map(end).collect();
    let (states, states_rx) = mpsc::channel(options.tunnels.len().max(1));
    given.lock().expect("no panic while the lock is held").resize(options.tunnels.len(), Given::default());
    Ok((Arc::new(Client { options, local_ends, config, given, states, drain }), states_rx))
}
