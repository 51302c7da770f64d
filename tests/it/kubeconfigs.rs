//! Kubeconfigs and proxies for which kubectl is the reference.
//!
//! Each row has the expected verdict. If kubectl is on PATH, it must agree.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use adit::{demo::Demo, tls::handshake};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Expected result of a case; for a refusal, the text in adit's error.
pub enum Verdict {
    Works,
    Refused(&'static str),
}
use Verdict::{Refused, Works};

/// A demo cluster, and the parts of its kubeconfig.
pub struct Oracle {
    pub demo: Arc<Demo>,
    folder: tempfile::TempDir,
    bundle: String,
    token: String,
}

impl Oracle {
    pub async fn start() -> Self {
        let demo = Arc::new(Demo::start().await.unwrap());
        let written = fs::read_to_string(demo.kubeconfig()).unwrap();
        let behind = |key: &str| {
            let (_, rest) = written.split_once(key).expect(key);
            rest.trim_start_matches([' ', '"']).split(['"', '}']).next().unwrap().trim().to_owned()
        };
        let oracle = Self {
            bundle: behind("authority-data:"),
            token: behind("token:"),
            demo,
            folder: tempfile::tempdir().unwrap(),
        };
        let pem = STANDARD.decode(&oracle.bundle).unwrap();
        oracle.write("ca.crt", &pem);
        oracle.write("token", format!("{}\n", oracle.token).as_bytes());
        oracle.write("empty", b"");
        let broken = b"-----BEGIN CERTIFICATE-----\nQUJDREVG\n-----END CERTIFICATE-----\n";
        oracle.write(
            "bundle.crt",
            &[&broken[..], &pem, b"-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n"].concat(),
        );
        oracle
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn port(&self) -> u16 {
        self.demo.address().port()
    }

    /// Replaces `$SERVER`, `$HOST`, `$PORT`, `$CA` and `$TOKEN`.
    pub fn fill(&self, text: &str) -> String {
        text.replace("$SERVER", &format!("https://127.0.0.1:{}", self.port()))
            .replace("$HOST", &format!("127.0.0.1:{}", self.port()))
            .replace("$PORT", &self.port().to_string())
            .replace("$CA", &self.bundle)
            .replace("$TOKEN", &self.token)
    }

    /// Lists the Services with adit, and with kubectl if there is one, using these files and variables.
    async fn judge(&self, case: &str, files: &[PathBuf], variables: &[(&str, String)], verdict: &Verdict) {
        self.judge_adit(case, files, variables, verdict).await;
        self.judge_kubectl(case, files, variables, verdict).await;
    }

    pub async fn judge_adit(&self, case: &str, files: &[PathBuf], variables: &[(&str, String)], verdict: &Verdict) {
        let command = self.command(env!("CARGO_BIN_EXE_adit"), &["routes", "-n", "shop"], files, variables);
        let adit = output(command).await.expect("adit runs");
        let said = String::from_utf8_lossy(&adit.stderr).into_owned();
        assert!(!said.contains("panicked"), "{case}: {said}");
        match verdict {
            Works => assert!(adit.status.success(), "{case}: {said}"),
            Refused(words) => assert!(!adit.status.success() && said.contains(words), "{case}: {said}"),
        }
    }

    /// Returns whether there is a kubectl.
    pub async fn judge_kubectl(
        &self,
        case: &str,
        files: &[PathBuf],
        variables: &[(&str, String)],
        verdict: &Verdict,
    ) -> bool {
        let arguments = ["--request-timeout=5s", "-n", "shop", "get", "services", "-o", "name"];
        let Ok(kubectl) = output(self.command("kubectl", &arguments, files, variables)).await else { return false };
        let said = String::from_utf8_lossy(&kubectl.stderr);
        assert_eq!(kubectl.status.success(), matches!(verdict, Works), "{case}: kubectl says {said}");
        true
    }

    fn command(&self, program: &str, arguments: &[&str], files: &[PathBuf], variables: &[(&str, String)]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().to_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command.env_remove("ADIT_CONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        command.args(arguments).stdin(Stdio::null()).current_dir(self.folder.path());
        command.env("KUBECONFIG", std::env::join_paths(files).unwrap());
        command.env("HOME", self.folder.path()).env("XDG_RUNTIME_DIR", self.folder.path());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command
    }

    async fn judge_text(&self, case: &str, text: &str, variables: &[(&str, String)], verdict: &Verdict) {
        let path = self.write("config", self.fill(text).as_bytes());
        self.judge(case, &[path], variables, verdict).await;
    }
}

async fn output(mut command: Command) -> io::Result<std::process::Output> {
    tokio::task::spawn_blocking(move || command.output()).await.unwrap()
}

fn with_cluster(cluster: &str) -> String {
    WHOLE.replace("{server: \"$SERVER\", certificate-authority-data: $CA}", cluster)
}

pub fn with_user(user: &str) -> String {
    WHOLE.replace("{token: \"$TOKEN\"}", user)
}

const WHOLE: &str = "apiVersion: v1
kind: Config
current-context: x
clusters:
- {name: c, cluster: {server: \"$SERVER\", certificate-authority-data: $CA}}
users:
- {name: u, user: {token: \"$TOKEN\"}}
contexts:
- {name: x, context: {cluster: c, user: u}}
";

#[tokio::test]
async fn a_cluster_means_what_it_means_for_kubectl() {
    let oracle = Oracle::start().await;
    for (cluster, verdict) in [
        ("{server: \"$SERVER\", certificate-authority-data: $CA}", Works),
        ("{server: \"$SERVER/\", certificate-authority-data: $CA}", Works),
        ("{server: \"$SERVER//\", certificate-authority-data: $CA}", Works),
        ("{server: \"$SERVER//./a/../\", certificate-authority-data: $CA}", Works),
        ("{server: \"HTTPS://$HOST\", certificate-authority-data: $CA}", Works),
        ("{server: \"https://localhost:$PORT\", certificate-authority-data: $CA}", Works),
        ("{server: \"$SERVER/?a=b\", certificate-authority-data: $CA}", Works),
        ("{server: \"$HOST\", certificate-authority-data: $CA}", Refused("write https:// in front of its host")),
        (
            "{server: \"localhost:$PORT\", insecure-skip-tls-verify: true}",
            Refused("write https:// in front of its host"),
        ),
        ("{server: \"http://$HOST\"}", Refused("write https:// in front of its host")),
        ("{server: \"$HOST/a\", certificate-authority-data: $CA}", Refused("a path needs a scheme")),
        ("{server: \" $SERVER\", certificate-authority-data: $CA}", Refused("it has to be a URL")),
        ("{server: \"ftp://$HOST\"}", Refused("its scheme has to be https or http")),
        ("{server: \"https://127.0.0.1:99999\"}", Refused("a port up to 65535")),
        ("{server: \"https://127.0.0.1:+$PORT\"}", Refused("a port up to 65535")),
        ("{server: \"https://127.0.0.1:1\", certificate-authority-data: $CA}", Refused("nothing listens there")),
        ("{server: \"\", certificate-authority-data: $CA}", Refused("cluster \"c\" of")),
        ("{server: null}", Refused("it has no server")),
        ("{server: 7}", Refused("server of cluster \"c\" is a number")),
        ("{server: \"$SERVER\"}", Refused("not signed by the CA bundle")),
        ("{server: \"$SERVER\", certificate-authority: ca.crt}", Works),
        ("{server: \"$SERVER\", certificate-authority: bundle.crt}", Works),
        ("{server: \"$SERVER\", certificate-authority: ca.crt, certificate-authority-data: \"\"}", Works),
        ("{server: \"$SERVER\", certificate-authority: ca.crt, certificate-authority-data: null}", Works),
        (
            "{server: \"$SERVER\", certificate-authority: ca.crt, certificate-authority-data: $CA}",
            Refused("remove one"),
        ),
        ("{server: \"$SERVER\", certificate-authority: none.crt}", Refused("none.crt: no such file")),
        ("{server: \"$SERVER\", certificate-authority: empty}", Refused("not signed by the CA bundle")),
        ("{server: \"$SERVER\", certificate-authority: token}", Refused("no certificate in PEM form")),
        ("{server: \"$SERVER\", certificate-authority-data: aGFsbG8=}", Refused("no certificate in PEM form")),
        ("{server: \"$SERVER\", certificate-authority-data: \"%%\"}", Refused("of cluster \"c\" is not valid base64")),
        (
            "{server: \"$SERVER\", certificate-authority-data: \" $CA\"}",
            Refused("of cluster \"c\" is not valid base64"),
        ),
        ("{server: \"$SERVER\", certificate-authority-data: \"$CA\\r\\n\"}", Works),
        ("{server: \"$SERVER\", insecure-skip-tls-verify: true}", Works),
        ("{server: \"$SERVER\", insecure-skip-tls-verify: \"true\"}", Refused("remove the quotes")),
        ("{server: \"$SERVER\", insecure-skip-tls-verify: YES}", Works),
        ("{server: \"$SERVER\", insecure-skip-tls-verify: truE}", Refused("is text, and has to be true or false")),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, insecure-skip-tls-verify: true}",
            Refused("remove one"),
        ),
        ("{server: \"$SERVER\", certificate-authority-data: $CA, tls-server-name: kubernetes}", Works),
        ("{server: \"$SERVER\", certificate-authority-data: $CA, tls-server-name: \"\"}", Works),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, tls-server-name: other}",
            Refused("and not for other"),
        ),
        ("{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"\"}", Works),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"127.0.0.1:1\"}",
            Refused("has to begin with"),
        ),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"socks4://a:1\"}",
            Refused("has to begin with"),
        ),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"socks5h://a:1\"}",
            Refused("has to begin with"),
        ),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"http://:1\"}",
            Refused("the proxy 127.0.0.1:1"),
        ),
        ("{server: \"$SERVER\", certificate-authority: ~/ca.crt}", Refused("~/ca.crt: no such file")),
        ("{server: \"https://ana:geheim@127.0.0.1:1\"}", Refused("at https://127.0.0.1:1/")),
        (
            "{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"http://127.0.0.1:1\"}",
            Refused("the proxy 127.0.0.1:1"),
        ),
        ("{server: \"$SERVER\", certificate-authority-data: $CA, unknown: {a: [1]}}", Works),
        ("{server: \"$SERVER\", certificate-authority-data: $CA, extensions: [{name: a}]}", Works),
    ] {
        oracle.judge_text(cluster, &with_cluster(cluster), &[], &verdict).await;
    }
}

