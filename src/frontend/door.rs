//! Whether a listener is a forward proxy, and for whom.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{config::ContextName, wire::connect::Credentials};

/// The user name that means the current context where a password is needed: some clients send no password without a name.
pub const CURRENT: &str = "adit";

/// Role of a listener for clients of a forward proxy.
#[derive(Clone, Debug, Default)]
pub enum Door {
    /// It is no forward proxy.
    #[default]
    Closed,
    /// It serves every client. Its user name is the context.
    Open,
    /// It serves those that know the password, and nobody else, whatever they speak.
    Private(Password),
}

/// A password that can be compared and not shown.
#[derive(Clone)]
pub struct Password(Arc<[u8; 32]>);

/// A client has not given the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this port needs the password of its URL")]
pub struct NoPassword;

impl Password {
    pub fn new(password: &str) -> Self {
        Self(Arc::new(Sha256::digest(password).into()))
    }

    /// Compares digests: how long that takes tells nothing of the password.
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

    /// Returns the context that a client names. None: the current one.
    ///
    /// # Errors
    /// It has to give a password, and has not.
    pub fn context(&self, credentials: Option<&Credentials>) -> Result<Option<ContextName>, NoPassword> {
        // An empty name is none.
        let user = |credentials: &Credentials| credentials.user.parse().ok();
        match (self, credentials) {
            (Self::Closed | Self::Open, _) => Ok(credentials.and_then(user)),
            (Self::Private(password), Some(given)) if password.is(&given.password) => {
                Ok(user(given).filter(|user: &ContextName| user.as_str() != CURRENT))
            }
            (Self::Private(_), _) => Err(NoPassword),
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
        for wrong in [None, Some(of("prod", "")), Some(of("prod", "secret2")), Some(of("secret", "Secret"))] {
            assert_eq!(private.context(wrong.as_ref()), Err(NoPassword), "{wrong:?}");
        }
        assert!(!format!("{private:?}").contains("secret"));
    }
}
