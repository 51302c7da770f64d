//! What the suite shares: the app in-process, clients, waiting for a condition.
