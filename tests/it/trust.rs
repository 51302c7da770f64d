//! https without warnings, checked with the programs themselves, if they are installed: OpenSSL, curl, Python, Node, Go and Java.
//! `browser::trust` checks the browsers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use adit::trust::Authority;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::process::Process;

/// Two names for which adit terminates TLS.
pub const NAMES: [&str; 2] = ["web.shop.localhost", "tools.shop.localhost"];

/// A public name, which the CA must not be able to certify, and a local one, which it can.
pub const STOLEN: &str = "www.example.com";
pub const LOCAL: &str = "other.localhost";

/// Returns the CA below a home folder.
fn authority(home: &Path) -> Authority {
    Authority::load(&home.join(".local/share/adit/ca")).unwrap().expect("it was installed")
}

/// Serves https with a certificate for one name, signed by the CA's key. Returns the port.
pub async fn server(home: &Path, name: &str) -> u16 {
    let authority = authority(home);
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    (params.not_before, params.not_after) = ((now - hour).into(), (now + hour).into());
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &authority.issuer().unwrap()).unwrap();
    let chain = vec![leaf.der().clone(), authority.issuing().clone()];
    let config = ServerConfig::builder_with_provider(adit::tls::provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let page = "<!doctype html><title>it is me</title>it is me";
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: ";
                let _ = stream.write_all(format!("{head}{}\r\n\r\n{page}", page.len()).as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

/// Waits until adit uses the new CA; it looks for one every second while it has connections.
pub async fn takes_up(person: &Process) {
    let port = person.http.port();
    let name = NAMES[0];
    let open = format!(
        "eval \"$(adit trust env)\"; until openssl s_client -connect 127.0.0.1:{port} -servername {name} -verify_return_error \
         </dev/null >/dev/null 2>&1; do sleep 0.2; done"
    );
    let (is_taken_up, said) = person.shell(&open).await;
    assert!(is_taken_up, "{said}");
}

/// A program that opens `https://$NAME:$PORT/` at 127.0.0.1, and succeeds if it trusts the certificate.
struct Program {
    name: &'static str,
    /// Script that succeeds if the program is installed, and prepares the working folder.
    prepare: &'static str,
    open: &'static str,
}

const OPENSSL: Program = Program {
    name: "openssl",
    prepare: "",
    open: "eval \"$(adit trust env)\"; openssl s_client -connect 127.0.0.1:$PORT -servername $NAME -verify_hostname $NAME \
           -verify_return_error </dev/null",
};

const CURL: Program = Program {
    name: "curl",
    prepare: "",
    open: "eval \"$(adit trust env)\"; curl -sS --max-time 30 --noproxy '*' --resolve $NAME:$PORT:127.0.0.1 -o answer https://$NAME:$PORT/",
};

const PYTHON: Program = Program {
    name: "Python",
    prepare: "python3 -c 'import ssl'
cat >ask.py <<'END'
import os, socket, ssl
context = ssl.create_default_context()
context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(('127.0.0.1', int(os.environ['PORT'])), 30) as plain:
    with context.wrap_socket(plain, server_hostname=os.environ['NAME']):
        pass
END
",
    open: "eval \"$(adit trust env)\"; python3 ask.py",
};

const NODE: Program = Program {
    name: "Node",
    prepare: "node -e 0
cat >ask.js <<'END'
const { NAME, PORT } = process.env;
const socket = require('tls').connect({ host: '127.0.0.1', port: +PORT, servername: NAME }, () => process.exit(0));
socket.on('error', (error) => { console.error(error); process.exit(1); });
END
",
    open: "eval \"$(adit trust env)\"; node ask.js",
};

const GO: Program = Program {
    name: "Go",
    prepare: "go version
cat >ask.go <<'END'
package main

import (
	\"crypto/tls\"
	\"log\"
	\"os\"
)

func main() {
	config := &tls.Config{ServerName: os.Getenv(\"NAME\")}
	if _, err := tls.Dial(\"tcp\", \"127.0.0.1:\"+os.Getenv(\"PORT\"), config); err != nil {
		log.Fatal(err)
	}
}
END
GOFLAGS= GOTOOLCHAIN=local go build -o ask ask.go
",
    open: "eval \"$(adit trust env)\"; ./ask",
};

const JAVA: Program = Program {
    name: "Java",
    prepare: "javac -version
cat >Ask.java <<'END'
import javax.net.ssl.*;
import java.util.List;

public class Ask {
    public static void main(String[] none) throws Exception {
        int port = Integer.parseInt(System.getenv(\"PORT\"));
        SSLSocket socket = (SSLSocket) SSLSocketFactory.getDefault().createSocket(\"127.0.0.1\", port);
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setServerNames(List.of(new SNIHostName(System.getenv(\"NAME\"))));
        socket.setSSLParameters(parameters);
        socket.startHandshake();
        // The factory alone checks no name, as a client of HTTP does.
        Object name = ((java.security.cert.X509Certificate) socket.getSession().getPeerCertificates()[0])
            .getSubjectAlternativeNames().iterator().next().get(1);
        if (!name.equals(System.getenv(\"NAME\"))) throw new SSLException(\"it is for \" + name);
    }
}
END
javac Ask.java
",
    open: "adit run -q -- java Ask",
};

/// Sets Go's cache: compiling its library for every new home folder would take a minute.
fn go_cache() -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    let cache = std::env::var("GOCACHE").unwrap_or(format!("{home}/.cache/go-build"));
    format!("GOCACHE='{cache}'")
}

impl Program {
    /// Asserts that it opens adit's names, but no names that a stolen key could sign.
    async fn trusts(&self) {
        let person = Process::start("", &[]).await;
        let home = person.home().to_owned();
        let folder = home.join("program");
        fs::create_dir(&folder).unwrap();
        let (is_there, said) = person.shell(&format!("cd program; export {}\n{}", go_cache(), self.prepare)).await;
        // The other programs are not on every machine.
        if !is_there {
            assert!(self.name != "openssl" && self.name != "curl", "{said}");
            return;
        }
        let ask = |name: &'static str, port: u16| {
            let script = format!("cd program; export NAME={name} PORT={port}\n{}", self.open);
            let person = &person;
            async move { person.shell(&script).await }
        };
        let adit = person.http.port();
        let (is_opened, said) = ask(NAMES[0], adit).await;
        assert!(!is_opened, "{} without a CA: {said}", self.name);
        let (is_installed, said) = person.shell("adit trust install").await;
        assert!(is_installed, "{said}");
        takes_up(&person).await;
        let (of_thief, of_local) = (server(&home, STOLEN).await, server(&home, LOCAL).await);
        for (name, port) in [(NAMES[0], adit), (NAMES[1], adit), (LOCAL, of_local)] {
            let (is_opened, said) = ask(name, port).await;
            assert!(is_opened, "{} refuses {name}: {said}", self.name);
        }
        let (is_opened, said) = ask(STOLEN, of_thief).await;
        assert!(!is_opened, "{} takes {STOLEN}: {said}", self.name);
    }
}

#[tokio::test]
async fn openssl_trusts_local_names_alone() {
    OPENSSL.trusts().await;
}

#[tokio::test]
async fn curl_trusts_local_names_alone() {
    CURL.trusts().await;
}

#[tokio::test]
async fn python_trusts_local_names_alone() {
    PYTHON.trusts().await;
}

#[tokio::test]
async fn node_trusts_local_names_alone() {
    NODE.trusts().await;
}

#[tokio::test]
async fn go_trusts_local_names_alone() {
    GO.trusts().await;
}

#[tokio::test]
async fn java_below_adit_run_trusts_local_names_alone() {
    JAVA.trusts().await;
}

/// Returns every file below the folders of stores, with its bytes.
fn files(home: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![home.join(".pki"), home.join(".mozilla"), home.join(".local")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => _ = found.insert(entry.path(), fs::read(entry.path()).unwrap()),
            }
        }
    }
    found
}

#[tokio::test]
async fn uninstall_leaves_every_store_as_it_was_and_twice_is_once() {
    let person = Process::start("", &[]).await;
    let home = person.home();
    let profile = home.join(".mozilla/firefox/a.default");
    fs::create_dir_all(&profile).unwrap();
    let create = "certutil -N --empty-password -d sql:.mozilla/firefox/a.default";
    let has_certutil = person.shell(create).await.0;
    if !has_certutil {
        fs::write(profile.join("cert9.db"), "").unwrap();
    }
    let before = files(home);
    let (is_installed, first) = person.shell("adit trust install").await;
    assert!(is_installed, "{first}");
    let installed = files(home);
    assert_ne!(installed, before);
    let (_, second) = person.shell("adit trust install").await;
    assert_eq!((second.as_str(), files(home)), (first.as_str(), installed), "twice is once");
    let lines = |start: &str| first.lines().filter(|line| line.starts_with(start)).count();
    match has_certutil {
        true => assert_eq!(lines("trusts    Chromium") + lines("trusts    Firefox"), 2, "{first}"),
        false => assert_eq!(lines("skipped   "), 2, "{first}"),
    }
    let (is_clean, said) = person.shell("adit trust uninstall").await;
    assert!(is_clean, "{said}");
    assert_eq!(files(home), before);
    let (is_clean, said) = person.shell("adit trust uninstall").await;
    assert!(is_clean && said == "there is no CA\n", "{said}");
}

#[tokio::test]
async fn what_is_missing_is_one_sentence_each() {
    let person = Process::start("", &[]).await;
    let (is_installed, said) = person.shell("adit=$(command -v adit); PATH=/nowhere $adit trust install").await;
    assert!(is_installed, "one store that cannot be changed stops nothing: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("certutil")).collect();
    let [line] = lines.as_slice() else { panic!("{said}") };
    assert!(line.starts_with("skipped   Chromium") && line.contains("apt install libnss3-tools"), "{line}");
    let of_system: Vec<&str> = said.lines().filter(|line| line.contains("the system")).collect();
    let [line] = of_system.as_slice() else { panic!("{said}") };
    assert!(
        line.starts_with("root      the system") && line.contains("sudo install ") || line.contains("not known"),
        "{line}"
    );
    assert!(!person.home().join(".pki").exists());
}

/// Returns the number of adit's CAs in Chromium's database.
async fn in_chromium(person: &Process) -> usize {
    let (_, listed) = person.shell("certutil -L -d sql:.pki/nssdb").await;
    listed.lines().filter(|line| line.starts_with("adit ")).count()
}

#[tokio::test]
async fn a_ca_with_a_broken_file_is_told_replaced_and_removed() {
    let person = Process::start("", &[]).await;
    if !person.shell("command -v certutil").await.0 {
        return;
    }
    let run = async |script: &str| {
        let (is_well, said) = person.shell(script).await;
        assert!(is_well, "{script}: {said}");
        said
    };
    for harm in ["rm key.pem", "echo { > authority.json", ": > issuing.pem", ": > cert.pem", "rm authority.json"] {
        let harm = format!("cd .local/share/adit/ca; {harm}");
        run("adit trust install").await;
        run(&harm).await;
        let (is_well, said) = person.shell("adit trust status").await;
        assert!(!is_well && said.contains("adit trust install"), "{harm}: {said}");
        let said = run("adit trust install").await;
        assert!(said.starts_with("replaced  the CA in "), "{harm}: {said}");
        run("adit trust status").await;
        assert_eq!(in_chromium(&person).await, 1, "{harm}: the new one alone");
        run(&harm).await;
        let said = run("adit trust uninstall").await;
        assert!(said.ends_with("deleted   the CA and its key\n"), "{harm}: {said}");
        assert_eq!((in_chromium(&person).await, run("adit trust status").await.contains("no CA")), (0, true), "{harm}");
        assert_eq!(files(person.home()), BTreeMap::new());
    }
}

#[tokio::test]
async fn a_ca_that_could_not_be_removed_stays_known() {
    let person = Process::start("", &[]).await;
    if !person.shell("command -v certutil").await.0 {
        return;
    }
    let without = async |arguments: &str| {
        person.shell(&format!("adit=$(command -v adit); PATH=/nowhere $adit trust {arguments}")).await
    };
    assert!(person.shell("adit trust install").await.0);
    let (is_clean, said) = without("uninstall").await;
    assert!(!is_clean && said.contains("the CA stays"), "{said}");
    // The new CA covers more names.
    let (is_replaced, said) = without("install --names example.com").await;
    assert!(!is_replaced && said.contains("CA        replaced") && said.contains("example.com"), "{said}");
    let (_, said) = person.shell("adit trust status").await;
    assert!(said.contains("still     Chromium"), "{said}");
    let (is_well, said) = person.shell("adit trust install").await;
    assert!(is_well && said.contains("clean     Chromium"), "{said}");
    assert_eq!(in_chromium(&person).await, 1);
    without("install --names example.org").await;
    let (is_clean, said) = person.shell("adit trust uninstall").await;
    assert!(is_clean && said.matches("CA        ").count() == 2, "{said}");
    assert_eq!((in_chromium(&person).await, files(person.home())), (0, BTreeMap::new()));
}

#[tokio::test]
async fn several_installs_at_once_make_one_ca() {
    let person = Process::start("", &[]).await;
    let (_, said) = person.shell("for i in 1 2 3; do adit trust install & done; wait; adit trust status").await;
    let of = said.lines().filter(|line| line.starts_with("CA  ")).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(of.len(), 1, "{said}");
    assert!(!said.contains("failed") && !said.contains("lacks"), "{said}");
}

#[tokio::test]
async fn the_command_that_check_prints_covers_every_name() {
    let person = Process::start("", &[]).await;
    assert!(person.shell("adit trust install").await.0);
    let routes =
        ["solo", "shop.example.test"].map(|host| format!("{host}: {{namespace: shop, service: web}}")).join(", ");
    fs::write(person.home().join("my routes.yaml"), format!("http: {{k8s: {{routes: {{{routes}}}}}}}\n")).unwrap();
    let (_, said) = person.shell("adit check 'my routes.yaml'").await;
    let notes: Vec<&str> = said.lines().filter(|line| line.starts_with("note: https for ")).collect();
    assert_eq!(notes.len(), 2, "{said}");
    let (_, command) = notes[0].split_once(" needs '").unwrap();
    let (is_well, said) = person.shell(command.strip_suffix('\'').unwrap()).await;
    assert!(is_well && said.contains("solo"), "{said}");
    assert!(!person.shell("adit check 'my routes.yaml'").await.1.contains("note: https"));
    for (name, why) in [("192.0.2.1", "is an address"), ("solo", "host name with a dot")] {
        let (is_taken, said) = person.shell(&format!("adit trust install --names {name}")).await;
        assert!(!is_taken && said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn what_adit_run_starts_knows_the_ca_whatever_is_set_already() {
    let person = Process::start("", &[]).await;
    let (is_installed, said) = person.shell("adit trust install").await;
    assert!(is_installed, "{said}");
    let other = Authority::create(&person.home().join("other"), "corporation", &[]).unwrap();
    let set =
        format!("export CURL_CA_BUNDLE='{0}' SSL_CERT_FILE='{0}' NODE_EXTRA_CA_CERTS='{0}'", other.file().display());
    let print = "echo \"$CURL_CA_BUNDLE $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS\"; tail -n 3 \"$CURL_CA_BUNDLE\"";
    let certificate = |file: PathBuf| fs::read_to_string(file).unwrap().replace(['\r', '\n'], "");
    let (ok, said) = person.shell(&format!("{set}; adit run -q -- sh -c '{print}'")).await;
    assert!(ok && !said.contains(&other.file().display().to_string()), "{said}");
    let bundle = PathBuf::from(said.split(' ').next().unwrap());
    let of_bundle = certificate(bundle);
    for one in [other.file(), authority(person.home()).file()] {
        let wanted = certificate(one);
        assert!(of_bundle.contains(wanted.trim_start_matches("-----BEGIN CERTIFICATE-----")), "both CAs are there");
    }
    let (ok, said) = person.shell(&format!("{set}; adit run -q --keep-env -- sh -c '{print}'")).await;
    assert!(ok && said.contains(&other.file().display().to_string()), "{said}");
}
