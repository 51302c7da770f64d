//! Bad files in, messages out.

use super::*;

fn load(text: &str) -> Result<Config, LoadError> {
    parse(Path::new("config.yaml"), text.as_bytes())
}

fn problems(text: &str) -> Vec<String> {
    load(text).expect_err("problems").problems.iter().map(Problem::line).collect()
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "---\n", "# nothing\n", "http:\ntcp:\n  k8s:\n    routes:\n    jump:\n"] {
        let config = load(text).unwrap();
        assert_eq!(
            config.http.listen,
            ["127.0.0.1:8989".parse().unwrap(), "[::1]:8989".parse::<SocketAddr>().unwrap()]
        );
        assert_eq!(config.http.idle_timeout, Duration::from_secs(3600));
    }
}

#[test]
fn a_list_of_addresses_may_name_both_loopbacks() {
    let both = ["127.0.0.1:1", "[::1]:1"].map(|address| address.parse::<SocketAddr>().unwrap());
    for list in ["127.0.0.1:1, '[::1]:1'", "'[::1]:1', 127.0.0.1:1", "localhost:1, '[::1]:1'"] {
        let mut listen = load(&format!("http: {{listen: [{list}]}}\n")).unwrap().http.listen;
        listen.sort();
        assert_eq!(listen, both, "{list}");
    }
    for list in
        ["127.0.0.1:1, 127.0.0.1:1", "127.0.0.1:1, localhost:1", "'[::1]:1', '[::1]:1'", "127.0.0.1:1, 0.0.0.0:1"]
    {
        let found = problems(&format!("http: {{listen: [{list}]}}\n"));
        assert!(found.len() == 1 && found[0].contains("is in the list already"), "{list}: {found:?}");
    }
}

#[test]
fn workers_are_at_least_one_thread() {
    assert_eq!(load("workers: 3\n").unwrap().workers.map(std::num::NonZero::get), Some(3));
    assert_eq!(load("").unwrap().workers, None);
    for wrong in ["0", "-1", "1025", "two", "'3'", "[3]", "1.5"] {
        let problems = problems(&format!("workers: {wrong}\n"));
        assert!(problems.len() == 1 && problems[0].contains("1-1024"), "{wrong}: {problems:?}");
    }
}

