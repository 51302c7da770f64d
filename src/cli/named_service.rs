//! A Service as a command-line argument.

use std::str::FromStr;

use crate::config::{InvalidValue, Label, Namespace};

/// `SERVICE[.NAMESPACE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    pub name: Label,
    /// `None`: the namespace of the command.
    pub namespace: Option<Namespace>,
}

impl FromStr for NamedService {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text.split_once('.') {
            Some((name, namespace)) => Ok(Self { name: name.parse()?, namespace: Some(namespace.parse()?) }),
            None => Ok(Self { name: text.parse()?, namespace: None }),
        }
    }
}
