//! Chooses the next transport from the results so far. Pure: no I/O, no clock.
//!
//! | result of an attempt | meaning | next step |
//! |---|---|---|
//! | 101 to the requested transport | it works | use it, and remember it |
//! | an admission policy denies it; 400 without a container; 401, 403, 404, 429, 5xx from Kubernetes; 429, 5xx with Retry-After | error of the user, the load or the pod: every transport would get it | report the error |
//! | 403 with the name of a user | a missing permission | try a transport that needs another one |
//! | any other status; 101 to another protocol; FIN or RST; no HTTP | a gateway does not pass this transport | try the next one |
//! | no answer within [`patience`] | a gateway swallows this transport, or all is slow | try the next one in parallel: first answer wins |

use std::time::Duration;

/// A transport of a request.
pub trait Transport: Copy + PartialEq + Send + Sync + 'static {
    /// All transports, cheapest first.
    const ALL: &[Self];

    /// Returns the RBAC verb that the transport needs.
    fn verb(self) -> &'static str;

    /// Returns the name for messages.
    fn name(self) -> &'static str;
}

/// Result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request was just sent.
    Asked,
    /// No answer within [`patience`], but it may still come.
    Silent,
    Works,
    /// Error of the user, the load, or the pod: another transport would get the same answer.
    Final,
    /// The user lacks the permission that this transport needs.
    Denied,
    /// The answer refuses the transport.
    Refused,
    /// The connection was closed or reset, or the answer is not HTTP.
    Broken,
}

/// Next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<T> {
    Try(T),
    /// Wait for the attempts without an answer.
    Wait,
    Use(T),
    /// Report the answer to this attempt as the error.
    Fail(T),
}

/// Returns the order in which to try transports. `first`: the one that worked last, or the best guess.
pub fn order<T: Transport>(first: T) -> Vec<T> {
    std::iter::once(first).chain(T::ALL.iter().copied().filter(|other| *other != first)).collect()
}

/// Returns the next step after these attempts, in the order of their start.
pub fn next<T: Transport>(order: &[T], attempts: &[(T, Verdict)]) -> Next<T> {
    let first = |wanted: Verdict| attempts.iter().find(|(_, verdict)| *verdict == wanted).map(|(tried, _)| *tried);
    if let Some(works) = first(Verdict::Works) {
        return Next::Use(works);
    }
    if let Some(answered) = first(Verdict::Final) {
        return Next::Fail(answered);
    }
    if first(Verdict::Asked).is_some() {
        return Next::Wait;
    }
    let is_tried = |transport: T| attempts.iter().any(|(tried, _)| *tried == transport);
    let is_denied = |transport: T| {
        attempts.iter().any(|(tried, verdict)| *verdict == Verdict::Denied && tried.verb() == transport.verb())
    };
    match order.iter().copied().find(|transport| !is_tried(*transport) && !is_denied(*transport)) {
        Some(untried) => Next::Try(untried),
        None if first(Verdict::Silent).is_some() => Next::Wait,
        // Reports the error that the user can fix most easily.
        None => first(Verdict::Denied)
            .or_else(|| first(Verdict::Refused))
            .or_else(|| first(Verdict::Broken))
            .map_or(Next::Wait, Next::Fail),
    }
}

/// Returns how long to wait for an answer before the next transport is tried in parallel. `attempts`: the number of
/// attempts so far, with this one. In total less than 3 s.
pub fn patience(is_remembered: bool, attempts: usize) -> Duration {
    match (is_remembered, attempts) {
        // The transport has worked before, so the server is probably slow.
        (true, 0..=1) => Duration::from_secs(2),
        (true, _) => Duration::from_millis(400),
        (false, _) => Duration::from_secs(1),
    }
}

