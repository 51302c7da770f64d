//! Configuration files, from disk to message.

use std::{fs, path::Path};

use adit::config::validate;

#[test]
fn every_example_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut loaded = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            validate::load(&path).unwrap_or_else(|error| panic!("{error}"));
            loaded += 1;
        }
    }
    assert!(loaded >= 3);
}

#[test]
fn a_file_that_is_not_there_says_how_to_make_one() {
    let error = validate::load(Path::new("no/such/file.yaml")).unwrap_err();
    assert!(error.to_string().contains("no/such/file.yaml"));
    assert_eq!(error.problems[0].hint.as_deref(), Some("'adit init' writes one"));
}
