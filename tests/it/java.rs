//! Java's clients with the forward proxy: `HttpURLConnection` and `HttpClient`. Skipped without a JDK.

use crate::process::Process;

/// Requests a URL through a proxy that the program or the JVM's options set.
const ASK: &str = r#"
import java.io.IOException;
import java.net.*;
import java.net.http.*;
import java.util.List;

public class Ask {
    public static void main(String[] words) throws Exception {
        var url = URI.create(words[1]);
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(words[2]));
        var socks = new Proxy(Proxy.Type.SOCKS, address);
        switch (words[0]) {
            case "connection" -> connection((HttpURLConnection) url.toURL().openConnection());
            case "connection-socks" -> connection((HttpURLConnection) url.toURL().openConnection(socks));
            case "connection-http" ->
                connection((HttpURLConnection) url.toURL().openConnection(new Proxy(Proxy.Type.HTTP, address)));
            case "client" -> client(HttpClient.newHttpClient(), url);
            case "client-http" -> client(HttpClient.newBuilder().proxy(ProxySelector.of(address)).build(), url);
            case "client-socks" -> client(HttpClient.newBuilder().proxy(new ProxySelector() {
                public List<Proxy> select(URI of) { return List.of(socks); }
                public void connectFailed(URI of, SocketAddress at, IOException error) {}
            }).build(), url);
        }
    }

    static void connection(HttpURLConnection connection) throws Exception {
        try (var body = connection.getInputStream()) {
            System.out.print(new String(body.readAllBytes()));
        }
    }

    static void client(HttpClient client, URI url) throws Exception {
        System.out.print(client.send(HttpRequest.newBuilder(url).build(), HttpResponse.BodyHandlers.ofString()).body());
    }
}
"#;

#[tokio::test]
async fn both_clients_go_through_an_http_proxy_and_one_of_them_through_socks() {
    let process = Process::start("", &[]).await;
    std::fs::write(process.home().join("Ask.java"), ASK).unwrap();
    // The backend's certificate, imported into the JVM's trust store as its owner would do.
    let prepare = "javac Ask.java && command -v openssl keytool && \
        openssl s_client -proxy 127.0.0.1:$PORT -connect tools.shop.svc:443 </dev/null 2>/dev/null | openssl x509 >pod.pem && \
        keytool -importcert -noprompt -alias pod -file pod.pem -keystore store -storepass changeit";
    let port = process.http.port();
    let with_port = |script: &str| format!("export PORT={port}\n{script}");
    let (is_there, said) = process.shell(&with_port(prepare)).await;
    if !is_there {
        assert!(said.contains("javac") && said.contains("not found"), "{said}");
        return;
    }
    let (http, https) = ("http://web.shop.svc/whoami", "https://tools.shop.svc/whoami");
    let of_http = format!("-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={port}");
    let of_https = format!("-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort={port}");
    let of_socks = format!("-DsocksProxyHost=127.0.0.1 -DsocksProxyPort={port}");
    let cases: [(&str, &str, &str, Option<&str>); 14] = [
        (&of_http, "connection", http, Some("web-")),
        (&of_http, "client", http, Some("web-")),
        (&of_https, "connection", https, Some("tools-0")),
        (&of_https, "client", https, Some("tools-0")),
        ("", "connection-http", http, Some("web-")),
        ("", "connection-http", https, Some("tools-0")),
        ("", "client-http", http, Some("web-")),
        ("", "client-http", https, Some("tools-0")),
        (&of_socks, "connection", http, Some("web-")),
        (&of_socks, "connection", https, Some("tools-0")),
        ("", "connection-socks", http, Some("web-")),
        ("", "connection-socks", https, Some("tools-0")),
        // `HttpClient` supports only HTTP proxies, and resolves the name itself.
        (&of_socks, "client", http, None),
        ("", "client-socks", http, None),
    ];
    for (options, client, url, wanted) in cases {
        let trust = "-Djavax.net.ssl.trustStore=store -Djavax.net.ssl.trustStorePassword=changeit";
        let (is_reached, said) = process.shell(&format!("java {trust} {options} Ask {client} {url} {port}")).await;
        match wanted {
            Some(pod) => assert!(is_reached && said.contains(pod), "{options} {client} {url}: {said}"),
            None => assert!(!is_reached && said.contains("UnresolvedAddressException"), "{options} {client}: {said}"),
        }
    }
}
