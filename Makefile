# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION    ?= $(shell sed -n 's/^version: *//p' chart/Chart.yaml)
KUBE_PROXY ?= none
IP_FAMILY  ?= dual
NAME       ?= dev
PAYLOAD    := install/image/payload
LDFLAGS    := -s -w -X lash.internal/lash/agent/api.Version=$(VERSION)
STATIC     := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
GO_SOURCES := $(shell find cmd install status connectivity perf agent bpf chart -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
EMBEDDED   := $(shell find chart bpf connectivity -type f \( -name '*.yaml' -o -name '*.tpl' -o -name '*.json' -o -name '*.o' -o -name '*.mod' -o -name '*.sum' \) 2>/dev/null)

# Debian packages by the command or file that shows that they are there.
DEBS := ip:iproute2 runc:runc iptables:iptables nft:nftables conntrack:conntrack ipset:ipset \
	bpftool:bpftool qemu-system-x86_64:qemu-system-x86 cpio:cpio gcc:gcc git:git jq:jq
SUITE_DEBS := busybox:busybox curl:curl dig:bind9-dnsutils nc:netcat-openbsd wget:wget
GEN_DEBS := clang-19:clang-19 llvm-strip-19:llvm-19 clang-format-19:clang-format-19 /usr/include/linux/bpf.h:linux-libc-dev

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

define apt-install
	@missing=(); for d in $(1); do c=$${d%%:*}; command -v $$c >/dev/null 2>&1 || [ -e $$c ] || missing+=($${d#*:}); done; \
	if [ $${#missing[@]} -gt 0 ]; then echo "installing $${missing[*]}"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; fi
endef

.PHONY: deps
deps: ## Install the Debian packages that the local cluster and the tests need
	$(call apt-install,$(DEBS))
	@n=$$(cat /proc/sys/fs/inotify/max_user_instances); if [ $$n -lt 1024 ]; then \
	  echo "raising fs.inotify.max_user_instances from $$n to 1024"; echo 1024 >/proc/sys/fs/inotify/max_user_instances; fi

.PHONY: gen-deps
gen-deps:
	$(call apt-install,$(GEN_DEBS))

.PHONY: build
build: bin/lash ## Build bin/lash (with the node image inside), bin/lash-agent, bin/lash-cni

bin/lash-agent: $(GO_SOURCES) $(EMBEDDED)
	$(STATIC) -o $@ ./cmd/lash-agent

bin/lash-cni: $(GO_SOURCES)
	$(STATIC) -o $@ ./cmd/lash-cni

bin/lash: bin/lash-agent bin/lash-cni $(GO_SOURCES) $(EMBEDDED)
	mkdir -p $(PAYLOAD)
	install -m 0755 bin/lash-agent bin/lash-cni $(PAYLOAD)/
	$(STATIC) -tags bundle -o $@ ./cmd/lash

.PHONY: up
up: deps build ## A real 3-node cluster with Lash in it; KUBE_PROXY=iptables|nftables for one with kube-proxy
	bin/lash cluster create $(NAME) --kube-proxy $(KUBE_PROXY) --ip-family $(IP_FAMILY)
	bin/lash image save bin/lash-image.tar
	bin/lash cluster load-image bin/lash-image.tar --name $(NAME)
	bin/lash install --context lash-$(NAME) --wait --yes
	bin/lash status --context lash-$(NAME) --wait

.PHONY: down
down: ## Delete the cluster that `make up` made
	bin/lash cluster delete $(NAME)

.PHONY: generate
generate: gen-deps ## Build the eBPF objects, bindings and the values schema again
	go generate ./...

.PHONY: check-generate
check-generate: generate ## Fail when what is committed differs from what `make generate` makes
	git diff --exit-code -- bpf chart || { echo 'generated files differ: run "make generate" and commit'; exit 1; }

.PHONY: fmt
fmt: gen-deps ## Format Go and C
	go tool -modfile=.ci/tools/gofumpt.mod gofumpt -w $$(git ls-files '*.go' | grep -v _bpfel.go)
	clang-format-19 -i $$(git ls-files 'bpf/*.c' 'bpf/*.h')

.PHONY: lint
lint: gen-deps ## golangci-lint, gofumpt, clang-format
	go vet ./...
	go tool -modfile=.ci/tools/golangci-lint.mod golangci-lint run ./...
	clang-format-19 --dry-run --Werror $$(git ls-files 'bpf/*.c' 'bpf/*.h')

.PHONY: test-short
test-short: deps ## Unit, program and namespace tests on this kernel (no cluster, no second kernel)
	go test -short ./...

.PHONY: test
test: deps build lint check-generate ## Everything that CI runs: lint, generated files, all tests, real clusters and kernel 6.1 included
	LASH_E2E=1 go test -p 2 -count=1 -timeout 30m ./...

# What takes longer has a target of its own, and its last report in the repository.
REPORTS  := connectivity/e2e/reports
report    = { echo "$$(date -u +%F) $$(uname -r), $$(nproc) CPUs: $(1)"; $(1) 2>&1 | grep -E '^ *(=== RUN|---|ok|FAIL)|_test.go:[0-9]+:'; } | tee $(REPORTS)/$(2).txt

CRASH ?= TestNoLoss|TestCrashPoints

.PHONY: test-crash
test-crash: deps gen-deps build ## Every crash, upgrade and change of size under load: tunnel, native, DSR (four hours); CRASH=TestNoLoss/dsr
	$(call report,LASH_E2E=1 LASH_CRASH=1 go test -count=1 -timeout 360m -v -run '$(CRASH)' ./connectivity/e2e,crash)

.PHONY: test-long
test-long: deps build ## 300 first packets over a slow API server; the connectivity test 20 times in clusters of each kind
	$(call report,LASH_E2E=1 LASH_FIRST_PACKETS=300 LASH_RUNS=20 go test -count=1 -timeout 90m -v -run 'TestFirstPackets|TestManyRuns' ./connectivity/e2e,long)

CONFORMANCE ?=
FOCUS       ?=

.PHONY: conformance
conformance: deps build ## Kubernetes' own [sig-network] tests without kube-proxy, and their report; IP_FAMILY=dual FOCUS=expression CONFORMANCE='more flags'
	$(call apt-install,$(SUITE_DEBS))
	$(STATIC) -o bin/lash-conformance ./cmd/lash-conformance
	bin/lash-conformance --ip-family $(IP_FAMILY) $(CONFORMANCE) \
	  $(if $(FOCUS),--focus '$(FOCUS)',--report connectivity/conformance/report-$(IP_FAMILY))

ROUNDS   ?= 10
DURATION ?= 2s
FAMILY   ?= ipv4
BENCH    ?=

.PHONY: bench
bench: deps build ## Measure beside bare paths, write BENCHMARKS.md; ROUNDS=10 DURATION=2s PATHS= TESTS= FAMILY=ipv4 BENCH='more flags'
	$(STATIC) -o bin/lash-bench ./cmd/lash-bench
	bin/lash-bench --rounds $(ROUNDS) --duration $(DURATION) --family $(FAMILY) $(if $(PATHS),--groups $(PATHS)) $(if $(TESTS),--tests $(TESTS)) $(BENCH)
	@$(services-part)

LADDER   ?= --steps 1,100,1000,2767 --samples 10 --duration 2s --from pod,node --from-external
LADDERS  ?= bench
SERVICES ?= perf/results/services
SCALE    ?= perf/results/scale
SCALES   ?=
# The parts of BENCHMARKS.md about Services come last and are kept when the rest is written again.
services-part = sed -i '/^<!-- \(services\|scale\) -->/,$$d' BENCHMARKS.md; \
	for part in $(SERVICES).md $(SERVICES)-*.md $(SCALE).md; do if [ -e $$part ]; then cat $$part >>BENCHMARKS.md; fi; done

.PHONY: bench-services
bench-services: deps build ## New connections over the number of Services, four clusters by turns: Lash, with DSR, kube-proxy iptables, nftables; LADDER='flags'
	@trap 'for c in lash dsr iptables nftables; do bin/lash cluster delete $(LADDERS)-$$c || true; done' EXIT; set -x; \
	bin/lash image save bin/lash-image.tar; \
	for c in lash dsr; do bin/lash cluster create $(LADDERS)-$$c --workers 1; done; \
	bin/lash cluster create $(LADDERS)-iptables --workers 1 --cni ptp --kube-proxy iptables; \
	bin/lash cluster create $(LADDERS)-nftables --workers 1 --cni ptp --kube-proxy nftables; \
	for c in lash dsr iptables nftables; do bin/lash cluster load-image bin/lash-image.tar --name $(LADDERS)-$$c; done; \
	bin/lash install --context lash-$(LADDERS)-lash --wait --yes; \
	bin/lash install --context lash-$(LADDERS)-dsr --wait --yes --set loadBalancer.mode=dsr; \
	for c in lash dsr; do bin/lash status --context lash-$(LADDERS)-$$c --wait; done; \
	bin/lash perf services --context lash-$(LADDERS)-lash --with-context lash-$(LADDERS)-dsr,lash-$(LADDERS)-iptables,lash-$(LADDERS)-nftables \
	  $(LADDER) -o json --svg $(SERVICES).svg >$(SERVICES).json; \
	{ echo '<!-- services -->'; echo '## New connections over the number of Services'; echo; \
	  echo 'Made by `make bench-services`; every sample is in `$(SERVICES).json`.'; echo; echo '![P50 over the number of Services]($(SERVICES).svg)'; echo; \
	  bin/lash perf show $(SERVICES).json -o markdown; } >$(SERVICES).md; \
	$(services-part)

.PHONY: bench-scale
bench-scale: deps bin/lash-agent ## Starts, events, changes and memory with 10,000 and 30,000 Services beside kube-proxy, without a cluster; SCALES='flags'
	go build -trimpath -o bin/lash-scale ./cmd/lash-scale
	bin/lash-scale --results $(SCALE).json --report $(SCALE).md $(SCALES)
	@$(services-part)

.PHONY: race
race: deps ## The Go tests under the race detector
	go test -race -timeout 30m ./...
