//! The forward proxy for a single command.

use super::Home;

#[tokio::test]
async fn a_command_reaches_the_cluster_by_its_names_each_way() {
    let home = Home::new().await;
    let script = "for way in '' '--proxytunnel' \"--proxy $ALL_PROXY\"; do \
                  curl -sS --max-time 30 $way http://web.shop.svc.cluster.local/whoami || echo failed: $way; echo; done; \
                  curl -sS --max-time 30 -k https://tools.shop.svc/whoami || echo failed: https";
    let said = home.output(&["run", "--proxy", "--", "sh", "-c", script]).await;
    let lines: Vec<&str> = said.out.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("web-6d5f-")).count(), 3, "{said:?}");
    assert_eq!((said.code, said.out.contains("failed")), (Some(0), false), "{said:?}");
    let said = home.output(&["run", "--proxy", "--", "env"]).await;
    let set = said.variables();
    for (upper, lower) in [
        ("HTTP_PROXY", "http_proxy"),
        ("HTTPS_PROXY", "https_proxy"),
        ("ALL_PROXY", "all_proxy"),
        ("NO_PROXY", "no_proxy"),
    ] {
        assert_eq!(set[upper], set[lower]);
    }
    assert_eq!(set["NO_PROXY"], "localhost,127.0.0.1,::1,.localhost");
    assert_eq!(set["NODE_USE_ENV_PROXY"], "1");
    assert!(set["HTTPS_PROXY"].starts_with("http://adit:") && set["ALL_PROXY"].starts_with("socks5h://adit:"));
    let address: std::net::SocketAddr = set["HTTP_PROXY"].rsplit_once('@').unwrap().1.parse().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it ends with its command");
    let dry = home.output(&["run", "--proxy", "--dry-run"]).await;
    assert!(dry.out.contains("HTTP_PROXY=http://adit:(a password)@127.0.0.1:"), "{dry:?}");
}

#[tokio::test]
async fn its_port_does_nothing_without_the_password() {
    let home = Home::new().await;
    // Prints the status of the proxy's answer, and the exit code of curl.
    let script = "at=${HTTP_PROXY##*@}; unset http_proxy HTTP_PROXY https_proxy HTTPS_PROXY ALL_PROXY all_proxy NO_PROXY no_proxy; \
                  ask() { curl -s -o /dev/null --max-time 30 -w '%{http_connect} %{http_code} ' \"$@\"; echo $?; }; \
                  ask --proxy http://$at http://web.shop/; ask --proxy http://adit:wrong@$at http://web.shop/; \
                  ask --proxy http://$at -p http://web.shop/; ask --proxy http://adit:wrong@$at -p http://web.shop/; \
                  ask --proxy socks5h://$at http://web.shop/; ask --proxy socks5h://adit:wrong@$at http://web.shop/; \
                  ask http://$at/proxy.pac; ask -H 'Host: web.shop.localhost' http://$at/; ask -k https://$at/";
    let said = home.output(&["run", "--proxy", "--", "sh", "-c", script]).await;
    let lines: Vec<&str> = said.out.lines().collect();
    let wanted =
        ["000 407 0", "000 407 0", "407 000 56", "407 000 56", "000 000 97", "000 000 97", "000 407 0", "000 407 0"];
    assert_eq!(&lines[..8], wanted, "{said:?}");
    assert!(lines[8].starts_with("000 000 ") && !lines[8].ends_with(" 0"), "{said:?}");
    assert_eq!(home.demo.faults().requests_seen("/services/web"), 0, "the cluster was not asked");
}

#[tokio::test]
async fn the_user_of_its_url_may_be_a_context_and_near_networks_stay_closed() {
    let home = Home::new().await;
    let script = "ask() { curl -s -o /dev/null --max-time 30 --noproxy '' -w '%{http_code}\n' \"$@\"; }; \
                  other() { echo $HTTP_PROXY | sed \"s,//adit:,//$1:,\"; }; \
                  ask --proxy $(other demo) http://web.shop/; ask --proxy $(other no-such-context) http://web.shop/; \
                  ask http://192.168.1.1/; ask http://10.0.0.1/; ask http://nobody.of.invalid/";
    let said = home.output(&["run", "--proxy", "--", "sh", "-c", script]).await;
    assert_eq!(said.out.lines().collect::<Vec<_>>(), ["200", "404", "403", "403", "502"], "{said:?}");
}

#[tokio::test]
async fn contexts_that_are_closed_to_names_are_closed_to_it() {
    let home = Home::new().await;
    let config = home.config("contexts: {d: {name: demo, dynamic: deny}}\n");
    let script = "for way in '' '-p' \"--proxy $ALL_PROXY\"; do \
                  curl -s -o /dev/null --max-time 30 $way -w '%{http_connect} %{http_code} ' http://web.shop/; echo $?; done";
    let said = home.output(&["--config", &config, "run", "--proxy", "--", "sh", "-c", script]).await;
    assert_eq!(said.out.lines().collect::<Vec<_>>(), ["000 403 0", "403 000 56", "000 000 97"], "{said:?}");
    assert_eq!(home.demo.faults().requests_seen("/services/web"), 0, "the cluster was not asked");
}
