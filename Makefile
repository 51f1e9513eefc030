# kata: containers that each run in a virtual machine of their own.
# `make help` lists the targets. Nothing is written outside bin/, but for
# `make setup` (packages) and `make install`; tools and test images are cached
# in $(CACHE), which `make clean` leaves alone.

VERSION ?= 0.1.0-dev
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
PREFIX  ?= /usr/local
CACHE   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kata-build

GO       := go
MODULE   := $(shell awk '/^module / { print $$2 }' go.mod)
HOST     := kata kata-runtime kata-proxy kata-shim containerd-shim-kata-v2
BUILD    := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
STAMP    := -X $(MODULE)/internal/version.Version=$(VERSION)

# Packages with tests that need the real thing: they run one after the other.
E2E       = $(sort $(dir $(shell grep -rl --include='*_test.go' '^//go:build integration' internal test)))
FUZZTIME ?= 10s

LINT_VERSION   := v2.15.0
LINT           := $(CACHE)/golangci-lint-$(LINT_VERSION)
PROTOC_GEN_GO  := v1.36.12
PROTOC_GEN_RPC := v1.2.10

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-unit test-e2e race lint lint-if-built fuzz soak suites bench bench-check lab kernel protos install uninstall clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing (needs root)
	@script/setup.sh

# The agent is stamped with the version only: else every commit would make a
# new guest image.
build: ## build all programs into bin/
	@mkdir -p bin
	$(BUILD) -ldflags '-s -w $(STAMP)' -o bin/kata-agent ./cmd/kata-agent
	$(BUILD) -ldflags '$(STAMP) -X $(MODULE)/internal/version.Commit=$(COMMIT)' -o bin/ $(HOST:%=./cmd/%)

demo: setup build ## run a container and show its kernel beside the host's
	@script/demo.sh

test: setup lint-if-built test-unit race test-e2e ## all of the tests (needs root)

test-unit: ## tests without a virtual machine, with the seeds of the fuzz tests
	CGO_ENABLED=0 $(GO) test ./...

test-e2e: build ## tests with virtual machines (needs root)
	KATA_BIN=$(CURDIR)/bin $(GO) test -tags integration -count=1 -p 1 -timeout 20m $(E2E:%=./%)

race: ## tests under the race detector
	CGO_ENABLED=1 $(GO) test -race ./internal/...

lint: $(LINT) ## run the linters (builds golangci-lint the first time, some minutes)
	$(LINT) run ./...

# As part of `make test`: the linters, unless they would have to be built first.
lint-if-built:
	@if [ -x $(LINT) ] || $(call lint_in_gobin); then \
		$(MAKE) --no-print-directory lint; \
	else \
		echo 'lint: skipped, golangci-lint is not built yet (make lint does it)'; \
	fi

# True when `go install` has put the same version where it always does.
lint_in_gobin = [ "$$($$($(GO) env GOPATH)/bin/golangci-lint version --short 2>/dev/null)" = $(LINT_VERSION:v%=%) ]

$(LINT):
	@mkdir -p $(CACHE)
	@if $(call lint_in_gobin); then \
		ln -sf "$$($(GO) env GOPATH)/bin/golangci-lint" $@; \
	else \
		set -x; GOBIN=$(CACHE)/install $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION) && \
		mv $(CACHE)/install/golangci-lint $@; \
	fi

fuzz: ## run each fuzz test for FUZZTIME (10s)
	@script/fuzz.sh $(FUZZTIME)

soak: build ## run hundreds of containers and pods, and kill in each phase (hours)
	KATA_LONG=1 KATA_BIN=$(CURDIR)/bin $(GO) test -tags integration -count=1 -timeout 60m -run TestManyInARow -v ./test/e2e
	KATA_LONG=1 KATA_BIN=$(CURDIR)/bin $(GO) test -tags integration -count=1 -timeout 120m -run 'TestManyPods|TestFaultsInEachPhase' -v ./test/containerd

suites: setup build ## run containerd's own test suites, and that of OCI runtimes, with runc and kata (an hour)
	KATA_LONG=1 KATA_BIN=$(CURDIR)/bin $(GO) test -tags integration -count=1 -timeout 60m -v ./test/validation
	KATA_BIN=$(CURDIR)/bin $(GO) run ./test/suites $(SUITES)

bench: setup build ## measure kata, runc, crun and runsc into docs/performance (an hour; BENCH=-quick: minutes)
	KATA_BIN=$(CURDIR)/bin $(GO) run ./test/bench -out docs/performance $(BENCH)

bench-check: setup build ## measure what test/bench/budget.json limits, and fail when a limit is broken (minutes)
	KATA_BIN=$(CURDIR)/bin $(GO) run ./test/bench -check

lab: setup build ## run the end-to-end tests on a host with KVM, made by emulation (slow)
	KATA_BIN=$(CURDIR)/bin $(GO) run ./test/lab

kernel: ## build the tuned guest kernel (15 to 30 minutes)
	guest/kernel/build.sh

protos: ## generate api/ again (needs protoc)
	@script/protos.sh $(CACHE) $(PROTOC_GEN_GO) $(PROTOC_GEN_RPC) $(PROTOS_OUT)

# People and engines call what is in bin; the rest is found beside it or in
# ../libexec/kata.
install: build ## install into PREFIX (/usr/local), below DESTDIR
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/kata
	for p in $(filter-out kata-proxy kata-shim,$(HOST)); do install bin/$$p $(DESTDIR)$(PREFIX)/bin/ || exit; done
	for p in kata-agent kata-proxy kata-shim; do install bin/$$p $(DESTDIR)$(PREFIX)/libexec/kata/ || exit; done

uninstall: ## remove what install has put into PREFIX
	rm -f $(HOST:%=$(DESTDIR)$(PREFIX)/bin/%)
	rm -rf $(DESTDIR)$(PREFIX)/libexec/kata

clean: ## remove bin/
	rm -rf bin
