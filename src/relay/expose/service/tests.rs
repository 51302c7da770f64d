use super::*;

fn name() -> ServiceName {
    ServiceName { namespace: "shop".into(), name: "web".into() }
}

fn service(ports: Value) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}, "annotations": {"a": "b"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"], "ports": ports}
    })
}

fn two_ports() -> Value {
    json!([
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30080},
        {"name": "alt", "port": 81, "protocol": "TCP", "targetPort": 8081, "appProtocol": "kubernetes.io/h2c"},
        {"name": "dns", "port": 81, "protocol": "UDP", "targetPort": 53}
    ])
}

fn holders(ports: &[u16]) -> BTreeMap<u16, Holder> {
    let holder = |port: &u16| {
        (
            *port,
            Holder { owner: format!("owner of {port}"), since: "2026-01-02T03:04:05Z".into(), personal: Vec::new() },
        )
    };
    ports.iter().map(holder).collect()
}

/// Applies a change like the API server (RFC 7386; empty maps are not stored).
fn applied(service: &Value, change: &Change) -> Option<Value> {
    fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else { return *target = patch.clone() };
        for (key, value) in patch {
            match value {
                Value::Null => drop(target.as_object_mut().map(|target| target.remove(key))),
                value => merge(&mut target[key.as_str()], value),
            }
        }
    }
    let mut service = service.clone();
    match change {
        Change::Nothing => {}
        Change::Delete => return None,
        Change::Patch(patch) => merge(&mut service, patch),
    }
    for map in ["labels", "annotations"] {
        if service["metadata"][map] == json!({}) {
            service["metadata"].as_object_mut().unwrap().remove(map);
        }
    }
    Some(service)
}

/// Takes over these ports of a Service, as a step does.
fn brought(service: &Value, relay: &str, ports: &[u16]) -> Option<Value> {
    let before = takeover(service, &name(), None).unwrap();
    let after = (!ports.is_empty()).then(|| plan(service, before.as_ref(), relay, &holders(ports)));
    let after = applied(service, &change(service, before.as_ref(), after.as_ref()))?;
    let before = takeover(&after, &name(), None).unwrap();
    let same = (!ports.is_empty()).then(|| plan(&after, before.as_ref(), relay, &holders(ports)));
    assert_eq!(change(&after, before.as_ref(), same.as_ref()), Change::Nothing, "a second step has nothing to do");
    Some(after)
}

#[test]
fn only_the_target_of_the_port_that_was_asked_for_changes() {
    let before = service(two_ports());
    let taken = brought(&before, "r/1/u/s", &[80]).unwrap();
    let mut wanted = two_ports();
    wanted[0]["targetPort"] = json!("adit-80");
    assert_eq!(taken["spec"]["ports"], wanted);
    assert_eq!(taken["metadata"]["labels"], json!({"app": "web", EXPOSED: "true"}));
    let said = takeover(&taken, &name(), None).unwrap().unwrap();
    assert_eq!((said.relay.as_str(), said.ports[0].target_port.clone()), ("r/1/u/s", json!("http")));
    assert_eq!(taken_ports(&taken, &said), BTreeSet::from([80]));
    let mut same = taken.clone();
    same["spec"]["ports"] = two_ports();
    same["metadata"] = before["metadata"].clone();
    assert_eq!(same, before, "nothing else");
}

#[test]
fn any_order_of_takeovers_by_any_relays_ends_where_it_began() {
    let without_target = json!([{"port": 80, "protocol": "TCP"}, {"name": "x", "port": 81}]);
    let mut bare = service(two_ports());
    for map in ["labels", "annotations"] {
        bare["metadata"].as_object_mut().unwrap().remove(map);
    }
    let mut random = 7u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for original in [service(two_ports()), service(without_target), bare] {
        for _ in 0..200 {
            let mut now = original.clone();
            for _ in 0..next(6) {
                let ports: &[u16] = [&[][..], &[80], &[81], &[80, 81]][next(4) as usize];
                now = brought(&now, ["a/1/u/s", "b/2/u/s"][next(2) as usize], ports).unwrap();
                assert_eq!(now["spec"]["selector"], original["spec"]["selector"]);
            }
            assert_eq!(brought(&now, "c/3/u/s", &[]).unwrap(), original);
        }
    }
}

