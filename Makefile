# Two things to try first: `make demo` and `make test`. Both fetch what is missing, ask nothing and
# need no container engine.
.PHONY: help setup servers demo example test lint footprint static deb simulate fuzz bench bench-drain bench-latency bench-exactly-once bench-growth bench-memory bench-producer bench-sql performance instructions mutants torture capture clean

help:
	@echo 'make demo    commit facts in PostgreSQL and see them arrive in Kafka'
	@echo 'make example the same with two services of axum and sqlx, of which one is killed'
	@echo 'make test    lint, then every test, on real servers'
	@echo 'make lint    formatting, clippy, documentation'
	@echo 'make bench   how fast the protocol crate decodes, beside its rivals, and what each part of'
	@echo '             a fact'"'"'s way through the relay takes'
	@echo 'make instructions   the same in instructions, beside an earlier commit; ARGS=--prove slows'
	@echo '             a copy down, which must be found'
	@echo 'make bench-producer   what a record costs, beside rskafka and librdkafka'
	@echo 'make bench-drain   how fast a backlog drains, beside a raw reader and pg_recvlogical'
	@echo 'make bench-latency   from commit to consumer, beside the floor; ARGS=--help for all four'
	@echo 'make bench-exactly-once   both again, at least once and exactly once in turns'
	@echo 'make bench-growth   how the cost of a fact grows with whatever there is more of'
	@echo 'make bench-memory   peak memory when Kafka is down, facts are large, topics many'
	@echo 'make performance   tables and plots of docs/performance.md anew, and each bar: met or missed'
	@echo 'make bench-sql   what factlib.emit costs, beside the bare pg_logical_emit_message'
	@echo 'make simulate the engine under faults drawn from a seed (SEEDS=100000 FROM=10000)'
	@echo 'make fuzz    fuzz what takes bytes from strangers, 20 seconds a target (SECONDS=...)'
	@echo 'make torture the release binary between real servers under every fault at once,'
	@echo '             MINUTES=3 SEED=1 unless said, TABLE=FILE for the table; DELIVERY=exactly-once'
	@echo '             for facts in Kafka transactions'
	@echo 'make footprint what the binary takes: its size, its start, and while it idles'
	@echo 'make static  a binary without any shared library (musl), looked at and run'
	@echo 'make deb     a Debian package, into target/debian'
	@echo 'make mutants break the protocol crate on purpose: do its tests notice?'
	@echo 'make capture record what PostgreSQL 14 to 18 say, for the protocol crate'
	@echo 'make setup   only fetch PostgreSQL and Apache Kafka, and install what tests use'
	@echo 'make clean   remove what was built (not what was fetched)'
	@echo 'PG_MAJOR=14..18 chooses PostgreSQL, KAFKA_VERSION=3.9.1 an older Kafka,'
	@echo 'FACTLIB_CACHE the folder of downloads.'

setup demo example test lint footprint static deb:
	@scripts/$@

# Without what only tests use.
servers:
	@cargo run --quiet --package testkit -- setup

simulate:
	SIMULATE_SEEDS=$(or $(SEEDS),100000) SIMULATE_FROM=$(or $(FROM),0) \
	  cargo test --features seeded-bugs --test simulation -- --nocapture nothing_is_lost

fuzz:
	scripts/fuzz $(SECONDS)

# A table of one run: what an earlier one left would stand beside it.
bench:
	rm -rf benches/protocol/target/criterion
	cd benches/protocol && cargo bench --bench rivals -- $(ARGS) && cargo run --quiet --release --bin table
	cd benches/hot-path && cargo bench --bench parts -- $(ARGS) && cargo run --quiet --release -- table

instructions:
	@scripts/instructions $(ARGS)

capture:
	cargo run --quiet --package testkit -- capture protocol/tests/fixtures

mutants:
	@scripts/mutants

MINUTES ?= 3
SEED ?= 1
torture: servers
	@scripts/torture --minutes $(MINUTES) --seed $(SEED) $(if $(TABLE),--table $(TABLE)) \
	  $(if $(DELIVERY),--delivery $(DELIVERY)) $(ARGS)

# Beside rskafka's own client and librdkafka, which is built from source for it.
bench-producer: servers
	cd benches/producer && cargo run --release -- $(ARGS)

# The relay as it ships, between real servers. Runs are added to target/performance, or with ARGS='--out FOLDER'.
bench-drain bench-latency bench-growth bench-memory: servers
	cargo build --quiet --locked --profile dist --bin owlpost
	cargo run --quiet --locked --release --manifest-path benches/relay/Cargo.toml -- $(@:bench-%=%) \
	  --binary $(or $(CARGO_TARGET_DIR),target)/dist/owlpost $(ARGS)

# In Kafka transactions, beside the same without: what is asked for once differs by what ARGS say for both.
bench-exactly-once: servers
	cargo build --quiet --locked --profile dist --bin owlpost
	for benchmark in 'drain --cases base,one' 'latency --rates 100,1000'; do \
	  cargo run --quiet --locked --release --manifest-path benches/relay/Cargo.toml -- $$benchmark \
	    --delivery both --binary $(or $(CARGO_TARGET_DIR),target)/dist/owlpost $(ARGS) || exit; \
	done

# From the runs in docs/performance.
performance:
	cargo run --quiet --locked --release --manifest-path benches/relay/Cargo.toml -- render $(ARGS)

# What is measured is the server: no need to build the relay for release.
bench-sql: servers
	cargo bench --profile dev --bench emit_sql -- $(ARGS)

clean:
	cargo clean
	rm -rf clients/java/target clients/typescript/dist clients/typescript/node_modules
