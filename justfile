# Commands of this repository; `just` lists them.

default:
    @just --list

# What CI runs
ci:
    .ci/run

# Format, lints, licences
lint:
    cargo fmt --check
    cargo clippy --all-targets --all-features -- -D warnings
    cargo deny --offline check bans licenses sources

# Known vulnerabilities in the dependencies (asks the network)
audit:
    cargo deny check advisories

# The suite: no cluster needed
test:
    cargo test

# The integration suite with the app, the demo cluster and relays on several threads: just test-threads 4
test-threads workers="4":
    ADIT_TEST_WORKERS={{workers}} cargo test --test it

# The end-to-end suite, on the cluster that KUBECONFIG names
e2e:
    cargo test --features e2e --test e2e -- --test-threads 4

# A thousand reloads under load, a thousand slow clients
endurance:
    cargo test --test it endurance:: -- --ignored --test-threads 1

# Takeovers of Services that the other tests use, so alone, on the cluster that KUBECONFIG names
e2e-takeovers:
    cargo test --features e2e --test e2e expose:: -- --ignored --skip api_server

# What happens when parts of the cluster restart or hang; $1 is the program that does that to them
e2e-faults cluster:
    ADIT_E2E_CLUSTER={{cluster}} cargo test --features e2e --test e2e -- --ignored --test-threads 1

# What people see, in the Chromium of the PATH (or of ADIT_CHROMIUM)
browser:
    #!/usr/bin/env bash
    set -euo pipefail
    # axe-core (MPL-2.0) judges the dashboard; it is fetched for the test, and the test says so where it is not there.
    axe=target/axe/package/axe.min.js
    [ -e "$axe" ] || { command -v npm >/dev/null && mkdir -p target/axe && (cd target/axe && npm pack --silent axe-core@4 >/dev/null && tar xf axe-core-*.tgz package/axe.min.js); } || true
    if [ -e "$axe" ]; then export ADIT_AXE=$PWD/$axe; else echo "axe-core cannot be fetched: accessibility is not judged"; fi
    cargo test --features browser --test it browser:: -- --test-threads 1

# The pictures of docs/images/dashboard, of a demo that has run for some minutes; pngquant makes them small
pictures:
    ADIT_PICTURES=$PWD/docs/images/dashboard cargo test --features browser --test it browser::pictures -- --ignored
    pngquant --force --ext .png --skip-if-larger docs/images/dashboard/*.png

# adit beside kubectl, on the cluster that KUBECONFIG names: just bench-peers [--rounds 3] [--round-trip 20]
bench-peers *options:
    cargo bench --features e2e --bench compare -- {{options}}

# What people wait for when the cluster is far away, on the cluster that KUBECONFIG names: just bench-far [--round-trip 50] [--rate 100] [--loss 1] [--rounds 3]
bench-far *options:
    cargo bench --features e2e --bench compare -- far {{options}}

# adit's relay beside those of bore, rathole and frp that are in PATH: cargo install bore-cli rathole
bench-relay:
    cargo bench --bench relay

# Requests and bytes by the processors that adit has
bench-cores *options:
    cargo bench --bench scale -- cores {{options}}

# Memory and CPU by how many connections, tunnels, routes and Services there are: just bench-growth [--most 1000]
bench-growth *options:
    cargo bench --bench scale -- growth {{options}}

# The parsers and the writer, measured
bench:
    cargo bench --bench parsers

# Mixed load for a while, and what is left after it: just soak 10m
soak time="1m":
    cargo bench --bench soak -- {{time}}

# Fuzz one parser for a while: just fuzz client_hello 60
fuzz target seconds="60":
    cd tests/fuzz && cargo +nightly fuzz run --fuzz-dir . {{target}} -- -max_total_time={{seconds}}

# HTTP/2 conformance, on the address of a running adit: just h2spec 8989
h2spec port:
    h2spec --host 127.0.0.1 --port {{port}} --path /
    h2spec --host 127.0.0.1 --port {{port}} --path / --tls --insecure

# gRPC's own interoperability suite, through a running adit, to a name that leads to its server and resolves here (needs Go)
grpc-interop host port:
    #!/usr/bin/env bash
    set -euo pipefail
    folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
    go mod init interop 2>/dev/null && go get google.golang.org/grpc/interop/client@latest 2>/dev/null
    go build -o client google.golang.org/grpc/interop/client
    for case in empty_unary large_unary client_streaming server_streaming ping_pong empty_stream timeout_on_sleeping_server \
      cancel_after_begin cancel_after_first_response status_code_and_message special_status_message custom_metadata \
      unimplemented_method unimplemented_service; do
      ./client --server_host={{host}} --server_port={{port}} --test_case="$case" 2>/dev/null && echo "$case ok" || { echo "$case FAILED"; exit 1; }
    done

# The demo, from source
demo:
    cargo run -- demo

# Archives for Linux in target/archives, with manual pages, completions, units, checksums and lists of what is in the binaries (SBOM): the same bytes each time. cargo install cargo-auditable cargo-cyclonedx
dist *targets="x86_64-unknown-linux-musl":
    #!/usr/bin/env bash
    set -euo pipefail
    export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    export RUSTFLAGS="--remap-path-prefix=$PWD=/adit --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    rm -rf target/archives && mkdir -p target/archives
    for target in {{targets}}; do
      rustup target add "$target" >/dev/null
      cargo auditable build --profile dist --locked --target "$target"
      # It writes beside Cargo.toml, and the folder's path into the list.
      cargo cyclonedx --format json --target "$target"
      sed "s,$PWD,/adit,g" adit.cdx.json > "target/archives/adit-$target.cdx.json" && rm adit.cdx.json
      name=adit-$target-v$version; folder=target/archives/$name; binary=target/$target/dist/adit
      mkdir -p "$folder"
      cp "$binary" LICENSE README.md CHANGELOG.md "$folder/"
      # A binary of another processor cannot write its pages here.
      runs=$("$binary" version >/dev/null 2>&1 && echo "$binary" || echo target/dist/adit)
      [ -x "$runs" ] || cargo auditable build --profile dist --locked
      "$runs" package "$folder"
      tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
        -C target/archives -cf - "$name" | gzip -n -9 > "target/archives/$name.tar.gz"
    done
    (cd target/archives && sha256sum *.tar.gz > SHA256SUMS && cat SHA256SUMS)

# The manifests of krew and Homebrew for the archives of `just dist`, in target/manifests. `url`: the folder that will have the archives
manifests url:
    cargo run --locked -q -- package target/manifests --archives target/archives/SHA256SUMS --url {{url}}

# A .deb and an .rpm for this machine: cargo install cargo-auditable cargo-deb cargo-generate-rpm
packages target="x86_64-unknown-linux-musl":
    rustup target add {{target}}
    cargo auditable build --profile dist --locked --target {{target}}
    target/{{target}}/dist/adit package target/package
    cp target/{{target}}/dist/adit target/package/adit
    cargo deb --no-build
    cargo generate-rpm

# The pages of docs/ that the program writes: the configuration, the API and the command line
docs:
    cargo run --locked -q -- schema -o markdown > docs/configuration.md
    cargo run --locked -q -- schema --api > docs/api.schema.json
    cargo run --locked -q -- doctor -o schema > docs/doctor.schema.json
    cargo run --locked -q -- package target/package && cp target/package/cli.md target/package/errors.md docs/reference/
