#!/bin/sh
# Proves that factlib-protocol needs neither std nor libc: builds it into a program that has neither,
# logs in with it, and reads a stream.
set -eu
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked --quiet --target-dir "$target"
cc -O1 -static -nostdlib -ffreestanding -fno-stack-protector -fno-builtin -fno-tree-loop-distribute-patterns \
    -Wall -Wextra -Werror -Wl,--gc-sections -Wl,--fatal-warnings \
    start.c "$target/release/libno_std_proof.a" -o "$target/no-std-proof"
"$target/no-std-proof"
echo "factlib-protocol needs no std: $(wc -c <"$target/no-std-proof") bytes, statically linked with nothing"