/// Takes the name from an entry: `""` is a name too.
fn without_name(text: &str, entry: &str) -> String {
    text.replace(&format!("{{name: {entry}, "), "{")
}

#[tokio::test]
async fn without_a_current_context_the_entries_without_a_name_count() {
    let oracle = Oracle::start().await;
    let none = WHOLE.replace("current-context: x\n", "");
    let context = "- {name: x, context: {cluster: c, user: u}}";
    let no_names = ["c", "u"].iter().fold(none.clone(), |text, name| without_name(&text, name));
    let names_nothing = WHOLE.replace("{cluster: c, user: u}", "{}");
    for (case, text, verdict) in [
        ("no current context", none.clone(), Refused("no current context")),
        ("an empty current context", none.clone() + "current-context: \"\"\n", Refused("no current context")),
        ("a context without a name", without_name(&none, "x"), Works),
        ("and an empty current context", without_name(&none, "x") + "current-context: \"\"\n", Works),
        ("and another current context", without_name(WHOLE, "x"), Refused("context x is not in")),
        ("cluster and user without a name", no_names.replace(context, ""), Works),
        ("in a context that names neither", without_name(&without_name(&names_nothing, "c"), "u"), Works),
        ("a context that names no cluster", names_nothing, Refused("names no cluster")),
    ] {
        oracle.judge_text(case, &text, &[], &verdict).await;
    }
}