#[test]
fn a_service_that_was_created_is_deleted_unless_somebody_has_made_it_theirs() {
    let before = Takeover { relay: "r/1/u/s".into(), created: true, ports: Vec::new() };
    let first = plan(&Value::Null, Some(&before), "r/1/u/s", &holders(&[80]));
    let created = create(&name(), json!([]), &first);
    assert_eq!(
        taken_names(&created, &holders(&[80, 443]), true),
        BTreeMap::from([(80, json!({"name": "adit-80"})), (443, json!({"name": "adit-443"}))])
    );
    let two = brought(&created, "r/1/u/s", &[80, 443]).unwrap();
    assert_eq!(two["spec"]["ports"].as_array().unwrap().len(), 2);
    let one = brought(&two, "r/1/u/s", &[443]).unwrap();
    assert_eq!(one["spec"]["ports"], json!([{"name": "adit-443", "port": 443, "protocol": "TCP", "targetPort": 443}]));
    assert_eq!(brought(&one, "r/1/u/s", &[]), None);

    let mut theirs = one;
    theirs["spec"]["selector"] = json!({"app": "web"});
    theirs["spec"]["ports"] = json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": "https"}]);
    theirs["metadata"]["labels"]["app"] = json!("web");
    let said = takeover(&theirs, &name(), None).unwrap();
    assert!(undone(&theirs, said.as_ref(), None, 443).unwrap().starts_with("was given a selector"));
    let left = brought(&theirs, "r/1/u/s", &[]).unwrap();
    assert_eq!(left["spec"], theirs["spec"]);
    assert_eq!(
        left["metadata"],
        json!({"namespace": "shop", "name": "web", "ownerReferences": [], "labels": {"app": "web"}})
    );
    let mut labelled = two;
    labelled["metadata"]["labels"]["app"] = json!("web");
    let left = brought(&labelled, "r/1/u/s", &[]).unwrap();
    assert_eq!(left["spec"], labelled["spec"], "a Service cannot be without a port");
    // A Service of somebody else keeps its own labels.
    let mut before = service(two_ports());
    before["metadata"]["labels"][MANAGED_BY] = json!("adit");
    let back = brought(&brought(&before, "r/1/u/s", &[80]).unwrap(), "r/1/u/s", &[]).unwrap();
    assert_eq!(back, before);
}

#[test]
fn what_somebody_changes_meanwhile_is_theirs() {
    let before = service(two_ports());
    let mut taken = brought(&before, "r/1/u/s", &[80, 81]).unwrap();
    // The port gets another number, and there is a new port.
    taken["spec"]["ports"][0]["port"] = json!(8080);
    taken["spec"]["ports"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "new", "port": 90, "protocol": "TCP", "targetPort": 90}));
    // The other one is reset.
    taken["spec"]["ports"][1]["targetPort"] = json!(9999);
    let said = takeover(&taken, &name(), None).unwrap().unwrap();
    assert!(taken_ports(&taken, &said).is_empty(), "nobody reaches the laptop at 80");
    let back = brought(&taken, "r/1/u/s", &[]).unwrap();
    let mut wanted = two_ports();
    wanted[0]["port"] = json!(8080);
    wanted[1]["targetPort"] = json!(9999);
    wanted.as_array_mut().unwrap().push(json!({"name": "new", "port": 90, "protocol": "TCP", "targetPort": 90}));
    assert_eq!(back["spec"]["ports"], wanted);
    assert_eq!(back["metadata"], before["metadata"]);
}

#[test]
fn without_its_annotation_a_service_is_put_back_from_its_lease() {
    let before = service(two_ports());
    let mut taken = brought(&before, "r/1/u/s", &[80]).unwrap();
    let kept = takeover(&taken, &name(), None).unwrap().unwrap();
    for damage in [json!("{\"relay\":"), Value::Null] {
        taken["metadata"]["annotations"][TAKEOVER] = damage;
        let said = takeover(&taken, &name(), Some(&kept)).unwrap();
        let back = applied(&taken, &change(&taken, said.as_ref(), None)).unwrap();
        assert_eq!(back["spec"], before["spec"]);
    }
    taken["metadata"]["annotations"][TAKEOVER] = json!("{}");
    assert!(matches!(takeover(&taken, &name(), None), Err(Refusal::Damaged { .. })));
}

