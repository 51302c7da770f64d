//! Port-forward and exec, as a kubelet and its container runtime serve them.
//!
//! | transport | port-forward | exec |
//! |---|---|---|
//! | SPDY/3.1 | [`port_forward`]: pairs of streams | [`exec`]: a stream each for stdin, stdout, stderr, errors |
//! | SPDY/3.1 in a WebSocket | [`tunnel`] unwraps it | - |
//! | WebSocket channels | [`channels`]: two channels per port | [`exec`]: v4 and v5 |

pub mod channels;
pub mod exec;
pub mod port_forward;
pub mod spdy;
pub mod tunnel;

use std::time::Duration;

/// After one direction of a forwarded connection has ended, the other one may continue for this long (containerd, CRI-O).
const GRACE: Duration = Duration::from_secs(1);

/// Time limit until all streams that belong together are open.
const COMPLETE_WITHIN: Duration = Duration::from_secs(30);
