use super::*;
use crate::demo::{objects, tasks::Tasks};

fn world() -> World {
    let world = World::new(Tasks::default());
    objects::create(&world);
    world
}

fn names(world: &World, app: &str) -> Vec<String> {
    let (pods, _) = world.list("pods", None);
    let of_app = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == app);
    of_app.map(|pod| text(&pod["metadata"]["name"]).to_owned()).collect()
}

fn ready(world: &World, namespace: &str, service: &str) -> Vec<String> {
    let (slices, _) = world.list("endpointslices", Some(namespace));
    let slice =
        slices.iter().find(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service).unwrap();
    let ready =
        slice["endpoints"].as_array().unwrap().iter().filter(|endpoint| endpoint["conditions"]["ready"] == true);
    ready.map(|endpoint| text(&endpoint["targetRef"]["name"]).to_owned()).collect()
}

/// Makes everything that is due later due now.
fn pass_time(world: &World) {
    world.change(|state| {
        state.due.values_mut().for_each(|due| *due = Instant::now());
        settle(state)
    });
}

#[tokio::test]
async fn a_world_at_rest_does_not_change() {
    let world = world();
    let (_, version) = world.list("pods", None);
    assert_eq!(world.change(settle), None);
    assert_eq!(world.list("pods", None).1, version);
    assert_eq!(ready(&world, "shop", "web"), ["web-6d5f-a1", "web-6d5f-b2"]);
    assert!(ready(&world, "shop", "broken").is_empty());
    let (slices, _) = world.list("endpointslices", Some("shop"));
    let tools =
        slices.iter().find(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "tools").unwrap();
    assert_eq!(
        (&tools["ports"][1]["port"], &tools["ports"][1]["appProtocol"]),
        (&json!(8081), &json!("kubernetes.io/h2c"))
    );
}

#[tokio::test]
async fn a_deployment_replaces_a_pod_while_it_terminates() {
    let world = world();
    world.terminate_pod("shop", "web-6d5f-a1", None).unwrap();
    assert_eq!(names(&world, "web").len(), 3, "the new one is made at once");
    assert_eq!(ready(&world, "shop", "web"), ["web-6d5f-b2"], "the old one is terminating, the new one not ready");
    pass_time(&world);
    assert_eq!(names(&world, "web").len(), 2);
    assert_eq!(ready(&world, "shop", "web").len(), 2);
    assert!(!names(&world, "web").contains(&"web-6d5f-a1".to_owned()));
}

#[tokio::test]
async fn a_stateful_set_waits_and_reuses_the_name() {
    let world = world();
    let before = world.get("pods", "data", "postgres-0").unwrap();
    world.terminate_pod("data", "postgres-0", None).unwrap();
    assert_eq!(names(&world, "postgres"), ["postgres-0", "postgres-1"]);
    pass_time(&world);
    let after = world.get("pods", "data", "postgres-0").unwrap();
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(ready(&world, "data", "postgres"), ["postgres-1"], "the new one starts");
    pass_time(&world);
    assert_eq!(ready(&world, "data", "postgres"), ["postgres-0", "postgres-1"]);
}

#[tokio::test]
async fn a_pod_that_is_replaced_by_name_is_ready_at_once() {
    let world = world();
    let old = text(&world.get("pods", "shop", "web-6d5f-a1").unwrap()["metadata"]["uid"]).to_owned();
    let process = world.process(&old).unwrap();
    assert!(world.delete_pod("shop", "web-6d5f-a1", Some("web-6d5f-c3")));
    assert!(!world.delete_pod("shop", "web-6d5f-a1", None));
    assert_eq!(ready(&world, "shop", "web"), ["web-6d5f-b2", "web-6d5f-c3"]);
    assert!(process.tasks.has_ended() && world.process(&old).is_none());
}

#[tokio::test]
async fn a_restarted_container_is_the_same_pod() {
    let world = world();
    let uid = text(&world.get("pods", "shop", "tools-0").unwrap()["metadata"]["uid"]).to_owned();
    assert!(world.restart_container("shop", "tools-0"));
    assert!(world.process(&uid).is_none() && ready(&world, "shop", "tools").is_empty());
    pass_time(&world);
    let pod = world.get("pods", "shop", "tools-0").unwrap();
    assert_eq!(
        (text(&pod["metadata"]["uid"]), &pod["status"]["containerStatuses"][0]["restartCount"]),
        (uid.as_str(), &json!(1))
    );
    assert!(world.process(&uid).is_some());
    assert_eq!(ready(&world, "shop", "tools"), ["tools-0"]);
}

#[tokio::test]
async fn scaling_adds_and_ends_pods() {
    let world = world();
    world.scale("deployments", "shop", "web", 4).unwrap();
    pass_time(&world);
    assert_eq!(ready(&world, "shop", "web").len(), 4);
    world.scale("statefulsets", "data", "postgres", 1).unwrap();
    assert_eq!(ready(&world, "data", "postgres"), ["postgres-0"]);
    pass_time(&world);
    assert_eq!(names(&world, "postgres"), ["postgres-0"]);
    assert_eq!(world.get("deployments", "shop", "web").unwrap()["status"]["readyReplicas"], 4);
    assert!(world.scale("deployments", "shop", "none", 1).is_none());
}