#[tokio::test]
async fn a_tilde_is_no_home_folder() {
    let oracle = Oracle::start().await;
    let path = oracle.write("config", oracle.fill(WHOLE).as_bytes());
    assert!(path.exists());
    for (list, verdict) in [("~/config", Refused("~/config does not exist")), ("config", Works)] {
        oracle.judge(list, &[list.into()], &[], &verdict).await;
    }
}

#[tokio::test]
async fn a_user_means_what_it_means_for_kubectl() {
    let oracle = Oracle::start().await;
    let plugin = "exec: {apiVersion: client.authentication.k8s.io/v1, command: no-such-plugin, interactiveMode: Never}";
    for (user, verdict) in [
        ("{token: \"$TOKEN\"}".to_owned(), Works),
        ("{token: \" $TOKEN \"}".to_owned(), Works),
        ("{token: \"$TOKEN\\n\"}".to_owned(), Refused("the token has a line end")),
        ("{token: wrong}".to_owned(), Refused("does not accept the credentials")),
        ("{token: 7}".to_owned(), Refused("token of user \"u\" is a number")),
        ("{token: wrong, token: \"$TOKEN\"}".to_owned(), Works),
        ("{tokenFile: token}".to_owned(), Works),
        ("{token: wrong, tokenFile: token}".to_owned(), Works),
        ("{token: \"$TOKEN\", tokenFile: missing}".to_owned(), Works),
        ("{token: \"$TOKEN\", tokenFile: empty}".to_owned(), Works),
        ("{tokenFile: missing}".to_owned(), Refused("missing: no such file")),
        ("{tokenFile: empty}".to_owned(), Refused("empty: it is empty")),
        ("{token: \"$TOKEN\", username: ana}".to_owned(), Refused("remove one of them")),
        ("{tokenFile: token, username: ana, password: b}".to_owned(), Refused("remove one of them")),
        ("{token: \"$TOKEN\", client-certificate-data: \"\", client-key-data: \"\"}".to_owned(), Works),
        ("{token: \"$TOKEN\", client-key-data: aGFsbG8=}".to_owned(), Works),
        ("{token: \"$TOKEN\", client-certificate-data: aGFsbG8=}".to_owned(), Refused("no client-key")),
        (
            "{token: \"$TOKEN\", client-certificate-data: aGFsbG8=, client-key-data: aGFsbG8=}".to_owned(),
            Refused("no certificate in PEM form"),
        ),
        (
            "{token: \"$TOKEN\", client-certificate: no.crt, client-key: no.key}".to_owned(),
            Refused("no.crt: no such file"),
        ),
        (format!("{{token: \"$TOKEN\", {plugin}}}"), Works),
        (format!("{{tokenFile: token, {plugin}}}"), Works),
        (format!("{{{plugin}}}"), Refused("'no-such-plugin' was not found")),
        ("{token: \"$TOKEN\", as-groups: [a]}".to_owned(), Refused("no as")),
        ("{token: \"$TOKEN\", as-user-extra: null}".to_owned(), Works),
        ("{Token: \"$TOKEN\"}".to_owned(), Refused("does not accept the credentials")),
        ("null".to_owned(), Refused("does not accept the credentials")),
    ] {
        oracle.judge_text(&user, &with_user(&user), &[], &verdict).await;
    }
}

/// Returns a user with the plugin `sh -c SCRIPT`, and these other settings.
fn plugin(version: &str, script: &str, others: &[(&str, Value)]) -> String {
    let mut exec = json!({
        "apiVersion": format!("client.authentication.k8s.io/{version}"),
        "command": "sh", "args": ["-c", script], "interactiveMode": "Never",
    });
    for (key, value) in others {
        match value {
            Value::Null => exec.as_object_mut().unwrap().remove(*key),
            value => exec.as_object_mut().unwrap().insert((*key).to_owned(), value.clone()),
        };
    }
    json!({ "exec": exec }).to_string()
}

/// Returns a script that prints a credential as JSON.
fn answer(version: &str, status: Value) -> String {
    let version = format!("client.authentication.k8s.io/{version}");
    format!("echo '{}'", json!({"kind": "ExecCredential", "apiVersion": version, "status": status}))
}

