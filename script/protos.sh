#!/bin/sh
# Usage: protos.sh CACHE PROTOC_GEN_GO_VERSION PROTOC_GEN_GO_TTRPC_VERSION [OUT]
# Generates the Go code of api/ (below OUT, default the tree itself).
set -eu
cd "$(dirname "$0")/.."
cache=$1/protos-$2-$3
out=${4:-.}

if ! command -v protoc >/dev/null; then
	echo "protos: protoc is missing; run: apt-get install protobuf-compiler" >&2
	exit 1
fi
if [ ! -x "$cache/protoc-gen-go-ttrpc" ]; then
	GOBIN=$cache go install "google.golang.org/protobuf/cmd/protoc-gen-go@$2"
	GOBIN=$cache go install "github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc@$3"
fi
for proto in api/*/v*/*.proto; do
	dir=$(dirname "$proto")
	mkdir -p "$out/$dir"
	PATH=$cache:$PATH protoc -I "$dir" \
		--go_out="$out/$dir" --go_opt=paths=source_relative \
		--go-ttrpc_out="$out/$dir" --go-ttrpc_opt=paths=source_relative \
		"$(basename "$proto")"
done