#[test]
fn ports_that_change_their_numbers_keep_their_own_targets() {
    let before = service(two_ports());
    let swapped = |service: &Value| {
        let mut service = service.clone();
        service["spec"]["ports"][0]["port"] = json!(81);
        service["spec"]["ports"][1]["port"] = json!(80);
        service
    };
    for taken in [&[80][..], &[81], &[80, 81]] {
        let now = swapped(&brought(&before, "r/1/u/s", taken).unwrap());
        assert_eq!(brought(&now, "r/1/u/s", &[]).unwrap(), swapped(&before), "{taken:?}");
        // The relay keeps its ports or gets others, and then ends.
        for next in [&[80][..], &[81], &[80, 81]] {
            let later = brought(&now, "s/2/u/s", next).unwrap();
            assert_eq!(brought(&later, "s/2/u/s", &[]).unwrap(), swapped(&before), "{taken:?}, then {next:?}");
        }
    }
}

#[test]
fn a_port_whose_original_is_lost_is_damage() {
    let before = service(two_ports());
    let taken = brought(&before, "r/1/u/s", &[80, 81]).unwrap();
    let kept = takeover(&taken, &name(), None).unwrap().unwrap();
    let mut lost = taken.clone();
    lost["metadata"]["annotations"].as_object_mut().unwrap().remove(TAKEOVER);
    let refusal = takeover(&lost, &name(), None).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "port 80 of Service shop/web has targetPort adit-80, and the record of its original is gone (annotation adit/takeover, Lease \
         adit-web): set it by hand, 'kubectl -n shop edit service web'"
    );
    // One record may have entries that the other lacks.
    let only = |port: u16| Takeover {
        ports: kept.ports.iter().filter(|taken| taken.port == port).cloned().collect(),
        ..kept.clone()
    };
    assert!(matches!(takeover(&lost, &name(), Some(&only(80))), Err(Refusal::NoRecord { port: 81, .. })));
    lost["metadata"]["annotations"][TAKEOVER] = json!(json!(only(81)).to_string());
    let said = takeover(&lost, &name(), Some(&only(80))).unwrap();
    let back = applied(&lost, &change(&lost, said.as_ref(), None)).unwrap();
    assert_eq!(back, before);
    // After the port is fixed by hand, only the label is left.
    let mut by_hand = lost;
    by_hand["metadata"]["annotations"].as_object_mut().unwrap().remove(TAKEOVER);
    by_hand["spec"] = before["spec"].clone();
    assert_eq!(brought(&by_hand, "r/1/u/s", &[]).unwrap(), before);
}

