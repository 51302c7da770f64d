//! The phase of an upgraded connection.
//!
//! ```text
//!         suspect           retire
//! Open ----------> Probing -------> Retired      (retire leads there from Open, too)
//!   ^                 |
//!   +-----------------+             fail             end
//!     all lanes answer      any ----------> Failed ------> Over     (end leads there from any phase, too)
//! ```

use crate::backend::StreamFault;

/// Whether a connection takes streams, and if it has failed, why.
#[derive(Debug, Default)]
pub struct Phase(Kind);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Open,
    /// A worker of the node may hang, or the connection may be lost: all lanes have been pinged.
    Probing,
    /// Takes no new streams. Open streams stay open.
    Retired,
    /// Every stream has failed. The tasks of the connection end.
    Failed(StreamFault),
    /// The streams have been woken, and the connection is no longer counted.
    Over(StreamFault),
}

impl Phase {
    pub fn takes_streams(&self) -> bool {
        matches!(self.0, Kind::Open | Kind::Probing)
    }

    pub fn is_probing(&self) -> bool {
        self.0 == Kind::Probing
    }

    /// Returns why every stream has failed. `None`: they have not.
    pub fn fault(&self) -> Option<&StreamFault> {
        match &self.0 {
            Kind::Failed(fault) | Kind::Over(fault) => Some(fault),
            Kind::Open | Kind::Probing | Kind::Retired => None,
        }
    }

    /// Marks the connection as possibly broken.
    pub fn suspect(&mut self) {
        if self.0 == Kind::Open {
            self.0 = Kind::Probing;
        }
    }

    /// Clears the suspicion, once all lanes have answered.
    pub fn clear(&mut self) {
        if self.0 == Kind::Probing {
            self.0 = Kind::Open;
        }
    }

    pub fn retire(&mut self) {
        if self.takes_streams() {
            self.0 = Kind::Retired;
        }
    }

    /// Fails every stream. Only the first fault counts.
    pub fn fail(&mut self, fault: StreamFault) {
        if self.fault().is_none() {
            self.0 = Kind::Failed(fault);
        }
    }

    /// Ends the connection, with `fault` if it has not failed before. Returns whether this is the first call.
    pub fn end(&mut self, fault: StreamFault) -> bool {
        self.fail(fault);
        let Kind::Failed(fault) = &self.0 else { return false };
        self.0 = Kind::Over(fault.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_answers_every_event_as_the_diagram_says() {
        use Kind::{Failed, Open, Over, Probing, Retired};
        let (first, second) = (StreamFault::Reset, StreamFault::Lost { detail: "second".to_owned() });
        let failed = || Failed(first.clone());
        let over = || Over(first.clone());
        type Event = (&'static str, fn(&mut Phase, StreamFault));
        let events: [Event; 5] = [
            ("suspect", |phase, _| phase.suspect()),
            ("clear", |phase, _| phase.clear()),
            ("retire", |phase, _| phase.retire()),
            ("fail", |phase, fault| phase.fail(fault)),
            ("end", |phase, fault| {
                phase.end(fault);
            }),
        ];
        for (phase, wanted) in [
            (Open, [Probing, Open, Retired, Failed(second.clone()), Over(second.clone())]),
            (Probing, [Probing, Open, Retired, Failed(second.clone()), Over(second.clone())]),
            (Retired, [Retired, Retired, Retired, Failed(second.clone()), Over(second.clone())]),
            (failed(), [failed(), failed(), failed(), failed(), over()]),
            (over(), [over(), over(), over(), over(), over()]),
        ] {
            for ((name, event), wanted) in events.iter().zip(wanted) {
                let mut after = Phase(phase.clone());
                event(&mut after, second.clone());
                assert_eq!(after.0, wanted, "{phase:?}, {name}");
            }
        }
    }

    #[test]
    fn a_connection_is_over_once() {
        let mut phase = Phase::default();
        assert!(phase.takes_streams() && phase.fault().is_none());
        assert!(phase.end(StreamFault::Reset) && !phase.end(StreamFault::Reset));
        assert!(!phase.takes_streams());
        assert_eq!(phase.fault(), Some(&StreamFault::Reset));
    }
}
