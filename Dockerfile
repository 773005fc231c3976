# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist --package factlib --bin owlpost \
    && install -D target/dist/owlpost /out/owlpost

# glibc and nothing else: no shell, no package manager, not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/owlpost /usr/local/bin/owlpost
EXPOSE 3001
EXPOSE 2112
# SIGTERM reads on to the current commit, waits for Kafka and confirms.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/owlpost"]
CMD ["run"]