#[test]
fn an_autotunnel_file_is_read_with_the_same_keys() {
    let config = load(
        "apiVersion: autotunnel/v1\nverbose: true\nauto_reload_config: false\nexec_path: [/custom/bin]\n\
         http:\n  listen: \":8989\"\n  idle_timeout: 90m\n  k8s:\n    kubeconfig: /a:/b\n    dynamic_host: k8s.local.gd\n    routes:\n\
         \x20     Argocd.localhost: {context: prod, namespace: argocd, service: argocd-server, port: 443, scheme: https}\n\
         \x20     debug.localhost: {context: microk8s, namespace: default, pod: my-debug-pod, port: \"8080\"}\n\
         tcp:\n  idle_timeout: 30m\n  k8s:\n    routes:\n      5432: {context: prod, namespace: db, service: postgresql, port: 5432}\n    jump:\n\
         \x20     3306: {context: eks, namespace: default, via: {service: backend-api}, target: {host: mydb.rds.amazonaws.com, port: 3306}, method: socat}\n",
    )
    .unwrap();
    assert!(config.verbose && !config.auto_reload);
    assert_eq!(config.http.listen[0], "0.0.0.0:8989".parse().unwrap());
    let argocd = &config.http.routes["argocd.localhost"];
    assert_eq!(
        (argocd.options.scheme, &argocd.destination.port),
        (Some(Scheme::Https), &PortRef::number(443).unwrap())
    );
    assert_eq!(
        config.http.routes["debug.localhost"].destination.workload,
        Workload::Pod("my-debug-pod".parse().unwrap())
    );
    assert_eq!(config.http.kubeconfig.0, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(config.tcp.routes[&"127.0.0.1:5432".parse().unwrap()].idle_timeout, Duration::from_secs(1800));
    let jump = &config.tcp.routes[&"127.0.0.1:3306".parse().unwrap()].destination.jump;
    assert_eq!(jump.as_ref().unwrap().target.host, "mydb.rds.amazonaws.com");
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let text = "http:\n  listn: 127.0.0.1:1\n  listen: \"127.0.0.1\"\n  idle_timeout: soon\n  k8s:\n    routes:\n      argocd.localhost:\n        service: a\n        port: 70000\n\
                \x20     both.localhost: {service: a, pod: b}\n      none.localhost: {port: 80}\n      \"x:80\": {service: a}\ntcp: [1]\nfoo: 1\n";
    assert_eq!(
        problems(text),
        [
            "http.listn: unknown key (line 2, column 3)",
            "http.listen: expected an address with a port, found \"127.0.0.1\" (line 3, column 11)",
            "http.idle_timeout: expected a duration, found \"soon\" (line 4, column 17)",
            "http.k8s.routes.\"argocd.localhost\".port: expected 1-65535, found \"70000\" (line 9, column 15)",
            "http.k8s.routes.\"both.localhost\": both service and pod are given (line 10, column 23)",
            "http.k8s.routes.\"none.localhost\": neither service nor pod is given (line 11, column 23)",
            "http.k8s.routes.x:80: expected a hostname, found \"x:80\" (line 12, column 7)",
            "tcp: expected keys and values, found a list (line 13, column 6)",
            "foo: unknown key (line 14, column 1)",
        ]
    );
}

#[test]
fn a_key_that_would_mean_nothing_is_a_mistake() {
    let route = |keys: &str| problems(&format!("http: {{k8s: {{routes: {{a.test: {{{keys}}}}}}}}}\n"));
    let at = |key: &str| format!("http.k8s.routes.\"a.test\".{key}: this key has no meaning here");
    assert!(route("service: a, method: nc")[0].starts_with(&at("method")));
    for key in ["service: b", "pod: b", "port: 80"] {
        let found = route(&format!("via: {{pod: p}}, target: {{host: h, port: 1}}, {key}"));
        let key = key.split(':').next().unwrap();
        assert!(found.len() == 1 && found[0].starts_with(&at(key)), "{found:?}");
    }
}

#[test]
fn clashing_ports_are_told() {
    let text = "http: {listen: \"127.0.0.1:5432\"}\ntcp:\n  k8s:\n    routes:\n      5432: {service: a}\n      6379: {service: a}\n    jump:\n      6379: {via: {pod: p}, target: {host: h, port: 1}}\n      0: {via: {pod: p}, target: {host: h, port: 1}}\n";
    assert_eq!(
        problems(text),
        [
            "tcp.k8s.routes.5432: port 5432 is used by http.listen already (line 5, column 7)",
            "tcp.k8s.jump.6379: port 6379 is used by tcp.k8s.routes.6379 already (line 8, column 7)",
            "tcp.k8s.jump.0: expected 1-65535, found \"0\" (line 9, column 7)",
        ]
    );
}

#[test]
fn all_listeners_share_one_list_of_ports() {
    let text =
        "http: {listen: \"127.0.0.1:5432\"}\nsni: {listen: \"127.0.0.1:5432\"}\nadmin: {listen: \"127.0.0.1:5432\"}\n";
    assert_eq!(
        problems(text),
        [
            "sni.listen: port 5432 is used by http.listen already (line 2, column 15)",
            "admin.listen: port 5432 is used by http.listen already (line 3, column 17)",
        ]
    );
    assert!(load("http: {listen: \"127.0.0.1:0\"}\nsni: {listen: \"127.0.0.1:0\"}\n").is_ok(), "0 is any");
}

#[test]
fn tcp_routes_listen_on_both_loopbacks_unless_they_say_where() {
    let config = load(
        "tcp:\n  k8s:\n    routes:\n      1: {service: a}\n      2: {service: a, listen: 127.0.0.1}\n      3: {service: a, listen: localhost}\n      4: {service: a, listen: \"::1\"}\n\
         \x20     5: {service: a}\n    jump:\n      4: {via: {pod: p}, target: {host: h, port: 1}}\n      6: {via: {pod: p}, target: {host: h, port: 1}}\nadmin: {listen: \"[::1]:5\"}\n",
    )
    .unwrap();
    let listens = |port: u16| {
        let of_port = config.tcp.routes.iter().filter(|(address, _)| address.port() == port);
        of_port.flat_map(|(address, route)| [Some(*address), route.also]).flatten().collect::<Vec<_>>()
    };
    let [both, one]: [fn(u16) -> Vec<SocketAddr>; 2] =
        [defaults::loopback, |port| defaults::loopback(port)[..1].to_vec()];
    assert_eq!([1, 2, 3].map(listens), [both(1), one(2), both(3)]);
    assert_eq!(listens(4), both(4), "the jump is on 127.0.0.1 alone, as the route has the other one");
    assert_eq!([5, 6].map(listens), [one(5), both(6)], "admin.listen has [::1]:5");
    let (address, _) = config.tcp.route("[::1]:1".parse().unwrap()).unwrap();
    assert_eq!(address, "127.0.0.1:1".parse().unwrap());
    assert!(config.tcp.route("[::1]:2".parse().unwrap()).is_none());
}

#[test]
fn two_routes_for_one_host_are_a_mistake() {
    for file in [
        "http: {k8s: {routes: {A.test: {service: a}, a.test: {service: b}}}}\n",
        "sni: {listen: \"127.0.0.1:0\", routes: {a.test.: {k8s: {service: a}}, a.test: {k8s: {service: b}}}}\n",
    ] {
        let problems = problems(file);
        assert!(problems.len() == 1 && problems[0].contains("this host has a route already"), "{problems:?}");
    }
}

#[test]
fn aliases_of_contexts_stand_for_their_names() {
    let config = load("contexts:\n  prod: {name: \"arn:aws:eks:x\", namespace: shop, dynamic: deny}\ndefault_context: prod\nhttp: {k8s: {routes: {a.localhost: {context: prod, service: a}}}}\n").unwrap();
    assert_eq!(config.default_context, Some("arn:aws:eks:x".parse().unwrap()));
    assert_eq!(config.http.routes["a.localhost"].destination.context, Some("arn:aws:eks:x".parse().unwrap()));
    assert!(!config.contexts["prod"].dynamic);
    assert_eq!(problems("contexts: {Prod: {dynamic: maybe}}\n").len(), 3);
}

#[test]
fn a_snippet_shows_the_line_and_the_hint() {
    let shown = load("http:\n  listn: x\n").unwrap_err().snippets(false);
    assert!(shown.contains("listn: x") && shown.contains("did you mean listen?"), "{shown}");
}

#[test]
fn files_that_are_too_large_or_not_text_are_refused() {
    assert!(parse(Path::new("x"), &vec![b'#'; file::LARGEST + 1]).unwrap_err().to_string().contains("1 MiB"));
    assert!(parse(Path::new("x"), b"\xff\xfe").unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn a_fingerprint_is_a_whole_sha256() {
    let of =
        |fingerprint: &str| format!("local: [{{port: 1, to: relay.example.com, fingerprint: \"{fingerprint}\"}}]\n");
    let digits = "aB".repeat(32);
    let good = load(&of(&format!("sha256:{digits}"))).unwrap();
    assert_eq!(good.local[0].fingerprint.unwrap().to_string(), format!("sha256:{}", digits.to_lowercase()));
    for bad in
        ["", "sha256:", "sha256:...", &digits, &format!("sha256:{digits}0"), &format!("sha256:{}", "g".repeat(64))]
    {
        let found = problems(&of(bad));
        assert_eq!(found.len(), 1, "{bad:?}: {found:?}");
    }
}

#[test]
fn each_item_of_a_list_is_read_and_its_mistakes_have_its_index() {
    assert_eq!(
        problems(
            "exec_path: [a, \"\", [b]]\nlocal:\n  - {port: 3000}\n  - {port: 1, to: relay.test}\n  - {port: 0, to: r, host: \"\"}\n"
        ),
        [
            "exec_path[1]: expected a value, found \"\" (line 1, column 16)",
            "exec_path[2]: expected a value, found a list (line 1, column 20)",
            "local[0]: to is missing (line 3, column 5)",
            "local[2].port: expected 1-65535, found \"0\" (line 5, column 12)",
            "local[2].host: expected a value, found \"\" (line 5, column 28)",
        ]
    );
}

#[test]
fn a_half_of_a_pair_and_a_service_that_would_be_created_are_mistakes() {
    for (text, wanted) in [
        (
            "http: {k8s: {routes: {a.test: {service: a, client_cert: /c}}}}",
            "one of client_cert and client_key is given",
        ),
        ("sni: {listen: \"127.0.0.1:1\", cloudflared: {service_token_id_env: A}}", "one of service_token_id_env and"),
        (
            "tcp: {k8s: {jump: {1: {via: {service: a, create: {image: a}}, target: {host: h, port: 1}}}}}",
            "tcp.k8s.jump.1.via: create needs pod",
        ),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].contains(wanted), "{found:?}");
    }
}

#[test]
fn a_time_limit_of_zero_is_a_mistake() {
    for text in [
        "sni: {listen: \"127.0.0.1:1\", startup_timeout: 0}",
        "tcp: {k8s: {jump: {1: {via: {pod: a, create: {image: a, timeout: 0s}}, target: {host: h, port: 1}}}}}",
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].contains("a duration of more than 0"), "{found:?}");
    }
}