#[test]
fn it_is_known_who_has_changed_a_port_back() {
    let before = service(two_ports());
    let taken = brought(&before, "r/1/u/s", &[80]).unwrap();
    let said = takeover(&taken, &name(), None).unwrap();
    assert_eq!(undone(&taken, said.as_ref(), None, 80), None);
    let mut changed = taken.clone();
    changed["spec"]["ports"][0]["targetPort"] = json!("http");
    assert_eq!(undone(&changed, said.as_ref(), None, 80).unwrap(), "was changed back");
    changed["metadata"]["managedFields"] = json!([
        {"manager": "kubectl-create", "time": "2026-01-01T00:00:00Z"},
        {"manager": "argocd-controller", "time": "2026-01-02T00:00:00Z"},
        {"manager": "adit", "time": "2026-01-03T00:00:00Z"},
        {"manager": "cloud-controller", "time": "2026-01-03T00:00:00Z", "subresource": "status"}
    ]);
    changed["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = json!("shop:/Service:shop/web");
    let reason = undone(&changed, said.as_ref(), None, 80).unwrap();
    assert!(reason.starts_with("was changed back by argocd-controller: pause Argo CD"), "{reason}");
    assert!(reason.contains("'argocd app set shop --sync-policy none'"), "{reason}");
    assert_eq!(undone(&before, None, None, 80).unwrap(), "was given back");
    let mut restored = before.clone();
    restored["metadata"]["managedFields"] = changed["metadata"]["managedFields"].clone();
    assert_eq!(undone(&restored, None, None, 80).unwrap(), "was restored with 'adit expose restore'");
    restored["metadata"]["managedFields"][0]["time"] = json!("2026-01-04T00:00:00Z");
    assert_eq!(undone(&restored, None, None, 80).unwrap(), "was given back by kubectl-create");
    // A manual restore removes adit from the owners: nobody else has written since the takeover.
    restored["metadata"]["managedFields"] = disowned(&restored).unwrap();
    for (since, reason) in [
        ("2026-01-03T00:00:00Z", "was given back by kubectl-create"),
        ("2026-01-04T00:00:00Z", "was restored with 'adit expose restore'"),
    ] {
        let mut known = said.clone().unwrap();
        known.ports[0].since = since.into();
        assert_eq!(undone(&restored, None, Some(&known), 80).unwrap(), reason);
    }
    // The port is not at the number that visitors use.
    let undone = |change: &dyn Fn(&mut Value)| {
        let mut changed = taken.clone();
        changed["metadata"]["managedFields"] = json!([{"manager": "kubectl-edit", "time": "2026-01-04T00:00:00Z"}]);
        change(&mut changed);
        undone(&changed, said.as_ref(), None, 80).unwrap()
    };
    let renumbered = undone(&|service| service["spec"]["ports"][0]["port"] = json!(8000));
    assert_eq!(renumbered, "was changed by kubectl-edit (port 80 is port 8000 now)");
    let removed = undone(&|service| drop(service["spec"]["ports"].as_array_mut().unwrap().remove(0)));
    assert_eq!(removed, "was changed by kubectl-edit (it has no port 80 any more)");
    let external = undone(&|service| service["spec"]["type"] = json!("ExternalName"));
    assert_eq!(external, "was changed to an ExternalName by kubectl-edit");
}

#[test]
fn what_cannot_be_put_back_or_would_not_work_is_refused() {
    let families = ["IPv4".to_owned()];
    let refused = |change: &dyn Fn(&mut Value), port: u16| {
        let mut service = service(two_ports());
        change(&mut service);
        check(&service, &name(), port, &families).err().map(|refusal| refusal.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&|_| {}, 80), "");
    assert_eq!(refused(&|_| {}, 81), "", "beside a UDP port of the same number");
    for (change, port, words) in [
        (&(|_: &mut Value| {}) as &dyn Fn(&mut Value), 82, "has no TCP port 82; it has 80, 81, 81/UDP"),
        (&|s| s["spec"]["type"] = json!("ExternalName"), 80, "is an ExternalName"),
        (&|s| s["spec"]["clusterIP"] = json!("None"), 80, "is headless"),
        (&|s| s["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]), 80, "has IPv6 addresses, and the relay has none"),
        (&|s| s["spec"]["internalTrafficPolicy"] = json!("Local"), 80, "internalTrafficPolicy Local"),
        (&|s| s["spec"]["externalTrafficPolicy"] = json!("Local"), 80, "externalTrafficPolicy Local"),
        (&|s| s["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), 80, "is being deleted"),
        (&|s| s["spec"]["ports"] = json!([{"port": 53, "protocol": "UDP"}]), 53, "has no TCP port 53; it has 53/UDP"),
    ] {
        let refusal = refused(change, port);
        assert!(refusal.contains(words) && refusal.contains("shop/web"), "{refusal}");
    }
}

#[test]
fn adit_leaves_the_owners_of_fields_to_the_others() {
    let owned_by = |owners: &[&str]| {
        let owners: Vec<Value> = owners.iter().map(|owner| json!({"manager": owner})).collect();
        json!({"metadata": {"managedFields": owners}})
    };
    let others = disowned(&owned_by(&["helm", "adit", "kubectl"]));
    assert_eq!(others, Some(json!([{"manager": "helm"}, {"manager": "kubectl"}])));
    for owners in [&["helm"][..], &["adit"], &[]] {
        assert_eq!(disowned(&owned_by(owners)), None, "{owners:?}");
    }
}
