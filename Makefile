# Volant. `make` lists the targets.
#
# demo and test work on a fresh Debian with Go, git and make: they install what they
# need with apt. Nothing else here installs anything.

SHELL   := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)

# Without HTTP/2: half a MiB. Every registry and builder speaks HTTP/1.1 too, and
# nobody else is spoken to.
TAGS    := nethttpomithttp2

export CGO_ENABLED := 0
# The version is stamped below. Go's own stamp fails where git distrusts the
# clone: another user's, seen by root.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
# After a plain "su", Debian's root has no sbin.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help build install demo test test-ch lint bench kernels release generate fuzz clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## bin/volant and the links to its roles
	@echo "building bin/volant $(VERSION) (the first time takes a minute or two) ..."
	@go build -modfile "$$(go run ./testdata/modfile)" -tags $(TAGS) -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/volant .
	@bin/volant install

demo: ## boot a real microVM from nothing and show it answering
	@testdata/deps.sh demo
	@$(MAKE) --no-print-directory build
	@testdata/demo.sh

test: ## every test, with real VMs; fails if a test that can run here is skipped
	@testdata/deps.sh test
	@testdata/test.sh

test-ch: ## the VM tests on the Cloud Hypervisor of this machine, if it has one
	@testdata/test-ch.sh

lint: ## gofmt, vet, staticcheck
	@testdata/lint.sh

bench: ## the budgets: name, ratio, limit
	@testdata/deps.sh test
	@testdata/bench.sh

kernels: ## build the guest kernels from Debian's source package (once per config and source)
	@build/kernel/build-kernel.sh all

release: ## what is handed to others, in out/release: binary, kernels, their source, digests
	@testdata/release.sh out/release

generate: ## rewrite the generated files
	@go generate ./...

fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@testdata/fuzz.sh

clean: ## remove what the build made, but not the caches
	rm -rf bin