#[test]
fn check_tries_the_files_and_leaves_none_behind() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("empty.pem"), "").unwrap();
    let config = |audit: &str, ca: &str| {
        fs::write(
            at("config.yaml"),
            format!(
                "audit: {}\nhttp: {{k8s: {{kubeconfig: {}, routes: {{a.test: {{service: a, ca: {}, client_cert: {}, client_key: {}}}}}}}}}\n\
                 local: [{{port: 1, to: r, secret_file: {}}}]\n",
                at(audit), at("kubeconfig"), at(ca), at("no.crt"), at("empty.pem"), at("no-secret")
            ),
        )
        .unwrap();
        let file = at("config.yaml");
        let error = check(Path::new(&file), &read(Path::new(&file)).unwrap()).expect_err("problems");
        error.problems.iter().map(Problem::line).collect::<Vec<_>>()
    };
    let found = config("none/audit.log", "empty.pem");
    for (found, wanted) in found.iter().zip([
        format!("audit: cannot write {:?}: no such file or directory (line 1", at("none/audit.log")),
        format!("http.k8s.kubeconfig: cannot read {:?}: no such file or directory", at("kubeconfig")),
        format!("http.k8s.routes.\"a.test\".ca: cannot use {:?}: it has no certificate in PEM form", at("empty.pem")),
        format!("http.k8s.routes.\"a.test\".client_cert: cannot read {:?}", at("no.crt")),
        format!("http.k8s.routes.\"a.test\".client_key: cannot use {:?}: it has no private key", at("empty.pem")),
        format!("local[0].secret_file: cannot read {:?}", at("no-secret")),
    ]) {
        assert!(found.starts_with(&wanted), "{found}\n{wanted}");
    }
    assert_eq!(found.len(), 6);
    assert_eq!(config("audit.log", "empty.pem").len(), 5);
    assert!(!folder.path().join("audit.log").exists());
    assert!(load(&fs::read_to_string(at("config.yaml")).unwrap()).is_ok());
}

#[test]
fn local_was_called_expose_and_both_are_too_many() {
    let entry = "[{port: 3000, to: relay.example.com}]";
    let (local, expose) = (load(&format!("local: {entry}\n")).unwrap(), load(&format!("expose: {entry}\n")).unwrap());
    assert_eq!((local.local.len(), &local.local), (1, &expose.local));
    assert!(local.notes.is_empty());
    assert_eq!(expose.notes, ["the key 'expose' is called 'local' now: rename it"]);
    let both = problems(&format!("local: {entry}\nexpose: {entry}\n"));
    assert!(both.len() == 1 && both[0].contains("both local and expose are given"), "{both:?}");
}
