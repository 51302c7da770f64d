//! Whether a listener is a forward proxy, and for which clients.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{config::ContextName, wire::connect::Credentials};

/// User name for the current context on a listener with a password: some clients send no password without a user name.
pub const CURRENT: &str = "adit";

/// Role of a listener for clients of a forward proxy.
#[derive(Clone, Debug, Default)]
pub enum Door {
    /// Not a forward proxy.
    #[default]
    Closed,
    /// Serves every client; the user name is the context.
    Open,
    /// Serves only clients that give the password, in every protocol.
    Private(Password),
}

/// Digest of a password, which can be compared but not printed.
#[derive(Clone)]
pub struct Password(Arc<[u8; 32]>);

/// Reasons not to serve a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("this port needs the password of its URL")]
    NoPassword,
    /// It would forge lines of a log.
    #[error("the user name has control characters: it has to be a context")]
    UserName,
}

impl Password {
    pub fn new(password: &str) -> Self {
        Self(Arc::new(Sha256::digest(password).into()))
    }

    /// Compares digests, so that the time taken reveals nothing about the password.
    fn is(&self, given: &[u8]) -> bool {
        *self.0 == <[u8; 32]>::from(Sha256::digest(given))
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Door {
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    pub fn is_private(&self) -> bool {
        matches!(self, Self::Private(_))
    }

    /// Returns the context that a client names. `None`: the current one.
    ///
    /// # Errors
    /// The listener is a forward proxy that does not serve this client.
    pub fn context(&self, credentials: Option<&Credentials>) -> Result<Option<ContextName>, NotAdmitted> {
        if !self.is_closed() && credentials.is_some_and(|credentials| credentials.user.contains(char::is_control)) {
            return Err(NotAdmitted::UserName);
        }
        // An empty user name does not parse: it means the current context.
        let user = |credentials: &Credentials| credentials.user.parse().ok();
        match (self, credentials) {
            (Self::Closed | Self::Open, _) => Ok(credentials.and_then(user)),
            (Self::Private(password), Some(given)) if password.is(&given.password) => {
                Ok(user(given).filter(|user: &ContextName| user.as_str() != CURRENT))
            }
            (Self::Private(_), _) => Err(NotAdmitted::NoPassword),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_door_opens_to_its_password_alone() {
        let of = |user: &str, password: &str| Credentials { user: user.to_owned(), password: password.into() };
        let (open, private) = (Door::Open, Door::Private(Password::new("secret")));
        assert_eq!(open.context(None), Ok(None));
        assert_eq!(open.context(Some(&of("prod", "x"))), Ok(Some("prod".parse().unwrap())));
        assert_eq!(open.context(Some(&of("", ""))), Ok(None));
        assert_eq!(private.context(Some(&of("prod", "secret"))), Ok(Some("prod".parse().unwrap())));
        assert_eq!(private.context(Some(&of(CURRENT, "secret"))), Ok(None));
        assert_eq!(open.context(Some(&of("x\n2026-12-01 WARN forged", ""))), Err(NotAdmitted::UserName));
        for wrong in [None, Some(of("prod", "")), Some(of("prod", "secret2")), Some(of("secret", "Secret"))] {
            assert_eq!(private.context(wrong.as_ref()), Err(NotAdmitted::NoPassword), "{wrong:?}");
        }
        assert!(!format!("{private:?}").contains("secret"));
    }
}
