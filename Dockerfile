# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS source
WORKDIR /src
COPY . .

FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist --package factlib --bin owlpost \
    && install -D target/dist/owlpost /out/owlpost

FROM source AS build-static
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools \
    && rustup target add "$(uname -m)-unknown-linux-musl"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist --package factlib --bin owlpost --target "$(uname -m)-unknown-linux-musl" \
    && install -D "target/$(uname -m)-unknown-linux-musl/dist/owlpost" /out/owlpost

# `docker build --target static .`: not even a C library; the system's authorities and nothing else.
FROM gcr.io/distroless/static-debian12:nonroot AS static
COPY --from=build-static /out/owlpost /usr/local/bin/owlpost
EXPOSE 3001
EXPOSE 2112
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/owlpost"]
CMD ["run"]

# Without --target. glibc and nothing else: no shell, no package manager, not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/owlpost /usr/local/bin/owlpost
EXPOSE 3001
EXPOSE 2112
# SIGTERM reads on to the current commit, waits for Kafka and confirms.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/owlpost"]
CMD ["run"]
