# The image: the program, the libraries it names, certificates, a user, and nothing else. No shell.
#   docker build -t agent-executor:dev --build-arg GIT_COMMIT=$(git rev-parse HEAD) .
# With what tools that are scripts need, Python and util-linux (see docs/operations.md, "Scripts"):
#   docker build -t agent-executor:dev-scripts --target with-scripts .
# Both bases may be given with their digest: --build-arg RUST_IMAGE=registry/rust:1.95-bookworm@sha256:…
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
# Debian's release must be that of RUST_IMAGE: the program names its C library.
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /source
# The paths of this machine are no part of the program.
ENV CARGO_INCREMENTAL=0 \
    RUSTFLAGS="--remap-path-prefix=/source=. --remap-path-prefix=/usr/local/cargo=cargo"
# Dependencies first, behind sources that do nothing: this layer changes with Cargo.lock only.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --locked --bin agent-executor \
    && rm -r src
COPY src src
COPY graph-definitions graph-definitions
COPY tool-hosts tool-hosts
ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
# Cargo goes by times, and those of the copied files may be older than the layer before.
# Packed relocations make the program a megabyte smaller; Debian's C library reads them since 12.
RUN find src -exec touch {} + \
    && cargo rustc --profile dist --locked --bin agent-executor -- -C link-arg=-Wl,-z,pack-relative-relocs

FROM build AS rootfs
ARG SOURCE_DATE_EPOCH=0
COPY scripts/image-rootfs.sh /usr/local/bin/
RUN image-rootfs.sh target/dist/agent-executor /rootfs

FROM ${PYTHON_IMAGE} AS with-scripts
ARG VERSION=0.1.0
ARG GIT_COMMIT=unknown
LABEL org.opencontainers.image.title="agent-executor with Python" \
      org.opencontainers.image.description="Runs agent graphs from NATS JetStream, and tools that are scripts" \
      org.opencontainers.image.source="https://github.com/agent-executor/agent-executor" \
      org.opencontainers.image.documentation="https://github.com/agent-executor/agent-executor/blob/main/docs/operations.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}"
COPY --from=rootfs /rootfs/usr/local/bin/agent-executor /usr/local/bin/agent-executor
COPY --from=rootfs /rootfs/etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PYTHON_TOOLS=enabled
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=6 CMD ["/usr/local/bin/agent-executor", "probe"]
ENTRYPOINT ["/usr/local/bin/agent-executor"]
CMD ["serve"]

FROM scratch
ARG VERSION=0.1.0
ARG GIT_COMMIT=unknown
LABEL org.opencontainers.image.title="agent-executor" \
      org.opencontainers.image.description="Runs agent graphs from NATS JetStream with a Postgres checkpoint per thread" \
      org.opencontainers.image.source="https://github.com/agent-executor/agent-executor" \
      org.opencontainers.image.documentation="https://github.com/agent-executor/agent-executor/blob/main/docs/operations.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}"
COPY --from=rootfs /rootfs/ /
ENV PATH=/usr/local/bin
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=6 CMD ["/usr/local/bin/agent-executor", "probe"]
ENTRYPOINT ["/usr/local/bin/agent-executor"]
CMD ["serve"]
