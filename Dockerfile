# The image: the program, the libraries it names, certificates, a user, and nothing else. No shell.
#   docker build -t agent-executor:dev --build-arg GIT_COMMIT=$(git rev-parse HEAD) .
ARG RUST_VERSION=1.95

FROM docker.io/library/rust:${RUST_VERSION}-bookworm AS build
WORKDIR /source
# Whole-program optimization makes the program a tenth smaller; the paths of this machine are no part of it.
ENV CARGO_PROFILE_RELEASE_LTO=fat \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
    CARGO_INCREMENTAL=0 \
    RUSTFLAGS="--remap-path-prefix=/source=. --remap-path-prefix=/usr/local/cargo=cargo"
# Dependencies first, behind sources that do nothing: this layer changes with Cargo.lock only.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin agent-executor \
    && rm -r src
COPY src src
COPY graph-definitions graph-definitions
COPY tool-hosts tool-hosts
ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
# Cargo goes by times, and those of the copied files may be older than the layer before.
RUN find src -exec touch {} + && cargo build --release --locked --bin agent-executor

FROM build AS rootfs
ARG SOURCE_DATE_EPOCH=0
COPY scripts/image-rootfs.sh /usr/local/bin/
RUN image-rootfs.sh target/release/agent-executor /rootfs

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
