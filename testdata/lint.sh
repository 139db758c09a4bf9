#!/bin/bash
# lint.sh - gofmt, vet, staticcheck; the last is pinned and fetched by the go
# tool, which verifies it against the checksum database.
set -euo pipefail
cd "$(dirname "$0")/.."

# out has copies of libraries (testdata/modfile).
unformatted=$(find . \( -path ./out -o -path ./.cache \) -prune -o -name '*.go' -print0 | xargs -0 gofmt -l)
[ -z "$unformatted" ] || { echo "gofmt would change: $unformatted" >&2; exit 1; }
CGO_ENABLED=0 go vet ./... ./testdata/budget ./testdata/budget/report ./testdata/golden ./testdata/hello ./testdata/modfile ./testdata/need
CGO_ENABLED=0 go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./... ./testdata/budget ./testdata/budget/report ./testdata/golden ./testdata/hello ./testdata/modfile ./testdata/need
bash -n .ci/run testdata/*.sh build/kernel/*.sh
