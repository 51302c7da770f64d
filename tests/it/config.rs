//! Configuration files, from the disk to the message.

use std::path::Path;

use adit::config::validate;

#[test]
fn a_file_that_is_not_there_says_how_to_make_one() {
    let error = validate::load(Path::new("no/such/file.yaml")).unwrap_err();
    assert!(error.to_string().contains("no/such/file.yaml"));
    assert_eq!(error.problems[0].hint.as_deref(), Some("adit init --config no/such/file.yaml"));
}
