//! Lists of objects, and watches.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Body, Resource, ok, query, respond, status, text};
use crate::demo::{Node, kinds::Kind, selector::Selector, table::table, world::Change};

fn selector(request: &Request<Incoming>) -> Result<Selector, Box<Response<Body>>> {
    let (labels, fields) = (query(request, "labelSelector"), query(request, "fieldSelector"));
    Selector::parse(labels.as_deref(), fields.as_deref())
        .map_err(|error| Box::new(status(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string())))
}

pub fn list(resource: &Resource<'_>, request: &Request<Incoming>, node: &Node) -> Response<Body> {
    let selector = match selector(request) {
        Ok(selector) => selector,
        Err(response) => return *response,
    };
    let (mut objects, version) = node.world.list(resource.kind.plural, resource.namespace);
    objects.retain(|object| selector.matches(object));
    let version = version.to_string();
    if wants_table(request.headers()) {
        return ok(&table(resource.kind, objects.iter().map(|object| &**object), &version));
    }
    let kind = format!("{}List", resource.kind.name);
    let objects: Vec<&Value> = objects.iter().map(|object| &**object).collect();
    ok(
        &json!({"kind": kind, "apiVersion": resource.kind.api_version(), "metadata": {"resourceVersion": version}, "items": objects}),
    )
}

/// Streams the changes since a version. Without a version, the existing objects come first.
pub fn watch(resource: &Resource<'_>, request: &Request<Incoming>, node: &Arc<Node>) -> Response<Body> {
    let selector = match selector(request) {
        Ok(selector) => selector,
        Err(response) => return *response,
    };
    let (plural, namespace) = (resource.kind.plural, resource.namespace.map(str::to_owned));
    let from = query(request, "resourceVersion")
        .and_then(|version| version.parse::<u64>().ok())
        .filter(|version| *version > 0);
    let (first, from) = match from {
        Some(version) => (Vec::new(), version),
        None => node.world.list(plural, namespace.as_deref()),
    };
    let as_table = wants_table(request.headers());
    let kind = resource.kind;
    let line = move |event: &str, object: &Value| {
        let object =
            if as_table { table(kind, [object], text(&object["metadata"]["resourceVersion"])) } else { object.clone() };
        Bytes::from(format!("{}\n", json!({"type": event, "object": object})))
    };
    let mut before: Vec<Bytes> =
        first.iter().filter(|object| selector.matches(object)).map(|object| line("ADDED", object)).collect();
    if query(request, "sendInitialEvents").as_deref() == Some("true") {
        // Marks the end of the initial objects (KEP-3157).
        let metadata =
            json!({"resourceVersion": from.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
        before.push(bookmark(kind, &metadata));
    }
    let bookmarks = !as_table && query(request, "allowWatchBookmarks").as_deref() == Some("true");
    let later = changes(node.clone(), from).map(move |changes| match changes {
        Some(changes) => {
            let is_ours = |change: &&Change| {
                let object = change.after.as_ref().or(change.before.as_ref());
                change.plural == plural
                    && object.is_some_and(|object| namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == namespace.as_str()))
            };
            let events: Vec<Bytes> = changes
                .iter()
                .filter(is_ours)
                .filter_map(|change| event(change, &selector).map(|(event, object)| line(event, object)))
                .collect();
            match (events.is_empty() && bookmarks, changes.last()) {
                // None of the changes is for this watch, so only report the version that it has reached.
                (true, Some(last)) => bookmark(kind, &json!({"resourceVersion": last.version.to_string()})),
                _ => events.concat().into(),
            }
        }
        None => Bytes::from(format!(
            "{}\n",
            json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"}})
        )),
    });
    let seconds = query(request, "timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(3600);
    let of_watch = node.clone();
    let end = async move {
        tokio::select! {
            () = sleep(Duration::from_secs(seconds)) => {}
            () = of_watch.faults.watches_are_ended() => {}
        }
    };
    let lines = futures::stream::iter(before).chain(later).filter(|line| std::future::ready(!line.is_empty()));
    let lines = lines.take_until(Box::pin(end)).map(|line| Ok(Frame::data(line)));
    respond(StatusCode::OK, "application/json", StreamBody::new(lines).boxed_unsync())
}

fn bookmark(kind: &Kind, metadata: &Value) -> Bytes {
    let object = json!({"kind": kind.name, "apiVersion": kind.api_version(), "metadata": metadata});
    Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
}

/// Returns the event for clients that watch with a selector: an object that no longer matches counts as deleted.
fn event<'c>(change: &'c Change, selector: &Selector) -> Option<(&'static str, &'c Value)> {
    let matching = |object: &'c Option<Arc<Value>>| object.as_deref().filter(|object| selector.matches(object));
    match (matching(&change.before), matching(&change.after)) {
        (None, Some(after)) => Some(("ADDED", after)),
        (Some(_), Some(after)) => Some(("MODIFIED", after)),
        (Some(before), None) => Some(("DELETED", change.after.as_deref().unwrap_or(before))),
        (None, None) => None,
    }
}

/// Streams the changes after `from`. Yields `None` and ends if they are no longer in the history.
fn changes(node: Arc<Node>, from: u64) -> impl Stream<Item = Option<Vec<Change>>> {
    let versions = node.world.versions();
    futures::stream::unfold(Some((node, versions, from)), |state| async move {
        let (node, mut versions, from) = state?;
        loop {
            versions.mark_unchanged();
            match node.world.changes_after(from) {
                Err(_) => return Some((None, None)),
                Ok((changes, next)) if !changes.is_empty() => {
                    return Some((Some(changes), Some((node, versions, next))));
                }
                Ok(_) => versions.changed().await.ok()?,
            }
        }
    })
}

pub fn wants_table(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("as=Table"))
}