#[tokio::test]
async fn a_plugin_means_what_it_means_for_kubectl() {
    let oracle = Oracle::start().await;
    let good = answer("v1", json!({"token": "$TOKEN"}));
    let script = oracle.write("script", format!("#!/bin/sh\n{}\n", oracle.fill(&good)).as_bytes());
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    oracle.write("plain", b"#!/bin/sh\n");
    let v1 = |script: &str| plugin("v1", script, &[]);
    let with = |key: &str, value: Value| plugin("v1", &good, &[(key, value)]);
    let status = |status: Value| v1(&answer("v1", status));
    let yaml = "echo 'kind: ExecCredential'; echo 'apiVersion: client.authentication.k8s.io/v1'; \
                echo 'status: {token: \"$TOKEN\"}'";
    let expects = |text: &str| format!("case \"$KUBERNETES_EXEC_INFO\" in *'{text}'*) {good};; *) exit 3;; esac");
    let beta = answer("v1beta1", json!({"token": "$TOKEN"}));
    for (case, user, verdict) in [
        ("v1", v1(&good), Works),
        ("v1beta1", plugin("v1beta1", &beta, &[("interactiveMode", Value::Null)]), Works),
        ("v1alpha1", plugin("v1alpha1", &good, &[]), Refused("which kubectl does not know")),
        ("another version", with("apiVersion", json!("v1")), Refused("which kubectl does not know")),
        ("no version", with("apiVersion", Value::Null), Refused("no apiVersion")),
        ("an empty version", with("apiVersion", json!("")), Refused("no apiVersion")),
        ("no interactiveMode", with("interactiveMode", Value::Null), Refused("no interactiveMode")),
        ("IfAvailable", with("interactiveMode", json!("IfAvailable")), Works),
        ("Always", with("interactiveMode", json!("Always")), Refused("requires a terminal")),
        ("another mode", with("interactiveMode", json!("Sometimes")), Refused("user \"u\" of")),
        ("no command", with("command", Value::Null), Refused("no command")),
        ("no such command", with("command", json!("no-such-plugin")), Refused("was not found on PATH")),
        ("no such file", with("command", json!("./no-such-plugin")), Refused("does not exist")),
        ("a file below the kubeconfig", with("command", json!("./script")), Works),
        ("a file that is not executable", with("command", json!("./plain")), Refused("not executable")),
        (
            "variables",
            plugin(
                "v1",
                &format!("[ \"$A$B\" = xy ] && {good}"),
                &[(
                    "env",
                    json!([{"name": "A", "value": "x"}, {"name": "B", "value": "z"}, {"name": "B", "value": "y"}]),
                )],
            ),
            Works,
        ),
        ("a variable without a value", with("env", json!([{"name": "A"}])), Works),
        ("a variable without a name", with("env", json!([{"value": "x"}])), Refused("variable without a name")),
        ("no arguments", with("args", json!([])), Refused("printed no ExecCredential")),
        ("a null", with("installHint", json!("")), Works),
        ("stdin is empty", v1(&format!("[ -z \"$(cat)\" ] && {good}")), Works),
        ("no terminal", v1(&expects("\"interactive\":false")), Works),
        ("no cluster", v1(&expects("\"cluster\"")), Refused("exit code 3")),
        (
            "the cluster",
            plugin(
                "v1",
                // JSON keys have no order.
                &expects("\"server\":\"$SERVER\"").replace(&good, &expects("\"certificate-authority-data\":\"$CA\"")),
                &[("provideClusterInfo", json!(true))],
            ),
            Works,
        ),
        (
            "the cluster's own settings",
            plugin("v1", &expects("\"config\":{\"audience\":[\"a\"]}"), &[("provideClusterInfo", json!(true))]),
            Works,
        ),
        ("what it says on stderr", v1(&format!("echo hm >&2; {good}")), Works),
        ("an answer and an exit code", v1(&format!("{good}; exit 7")), Refused("exit code 7")),
        ("YAML", v1(yaml), Works),
        ("text behind the answer", v1(&format!("{good}; echo done")), Refused("printed no ExecCredential")),
        ("text in front of the answer", v1(&format!("echo hm; {good}")), Refused("printed no ExecCredential")),
        ("nothing", v1("true"), Refused("printed no ExecCredential")),
        ("another kind", v1(&good.replace("ExecCredential", "Status")), Refused("printed no ExecCredential")),
        ("no version in the answer", v1(&good.replace("client.authentication.k8s.io/v1", "")), Refused("'sh' ")),
        ("another version in the answer", v1(&beta), Refused("answered in v1beta1")),
        ("no status", v1(&good.replace("\"status\"", "\"state\"")), Refused("without a status")),
        ("an empty status", status(json!({})), Refused("neither a token nor a certificate")),
        ("an empty token", status(json!({"token": ""})), Refused("neither a token nor a certificate")),
        ("a number for a token", status(json!({"token": 7})), Refused("not a string")),
        ("a token of two lines", status(json!({"token": "a\\nb"})), Refused("cannot be sent")),
        ("a wrong token", status(json!({"token": "wrong"})), Refused("does not accept the credentials")),
        ("a key alone", status(json!({"token": "$TOKEN", "clientKeyData": "k"})), Refused("only one of")),
        ("no PEM", status(json!({"clientCertificateData": "c", "clientKeyData": "k"})), Refused("cannot be used")),
        (
            "a token that has expired",
            status(json!({"token": "$TOKEN", "expirationTimestamp": "2020-01-01T00:00:00Z"})),
            Works,
        ),
        ("no end", status(json!({"token": "$TOKEN", "expirationTimestamp": null})), Works),
        (
            "an end that is no time",
            status(json!({"token": "$TOKEN", "expirationTimestamp": "soon"})),
            Refused("not a time"),
        ),
        ("an empty end", status(json!({"token": "$TOKEN", "expirationTimestamp": ""})), Refused("not a time")),
        ("unknown keys", status(json!({"token": "$TOKEN", "more": {"a": 1}})), Works),
        ("3 MB of spaces", v1(&format!("head -c 3000000 /dev/zero | tr '\\0' ' '; {good}")), Works),
        (
            "bytes that are no text",
            v1(&format!("{} | sed 's/wrong/'$(printf '\\377')/", good.replace("{\"api", "{\"x\":\"wrong\",\"api"))),
            Works,
        ),
    ] {
        let extension = "extensions: [{name: client.authentication.k8s.io/exec, extension: {audience: [a]}}]";
        let cluster = with_cluster(&format!("{{server: \"$SERVER\", certificate-authority-data: $CA, {extension}}}"));
        oracle.judge_text(case, &cluster.replace("{token: \"$TOKEN\"}", &user), &[], &verdict).await;
    }
    let exec = |settings: &str| format!("exec: {{command: sh, {settings}}}");
    let whole = exec("apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never");
    for (user, verdict) in [
        (format!("{{token: \"$TOKEN\", {}}}", exec("interactiveMode: Never")), Refused("no apiVersion")),
        (
            format!("{{token: \"$TOKEN\", {}}}", exec("apiVersion: client.authentication.k8s.io/v1")),
            Refused("no interactiveMode"),
        ),
        (
            format!("{{token: \"$TOKEN\", {}}}", exec("apiVersion: v2, interactiveMode: Never")),
            Refused("which kubectl does not know"),
        ),
        (
            format!(
                "{{token: \"$TOKEN\", {}}}",
                exec("apiVersion: client.authentication.k8s.io/v1, interactiveMode: Always")
            ),
            Works,
        ),
        (format!("{{auth-provider: {{name: oidc}}, {whole}}}"), Refused("remove one of them")),
    ] {
        oracle.judge_text(&user, &with_user(&user), &[], &verdict).await;
    }
}

