#!/bin/sh
# Lints proto/ with buf's STANDARD rules. Needs npx (Node.js), whose package carries the buf binary.
set -eu
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# The files import each other by the virtual path under which their stubs are generated.
mkdir -p "$out/zero/wire"
cp proto/*.proto "$out/zero/wire/"
# That path follows the Python package, not the proto package, hence the one exception.
config='{"version":"v2","lint":{"use":["STANDARD","COMMENTS"],"except":["PACKAGE_DIRECTORY_MATCH"]}}'
cd "$out"
npx --yes "@bufbuild/buf@${BUF_VERSION:-1.75.0}" lint --config "$config" .
echo "proto/ passes buf lint."
