# A static binary on nothing else: docker build -t adit .
# For the other processor: --platform linux/arm64, or linux/amd64. Where the builder knows no platforms: --build-arg TARGETARCH=arm64.
ARG RUST_VERSION=1.95
FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-bookworm AS build
# Set by builders that know platforms; a default here would hide what they say.
ARG TARGETARCH
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates musl-tools \
      gcc-x86-64-linux-gnu libc6-dev-amd64-cross gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# AWS-LC has C and assembly of its own; the rest is Rust.
RUN set -eu; \
    case "${TARGETARCH:=$(dpkg --print-architecture)}" in \
      amd64) target=x86_64-unknown-linux-musl; gcc=x86_64-linux-gnu-gcc ;; \
      arm64) target=aarch64-unknown-linux-musl; gcc=aarch64-linux-gnu-gcc ;; \
      *) echo "TARGETARCH is amd64 or arm64, not $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    rustup target add "$target"; \
    variable=$(echo "$target" | tr a-z- A-Z_); \
    export "CARGO_TARGET_${variable}_LINKER=rust-lld" "CC_$(echo "$target" | tr - _)=$gcc"; \
    cargo build --profile dist --locked --target "$target"; \
    install -d -m 1777 /out/root/tmp; \
    install -D "target/$target/dist/adit" /out/adit; \
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/ca-certificates.crt

FROM scratch
LABEL org.opencontainers.image.title="adit" \
      org.opencontainers.image.description="Open every Service of a Kubernetes cluster by name, on demand" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/root/ /
COPY --from=build /out/adit /adit
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt HOME=/tmp
USER 65532:65532
EXPOSE 8989 7835
ENTRYPOINT ["/adit"]
# Loopback of a container is nobody's: publish the port to the host's loopback, docker run -p 127.0.0.1:8989:8989.
CMD ["up", "--listen", "0.0.0.0:8989"]