#[tokio::test]
async fn a_file_means_what_it_means_for_kubectl() {
    let oracle = Oracle::start().await;
    let of = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        WHOLE.replacen(from, to, 1)
    };
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": "$SERVER", "certificate-authority-data": "$CA"}}],
        "users": [{"name": "u", "user": {"token": "$TOKEN"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    for (case, text, verdict) in [
        ("JSON", json.to_string(), Works),
        ("no kind, no apiVersion", of("apiVersion: v1\nkind: Config\n", ""), Works),
        ("another kind", of("kind: Config", "kind: Secret"), Refused("kind is \"Secret\"")),
        ("another version", of("apiVersion: v1", "apiVersion: v2"), Refused("apiVersion is \"v2\"")),
        ("a key twice", of("current-context: x", "current-context: z\ncurrent-context: x"), Works),
        ("line ends of Windows", WHOLE.replace('\n', "\r\n"), Works),
        ("a byte order mark", format!("\u{feff}{WHOLE}"), Works),
        ("a second document", format!("{WHOLE}---\na: 1\n"), Works),
        (
            "anchors",
            of(
                "users:\n- {name: u, user: {",
                "users:\n- {name: v, user: &a {token: \"$TOKEN\"}}\n- {name: u, user: {<<: *a, ",
            ),
            Works,
        ),
        (
            "a merge wins over the keys in front of it",
            of("{token: \"$TOKEN\"}", "{token: wrong, <<: {token: \"$TOKEN\"}}"),
            Works,
        ),
        (
            "the first of two merged maps wins",
            of("{token: ", "{<<: [{token: \"$TOKEN\"}, {token: wrong}], more: "),
            Works,
        ),
        ("a merge of nothing", of("{token: ", "{<<: , token: "), Refused("'<<' needs keys and values")),
        ("a name that begins like true", WHOLE.replace(": x", ": truE"), Works),
        ("a name that is true", WHOLE.replace(": x", ": yes"), Refused("put it in quotes")),
        ("a number with a tag", of("current-context: x", "current-context: !!str x\nother: !!int 0x1_0"), Works),
        ("half a context", of("contexts:\n", "contexts:\n- {name: half, context: {user: x}}\n"), Works),
        ("half a cluster", of("clusters:\n", "clusters:\n- {name: half}\n- {name: none, cluster: {}}\n"), Works),
        ("an entry without a name", of("clusters:\n", "clusters:\n- {cluster: {server: \"https://a\"}}\n"), Works),
        ("an empty entry", of("clusters:\n", "clusters:\n- null\n"), Works),
        (
            "a CA bundle that nobody uses",
            of(
                "clusters:\n",
                "clusters:\n- {name: z, cluster: {server: \"https://a\", certificate-authority: none}}\n",
            ),
            Works,
        ),
        (
            "extensions",
            of("kind: Config\n", "kind: Config\npreferences: {}\nextensions: [{name: a, extension: {b: 1}}]\n"),
            Works,
        ),
        ("lists that are null", of("kind: Config\n", "kind: Config\npreferences: null\nextensions: null\n"), Works),
        (
            "two users of one name",
            of("users:\n", "users:\n- {name: u, user: {token: a}}\n"),
            Refused("two entries called \"u\""),
        ),
        (
            "a namespace that is a number",
            of("user: u}", "user: u, namespace: 7}"),
            Refused("namespace of context \"x\""),
        ),
        ("a namespace that is null", of("user: u}", "user: u, namespace: null}"), Works),
        ("a user that is missing", of("user: u}", "user: v}"), Refused("no file has this user")),
        ("a cluster that is missing", of("cluster: c,", "cluster: d,"), Refused("it names cluster \"d\"")),
        ("a context without a cluster", of("{cluster: c, user: u}", "{user: u}"), Refused("it names no cluster")),
        ("a context that is missing", of("current-context: x", "current-context: z"), Refused("context z is not in")),
        ("no YAML", format!("{WHOLE}users: [\n"), Refused("it is not valid YAML: ")),
        ("a tab", format!("{WHOLE}\tpreferences: {{}}\n"), Refused("is indented with a tab")),
        ("half of a file", WHOLE[..WHOLE.len() / 2].to_owned(), Refused("it is not valid YAML: ")),
        ("half of a second document", format!("{WHOLE}---\nusers: [\n"), Works),
        ("other line ends", WHOLE.replace('\n', "\u{85}").replace("kind: Config", "kind: Config\u{2028}"), Works),
        ("200 lines of comments", of("clusters:\n", &format!("clusters:\n{}", "# old\n".repeat(200))), Works),
        ("a comment without a space", of("{cluster: c, user: u}}", "{cluster: c, user: u}}#mine"), Works),
        ("tabs inside of braces", of("{cluster: c, user: u}", "{\n\tcluster: c,\n\tuser: \"u\"\n\t}"), Works),
        ("a lone hyphen in a list", format!("{WHOLE}more: [a, -]\n"), Works),
        ("deep values", format!("{WHOLE}more: {}{}\n", "[".repeat(5_000), "]".repeat(5_000)), Works),
        (
            "values that are too deep",
            format!("{WHOLE}more: {}\n", "[".repeat(10_001)),
            Refused("it is not valid YAML: "),
        ),
        (
            "a block at the end",
            of("{token: \"$TOKEN\"}", "{}") + "users:\n- name: u\n  user:\n    token: |\n      $TOKEN",
            Works,
        ),
        ("text", "text".to_owned(), Refused("the file is text")),
        (
            "a list for a map",
            of("contexts:\n", "extensions: {}\ncontexts:\n"),
            Refused("extensions is keys and values"),
        ),
        (
            "a word of YAML 1.1",
            of("users:\n", "users:\n- {name: v, user: {token: yes}}\n"),
            Refused("token of user \"v\""),
        ),
        ("a date", of("users:\n", "users:\n- {name: v, user: {token: 2026-11-30}}\n"), Works),
        ("preferences", format!("{WHOLE}preferences: {{colors: 5}}\n"), Refused("preferences.colors is a number")),
        (
            "a number that nobody uses",
            of("clusters:\n", "clusters:\n- {name: z, cluster: {server: 5}}\n"),
            Refused("server of cluster \"z\" is a number"),
        ),
        (
            "base64 that nobody uses",
            of("users:\n", "users:\n- {name: v, user: {client-key-data: \"%\"}}\n"),
            Refused("client-key-data of user \"v\" is not valid base64"),
        ),
        (
            "a mode that nobody uses",
            of("users:\n", "users:\n- {name: v, user: {exec: {command: a, interactiveMode: Sometimes}}}\n"),
            Works,
        ),
    ] {
        oracle.judge_text(case, &text, &[], &verdict).await;
    }
}

#[tokio::test]
async fn several_files_are_one_as_for_kubectl() {
    let oracle = Oracle::start().await;
    let below = oracle.folder.path().join("below");
    fs::create_dir(&below).unwrap();
    fs::copy(oracle.folder.path().join("ca.crt"), below.join("own.crt")).unwrap();
    fs::copy(oracle.folder.path().join("token"), below.join("own")).unwrap();
    let write = |name: &str, text: &str| oracle.write(name, oracle.fill(text).as_bytes());
    let first = write(
        "first",
        "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nusers: [{name: w, user: {token: wrong}}]\n",
    );
    let second = write(
        "below/second",
        "current-context: z\nclusters: [{name: c, cluster: {server: \"$SERVER\", certificate-authority: own.crt}}]\nusers: [{name: u, user: {tokenFile: own}}]\n",
    );
    let wrong = write("wrong", "users: [{name: u, user: {token: wrong}}]\n");
    let unset = write("unset", "current-context: ''\nusers: null\n");
    let broken = write("broken", "users: [\n");
    let missing = oracle.folder.path().join("missing");
    for (case, files, verdict) in [
        ("relative paths begin at their own file", vec![first.clone(), second.clone()], Works),
        (
            "files that do not exist are passed over",
            vec![missing.clone(), first.clone(), missing, second.clone()],
            Works,
        ),
        ("empty paths are passed over", vec![PathBuf::new(), first.clone(), PathBuf::new(), second.clone()], Works),
        ("what is unset in the first is taken from the next", vec![unset, first.clone(), second.clone()], Works),
        (
            "the first user of a name counts",
            vec![wrong.clone(), first.clone(), second.clone()],
            Refused("does not accept"),
        ),
        ("the last user of a name does not", vec![first.clone(), second.clone(), wrong], Works),
        ("the first current context counts", vec![second.clone(), first.clone()], Refused("context z is not in")),
        ("a file that is no YAML spoils all", vec![first, second, broken], Refused("broken: it is not valid YAML")),
    ] {
        oracle.judge(case, &files, &[], &verdict).await;
    }
}

/// A proxy that accepts CONNECT to any host, connects to a fixed address, and counts.
struct Proxy {
    port: u16,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut client = BufReader::new(client);
                    let mut line = String::new();
                    while client.read_line(&mut line).await? > 0 && !line.ends_with("\r\n\r\n") {}
                    // Corporate proxies say much.
                    let policies = "X-Policy: 0123456789abcdef\r\n".repeat(500);
                    client.write_all(format!("HTTP/1.1 200 OK\r\n{policies}\r\n").as_bytes()).await?;
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { port, asked, task }
    }

    fn asked(&self) -> bool {
        self.asked.swap(0, Ordering::Relaxed) > 0
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn proxies_are_chosen_as_by_kubectl() {
    let oracle = Oracle::start().await;
    let proxy = Proxy::start(oracle.port()).await;
    let address = format!("127.0.0.1:{}", proxy.port);
    let url = format!("http://{address}");
    let loopback = WHOLE.to_owned();
    let far = with_cluster(
        "{server: \"https://api.cluster.invalid:6443\", certificate-authority-data: $CA, tls-server-name: kubernetes}",
    );
    let own = with_cluster(&format!("{{server: \"$SERVER\", certificate-authority-data: $CA, proxy-url: \"{url}\"}}"));
    let unknown = Refused("the name of api.cluster.invalid is not known");
    let of = |no_proxy: &str| vec![("HTTPS_PROXY", url.clone()), ("NO_PROXY", no_proxy.to_owned())];
    for (case, text, variables, verdict, is_asked) in [
        ("loopback goes through no proxy of the environment", &loopback, of(""), &Works, false),
        ("another server does", &far, of(""), &Works, true),
        ("in lower case", &far, vec![("https_proxy", url.clone())], &Works, true),
        ("without a scheme", &far, vec![("HTTPS_PROXY", address.clone())], &Works, true),
        ("HTTP_PROXY is for http servers", &far, vec![("HTTP_PROXY", url.clone())], &unknown, false),
        ("a scheme that is none of a proxy", &far, vec![("HTTPS_PROXY", format!("ftp://{address}"))], &Works, true),
        ("a proxy that is no URL", &far, vec![("HTTPS_PROXY", format!(" {url}"))], &unknown, false),
        ("NO_PROXY has the name", &far, of("api.cluster.invalid"), &unknown, false),
        ("NO_PROXY has a name above", &far, of("other, .cluster.invalid"), &unknown, false),
        ("NO_PROXY has name and port", &far, of("api.cluster.invalid:6443"), &unknown, false),
        ("NO_PROXY has another port", &far, of("api.cluster.invalid:443"), &Works, true),
        ("NO_PROXY has the proxy", &far, of("127.0.0.1,localhost"), &Works, true),
        ("NO_PROXY has what does not parse", &far, of("10.0.0.0/99,[,:1,, *cluster.invalid"), &Works, true),
        ("NO_PROXY has everything", &far, of("*"), &unknown, false),
        ("proxy-url counts for loopback", &own, of("127.0.0.1,localhost,*"), &Works, true),
    ] {
        let _before = proxy.asked();
        let files = [oracle.write("config", oracle.fill(text).as_bytes())];
        oracle.judge_adit(case, &files, &variables, verdict).await;
        assert_eq!(proxy.asked(), is_asked, "{case}: adit");
        let has_kubectl = oracle.judge_kubectl(case, &files, &variables, verdict).await;
        assert_eq!(proxy.asked(), is_asked && has_kubectl, "{case}: kubectl");
    }
}

/// Starts a TLS gateway in front of the demo API server. It requires a client certificate if `wants` is set.
async fn gateway(to: u16, chain: Vec<CertificateDer<'static>>, key: &KeyPair, wants: bool) -> (u16, JoinHandle<()>) {
    gateway_with(to, chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap(), wants, b"http/1.1").await
}

async fn gateway_with(
    to: u16,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    wants: bool,
    protocol: &[u8],
) -> (u16, JoinHandle<()>) {
    let provider = adit::tls::provider();
    let builder =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match wants {
        true => builder.with_client_cert_verifier(Arc::new(Anybody(provider.clone()))),
        false => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key).unwrap();
    server.alpn_protocols = vec![protocol.to_vec()];
    let builder =
        rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let mut client = builder
        .dangerous()
        .with_custom_certificate_verifier(adit::tls::Pinned::to_nothing(provider))
        .with_no_client_auth();
    client.alpn_protocols = vec![protocol.to_vec()];
    let (acceptor, connector) = (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let server = TcpStream::connect(("127.0.0.1", to)).await?;
                let mut server = connector.connect(ServerName::try_from("kubernetes").unwrap(), server).await?;
                copy_bidirectional(&mut client, &mut server).await?;
                io::Result::Ok(())
            });
        }
    });
    (port, task)
}

