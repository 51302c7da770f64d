//! The schemas of the API's answers, as one document.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{
    answers::{ConfigAnswer, Failure, Log, RequestAnswer, Requests, Services, Status, TunnelAnswer, Tunnels},
    feed::{Change, Snapshot},
    open::{OpenAnswer, OpenRequest},
    replay::{RecordRequest, ReplayRequest},
    ui::UiAnswer,
    unlock::{UnlockAnswer, UnlockRequest},
};

/// Returns a document (JSON Schema 2020-12) with the schema of each answer in `$defs`, by the last word of its path.
/// `open-request` is the body of `POST /api/v1/open`; `tunnel` and `request` are the answers for a single one; `snapshot` and
/// `change` are the events; `error` is every answer with a status other than 2xx.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut answers: Vec<(&str, Value)> = Vec::new();
    macro_rules! answer {
        ($($name:literal: $type:ty),* $(,)?) => {
            $(answers.push(($name, <$type as JsonSchema>::json_schema(&mut generator).to_value()));)*
        };
    }
    answer! {
        "status": Status,
        "services": Services,
        "tunnels": Tunnels,
        "tunnel": TunnelAnswer,
        "requests": Requests,
        "request": RequestAnswer,
        "replay-request": ReplayRequest,
        "record-request": RecordRequest,
        "config": ConfigAnswer,
        "log": Log,
        "ui": UiAnswer,
        "unlock": UnlockAnswer,
        "unlock-request": UnlockRequest,
        "open": OpenAnswer,
        "open-request": OpenRequest,
        "snapshot": Snapshot,
        "change": Change,
        "error": Failure,
    }
    let mut definitions = generator.take_definitions(true);
    for (name, schema) in answers {
        definitions.insert(name.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The API of adit, version 1",
        "$defs": definitions,
    })
}
