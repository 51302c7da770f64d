//! State of each direction of a forwarded connection.

/// Our direction, to the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Local {
    #[default]
    Open,
    /// The client has sent its FIN. The node does not get it yet, because it would cut off the pod's answer.
    Held,
    /// The FIN leaves after the bytes before it.
    Queued,
    Sent,
}

impl Local {
    /// Returns whether the node has got no FIN, and none is queued.
    pub fn is_open_for_node(self) -> bool {
        matches!(self, Self::Open | Self::Held)
    }

    pub fn hold(&mut self) {
        if *self == Self::Open {
            *self = Self::Held;
        }
    }

    /// Queues the FIN for the node.
    pub fn release(&mut self) {
        if self.is_open_for_node() {
            *self = Self::Queued;
        }
    }
}

/// The pod's direction: a data stream and an error stream, each with its own end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remote {
    #[default]
    Open,
    DataEnded,
    ReportEnded,
    /// Both have ended, and the error text tells how.
    Ended,
    Reset,
}

impl Remote {
    pub fn end_data(&mut self) {
        *self = match self {
            Self::Open | Self::DataEnded => Self::DataEnded,
            Self::ReportEnded | Self::Ended => Self::Ended,
            Self::Reset => Self::Reset,
        };
    }

    pub fn end_report(&mut self) {
        *self = match self {
            Self::Open | Self::ReportEnded => Self::ReportEnded,
            Self::DataEnded | Self::Ended => Self::Ended,
            Self::Reset => Self::Reset,
        };
    }

    /// Marks the direction as reset, even if both streams have ended: unread bytes were discarded, so bytes are missing.
    pub fn reset(&mut self) {
        *self = Self::Reset;
    }

    pub fn has_data_ended(self) -> bool {
        matches!(self, Self::DataEnded | Self::Ended)
    }

    /// Returns whether no more bytes can arrive.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_direction_ends_once() {
        use Local::{Held, Open, Queued, Sent};
        for (state, held, released) in
            [(Open, Held, Queued), (Held, Held, Queued), (Queued, Queued, Queued), (Sent, Sent, Sent)]
        {
            let (mut after_hold, mut after_release) = (state, state);
            after_hold.hold();
            after_release.release();
            assert_eq!((after_hold, after_release), (held, released), "{state:?}");
        }
    }

    #[test]
    fn the_pods_direction_is_over_when_data_and_text_have_ended() {
        use Remote::{DataEnded, Ended, Open, ReportEnded, Reset};
        for (state, data, report, is_over) in [
            (Open, DataEnded, ReportEnded, false),
            (DataEnded, DataEnded, Ended, false),
            (ReportEnded, Ended, ReportEnded, false),
            (Ended, Ended, Ended, true),
            (Reset, Reset, Reset, true),
        ] {
            let (mut after_data, mut after_report, mut after_reset) = (state, state, state);
            after_data.end_data();
            after_report.end_report();
            after_reset.reset();
            assert_eq!((after_data, after_report, after_reset), (data, report, Reset), "{state:?}");
            assert_eq!(state.is_over(), is_over, "{state:?}");
        }
    }
}