/// Accepts every client certificate whose key the client has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        handshake::verify_tls12(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        handshake::verify_tls13(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn params(name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params
}

#[tokio::test]
async fn servers_are_verified_as_by_kubectl() {
    let oracle = Oracle::start().await;
    let (key, other_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let authority = params("authority", true);
    let root = authority.self_signed(&other_key).unwrap();
    let issuer = Issuer::new(authority, other_key);
    let self_signed = |is_ca| params("server", is_ca).self_signed(&key).unwrap();
    let mut expired = params("server", false);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = expired.self_signed(&key).unwrap();
    let (own, own_ca) = (self_signed(false), self_signed(true));
    let signed_ca = params("server", true).signed_by(&key, &issuer).unwrap();
    for (case, served, bundle, verdict) in [
        ("the server's own certificate", &own, &own, Works),
        ("the server's own certificate, an authority", &own_ca, &own_ca, Works),
        ("an authority that an authority signed", &signed_ca, &root, Works),
        ("a certificate of somebody else", &own, &root, Refused("not signed by the CA bundle")),
        ("one that has expired", &expired, &expired, Refused("has expired")),
    ] {
        let (port, task) = gateway(oracle.port(), vec![served.der().clone()], &key, false).await;
        let bundle = STANDARD.encode(bundle.pem());
        let cluster = format!("{{server: \"https://127.0.0.1:{port}\", certificate-authority-data: {bundle}}}");
        oracle.judge_text(case, &with_cluster(&cluster), &[], &verdict).await;
        task.abort();
    }
}

#[tokio::test]
async fn http2_is_disabled_as_for_kubectl() {
    let oracle = Oracle::start().await;
    let key = KeyPair::generate().unwrap();
    let chain = || vec![params("server", false).self_signed(&key).unwrap().der().clone()];
    for (protocol, disabled, verdict) in
        [(&b"h2"[..], "", Works), (b"h2", "yes", Refused("invalid HTTP version")), (b"http/1.1", "yes", Works)]
    {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let (port, task) = gateway_with(oracle.port(), chain(), key, false, protocol).await;
        let text = with_cluster(&format!("{{server: \"https://127.0.0.1:{port}\", insecure-skip-tls-verify: true}}"));
        let case = format!("{}, DISABLE_HTTP2={disabled}", String::from_utf8_lossy(protocol));
        oracle.judge_text(&case, &text, &[("DISABLE_HTTP2", disabled.to_owned())], &verdict).await;
        task.abort();
    }
}

#[tokio::test]
async fn the_systems_ca_bundle_is_used_as_by_kubectl() {
    let oracle = Oracle::start().await;
    // As `openssl req -x509` creates it.
    let key = KeyPair::generate().unwrap();
    let own = params("localhost", true).self_signed(&key).unwrap();
    let (port, _gateway) = gateway(oracle.port(), vec![own.der().clone()], &key, false).await;
    let folder = oracle.write("own.pem", own.pem().as_bytes()).parent().unwrap().to_owned();
    let (file, empty) = (folder.join("own.pem"), folder.join("no-certificates"));
    fs::create_dir(&empty).unwrap();
    let shown = |path: &Path| path.display().to_string();
    let text = with_cluster(&format!("{{server: \"https://127.0.0.1:{port}\"}}"));
    for (case, variables, verdict) in [
        ("SSL_CERT_FILE", vec![("SSL_CERT_FILE", shown(&file))], Works),
        (
            "SSL_CERT_DIR",
            vec![("SSL_CERT_FILE", shown(&oracle.write("none", b""))), ("SSL_CERT_DIR", shown(&folder))],
            Works,
        ),
        ("two folders", vec![("SSL_CERT_DIR", format!("{}:{}", shown(&empty), shown(&folder)))], Works),
        ("neither", vec![], Refused("certificate")),
    ] {
        oracle.judge_text(case, &text, &variables, &verdict).await;
    }
}

/// Made with `openssl x509 -req` without extensions: version 1, valid until 2126.
const VERSION_1: &str = include_str!("keys/version-1.crt");
const KEY_OF_VERSION_1: &str = include_str!("keys/version-1.pem");

/// Returns the PEM block with a header, as in RFC 1421.
fn with_header(pem: &str) -> String {
    pem.replacen("-----\n", "-----\nMade-By: openssl\n\n", 1)
}

#[tokio::test]
async fn client_certificates_are_presented_as_by_kubectl() {
    let oracle = Oracle::start().await;
    let key = KeyPair::generate().unwrap();
    let server = params("server", false).self_signed(&key).unwrap();
    let (port, task) = gateway(oracle.port(), vec![server.der().clone()], &key, true).await;
    let cluster = format!(
        "{{server: \"https://127.0.0.1:{port}\", certificate-authority-data: {}}}",
        STANDARD.encode(server.pem())
    );
    let text = with_cluster(&cluster);
    let client = KeyPair::generate().unwrap();
    let certificate = params("ana", false).self_signed(&client).unwrap().pem();
    oracle.write("both.pem", format!("{KEY_OF_VERSION_1}{VERSION_1}").as_bytes());
    let data = |chain: &str, key: &str| {
        format!("client-certificate-data: {}, client-key-data: {}", STANDARD.encode(chain), STANDARD.encode(key))
    };
    let users = BTreeMap::from([
        ("version 3", (data(&certificate, &client.serialize_pem()), Works)),
        ("version 1", (data(VERSION_1, KEY_OF_VERSION_1), Works)),
        ("both in one file", ("client-certificate: both.pem, client-key: both.pem".to_owned(), Works)),
        ("none", ("as: ''".to_owned(), Refused("requires a client certificate"))),
        ("another's key", (data(&certificate, KEY_OF_VERSION_1), Refused("does not belong"))),
        ("no key", (data(&certificate, &certificate), Refused("no private key"))),
        ("headers", (data(&with_header(&certificate), &with_header(&client.serialize_pem())), Works)),
        (
            "lines that are indented",
            (data(&certificate.replace("-----BEGIN", " -----BEGIN"), KEY_OF_VERSION_1), Refused("no certificate")),
        ),
    ]);
    for (case, (user, verdict)) in &users {
        let user = format!("{{token: \"$TOKEN\", {user}}}");
        oracle.judge_text(case, &text.replace("{token: \"$TOKEN\"}", &user), &[], verdict).await;
    }
    for (case, status, verdict) in [
        (
            "a plugin's token and certificate",
            json!({"token": "$TOKEN", "clientCertificateData": certificate, "clientKeyData": client.serialize_pem()}),
            Works,
        ),
        (
            "a plugin's certificate with a foreign key",
            json!({"token": "$TOKEN", "clientCertificateData": certificate, "clientKeyData": KEY_OF_VERSION_1}),
            Refused("does not belong"),
        ),
        ("a plugin without a certificate", json!({"token": "$TOKEN"}), Refused("requires a client certificate")),
    ] {
        let version = "client.authentication.k8s.io/v1";
        let credential = json!({"kind": "ExecCredential", "apiVersion": version, "status": status}).to_string();
        let file = oracle.write("credential.json", oracle.fill(&credential).as_bytes());
        let user = plugin("v1", &format!("cat {}", file.display()), &[]);
        oracle.judge_text(case, &text.replace("{token: \"$TOKEN\"}", &user), &[], &verdict).await;
    }
    task.abort();
}

/// Each file is a self-signed certificate with its key, made with `openssl req -x509 -newkey`, valid until 2126.
#[tokio::test]
async fn keys_of_every_kind_are_taken_as_by_kubectl() {
    let oracle = Oracle::start().await;
    for (case, pem) in [
        ("RSA of 1024 bits", include_str!("keys/rsa-1024.pem")),
        ("RSA of 1536 bits", include_str!("keys/rsa-1536.pem")),
        ("RSA of 4096 bits", include_str!("keys/rsa-4096.pem")),
        ("P-384", include_str!("keys/p-384.pem")),
        ("P-521", include_str!("keys/p-521.pem")),
        ("Ed25519", include_str!("keys/ed25519.pem")),
    ] {
        let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (port, task) = gateway_with(oracle.port(), chain, key, true, b"http/1.1").await;
        let both = STANDARD.encode(pem);
        let cluster = format!("{{server: \"https://127.0.0.1:{port}\", certificate-authority-data: {both}}}");
        let user = format!("{{token: \"$TOKEN\", client-certificate-data: {both}, client-key-data: {both}}}");
        let text = with_cluster(&cluster).replace("{token: \"$TOKEN\"}", &user);
        oracle.judge_text(case, &text, &[], &Works).await;
        task.abort();
    }
}

#[tokio::test]
async fn no_credentials_go_to_a_server_without_tls() {
    let oracle = Oracle::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        use std::io::Read;
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).unwrap();
        String::from_utf8_lossy(&head[..length]).to_lowercase()
    });
    let path =
        oracle.write("clear", oracle.fill(&with_cluster(&format!("{{server: \"127.0.0.1:{port}\"}}"))).as_bytes());
    let adit = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_adit")).args(["routes", "-n", "shop"]).env("KUBECONFIG", path).output()
    };
    let output = tokio::task::spawn_blocking(move || adit(&path)).await.unwrap().unwrap();
    assert!(!output.status.success());
    let heard = heard.join().unwrap();
    assert!(heard.starts_with("get ") && !heard.contains("authorization"), "{heard}");
}
