//! Checks whether browsers trust adit's certificates.

use super::report::{Check, Group, Status};
use crate::{
    cli::trust::{beyond, places},
    config::Config,
    trust::{
        self, Authority,
        stores::{self, State},
    },
};

const ID: &str = "local-ca";

pub fn checks(config: &Config) -> Vec<Check> {
    let check = |status, says: String| Check::new(ID, Group::Trust, status, says);
    let install = || Some("adit trust install".to_owned());
    let Some(folder) = trust::folder() else {
        return vec![check(Status::Skip, "https names in browsers (there is no home folder)".into())];
    };
    let authority = match Authority::load(&folder) {
        Ok(Some(authority)) => authority,
        Ok(None) => {
            let says =
                "https names in browsers: adit has no CA, so that browsers warn ('adit trust install' creates one)";
            return vec![check(Status::Skip, says.into())];
        }
        Err(error) => {
            let broken = check(Status::Fail, format!("the CA in {} cannot be used", folder.display()));
            let fix = broken.detail(Some(error.to_string()));
            return vec![fix.fix("replace it", install())];
        }
    };
    let mut found = vec![match authority.days_left() {
        None => check(Status::Fail, "the CA has expired".into()).fix("replace it", install()),
        Some(days) if !authority.serves(&[]) => {
            check(Status::Warn, format!("the CA expires in {days} days")).fix("replace it", install())
        }
        Some(days) => check(Status::Ok, format!("the CA is valid for {days} days")),
    }];
    let names = beyond(config);
    if !names.is_empty() {
        let says = format!("the CA does not cover {}", names.join(", "));
        found.push(check(Status::Warn, says).fix("add the names", install()));
    }
    let places = match places(&folder) {
        Ok(places) => places,
        Err(error) => return vec![check(Status::Skip, error.to_string())],
    };
    found.extend(stores::all(&places).iter().map(|store| match store.look(authority.root()) {
        State::Trusts => check(Status::Ok, format!("{} trusts the CA", store.name())),
        State::Lacks => check(Status::Warn, format!("{} does not trust the CA", store.name())).fix("add it", install()),
        State::NeedsRoot(command) => {
            let says = format!("{} does not trust the CA: programs that ask it refuse https to adit", store.name());
            check(Status::Warn, says).fix("add it as root", Some(command))
        }
        State::NeedsProgram(program) => check(Status::Warn, format!("{} was not checked: {program}", store.name())),
        State::Failed(error) => check(Status::Warn, format!("{} was not checked", store.name())).detail(Some(error)),
    }));
    found
}
