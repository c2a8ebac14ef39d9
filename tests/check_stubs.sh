#!/bin/sh
# Regenerates the stubs into a temporary folder and fails if the committed ones differ.
set -eu
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python -m grpc_tools.protoc -Izero/wire=proto --python_out="$out" --mypy_out="$out" --grpc_python_out="$out" --mypy_grpc_out="$out" proto/*.proto >/dev/null 2>&1
for stub in "$out"/zero/wire/*; do
  cmp -s "$stub" "zero/wire/$(basename "$stub")" || {
    echo "zero/wire/$(basename "$stub") differs from what proto/ generates: run \`make stubs\` and commit." >&2
    exit 1
  }
done
echo "Generated stubs match proto/."