/// Returns the verdict on a status other than the expected 101.
///
/// `is_of_kubernetes`: the answer comes from an API server or a kubelet, and a 400 or 404 is about the object. Gateways send
/// 502, 501 or even 401 for an unknown upgrade, and may accept another one. `is_denial`: the answer names the user and
/// the verb.
pub fn verdict(status: u16, is_of_kubernetes: bool, is_denial: bool) -> Verdict {
    match status {
        403 if is_denial => Verdict::Denied,
        400 | 401 | 403 | 404 | 429 | 500..=599 if is_of_kubernetes => Verdict::Final,
        _ => Verdict::Refused,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Way {
        A,
        B,
        C,
    }
    use Way::{A, B, C};

    impl Transport for Way {
        const ALL: &[Self] = &[A, B, C];

        fn verb(self) -> &'static str {
            if self == A { "create" } else { "get" }
        }

        fn name(self) -> &'static str {
            "way"
        }
    }

    #[test]
    fn what_is_tried_next_follows_from_the_first_and_the_answers() {
        use Verdict::{Asked, Broken, Denied, Final, Refused, Silent, Works};
        for (first, attempts, wanted) in [
            (A, &[][..], Next::Try(A)),
            (C, &[], Next::Try(C)),
            (A, &[(A, Asked)], Next::Wait),
            (A, &[(A, Works)], Next::Use(A)),
            // Errors of the user, the load or the pod: final, after any attempts.
            (A, &[(A, Final)], Next::Fail(A)),
            (B, &[(B, Final)], Next::Fail(B)),
            (A, &[(A, Refused), (B, Final)], Next::Fail(B)),
            (A, &[(A, Silent), (B, Final)], Next::Fail(B)),
            // Errors of the transport.
            (A, &[(A, Refused)], Next::Try(B)),
            (A, &[(A, Broken)], Next::Try(B)),
            (A, &[(A, Silent)], Next::Try(B)),
            (B, &[(B, Broken)], Next::Try(A)),
            (C, &[(C, Refused)], Next::Try(A)),
            (C, &[(C, Refused), (A, Broken)], Next::Try(B)),
            (A, &[(A, Refused), (B, Broken)], Next::Try(C)),
            (A, &[(A, Refused), (B, Broken), (C, Works)], Next::Use(C)),
            // One is late and another runs in parallel: the first answer wins.
            (A, &[(A, Silent), (B, Asked)], Next::Wait),
            (A, &[(A, Works), (B, Asked)], Next::Use(A)),
            (A, &[(A, Silent), (B, Works)], Next::Use(B)),
            (A, &[(A, Refused), (B, Asked)], Next::Wait),
            (A, &[(A, Silent), (B, Silent)], Next::Try(C)),
            (A, &[(A, Silent), (B, Refused), (C, Broken)], Next::Wait),
            (A, &[(A, Silent), (B, Silent), (C, Silent)], Next::Wait),
            (A, &[(A, Broken), (B, Refused), (C, Broken)], Next::Fail(B)),
            // One attempt per permission.
            (A, &[(A, Denied)], Next::Try(B)),
            (A, &[(A, Denied), (B, Denied)], Next::Fail(A)),
            (B, &[(B, Denied)], Next::Try(A)),
            (B, &[(B, Denied), (A, Refused)], Next::Fail(B)),
            (A, &[(A, Denied), (B, Refused)], Next::Try(C)),
            (A, &[(A, Denied), (B, Refused), (C, Denied)], Next::Fail(A)),
            (C, &[(C, Denied)], Next::Try(A)),
        ] {
            assert_eq!(next(&order(first), attempts), wanted, "{first:?} first, then {attempts:?}");
        }
    }

    #[test]
    fn load_and_restarts_are_nothing_that_another_transport_mends() {
        for status in [429, 500, 501, 502, 503, 504, 401] {
            assert_eq!(verdict(status, true, false), Verdict::Final, "{status}");
            assert_eq!(verdict(status, false, false), Verdict::Refused, "{status} of a gateway");
        }
        assert_eq!((verdict(404, true, false), verdict(404, false, false)), (Verdict::Final, Verdict::Refused));
        assert_eq!((verdict(403, true, true), verdict(403, true, false)), (Verdict::Denied, Verdict::Final));
        assert_eq!(verdict(403, false, false), Verdict::Refused);
        for status in [101, 200, 204, 301, 307, 400, 405, 407, 426] {
            assert_eq!(verdict(status, false, false), Verdict::Refused, "{status}");
        }
    }

    #[test]
    fn all_transports_are_asked_within_three_seconds() {
        for is_remembered in [false, true] {
            let asked: Duration = (1..Way::ALL.len()).map(|attempts| patience(is_remembered, attempts)).sum();
            assert!(asked < Duration::from_millis(2500), "{asked:?}");
        }
    }
}
