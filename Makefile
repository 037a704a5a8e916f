# SPDX-License-Identifier: Apache-2.0
#
# Every target installs what it lacks: Debian packages by name, Go modules by
# go.sum, ONNX Runtime by version and hash. As root, since programs are
# loaded into the kernel; `make build` alone needs no root when gcc is there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# sudo resets PATH; these are where Go's own installer and Debian put it.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin:/usr/sbin:/sbin

BIN := bin/earlydrop
ORT := bin/lib/libonnxruntime.so.1
ORT_CUDA := bin/lib-cuda/libonnxruntime.so.1
# Two lookups that must not fail where there is no git history.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PYTHON := /usr/bin/python3

PKG_BUILD := gcc libc6-dev ca-certificates
PKG_CROSS := $(if $(filter aarch64,$(shell uname -m)),gcc-x86-64-linux-gnu libc6-dev-amd64-cross,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
PKG_FETCH := ca-certificates curl
PKG_GENERATE := clang llvm libbpf-dev linux-libc-dev libc6-dev
PKG_LAB := curl dnsmasq-base nginx-light openssh-client openssh-server openssl shadowsocks-libev v2ray
PKG_TEST := $(PKG_LAB) bpftool chromium ethtool fish iproute2 iptables man-db nftables prometheus tmux tshark util-linux wireguard-go zsh
PKG_BENCH := iperf3 nftables xdp-tools
PKG_KERNELS := qemu-system-x86 xz-utils
PKG_TRAIN := libopenblas0-pthread python3 python3-matplotlib python3-numpy python3-onnx python3-torch
PKG_EVAL := $(PKG_TRAIN) libndpi-bin netbase python3-sklearn

# What a run of make finds installed is not asked for again.
install = @test/install-packages.sh $(1)

# With sudo as well, what is built belongs to whoever owns the clone: root's program loads
# no library out of folders of a user who is not the program's owner.
own = @[ "$$(id -u)" -ne 0 ] || chown -R --reference=Makefile bin

# fetch FILE ARGUMENTS: fetch-onnxruntime.sh, with curl installed if FILE lacks, and npm
# if it is needed.
fetch = @[ -f $(1) ] || command -v curl >/dev/null || test/install-packages.sh $(PKG_FETCH); \
	code=0; classifier/onnx/fetch-onnxruntime.sh $(2) || code=$$?; \
	[ $$code -eq 0 ] || { [ $$code -eq 3 ] && test/install-packages.sh npm && classifier/onnx/fetch-onnxruntime.sh $(2); }

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/earlydrop
	$(call install,$(PKG_BUILD))
	go build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(BIN) ./cmd/earlydrop
	$(own)

.PHONY: onnxruntime
onnxruntime: ## Put ONNX Runtime's shared library into bin/lib (pinned, out of an npm package)
	$(call fetch,$(ORT),bin/lib)
	$(own)

FROM ?=
# The provider is republished by a third party; FROM names Microsoft's own release.
.PHONY: onnxruntime-cuda
onnxruntime-cuda: export FROM := $(FROM)
onnxruntime-cuda: ## Put ONNX Runtime with its CUDA provider into bin/lib-cuda (300 MB, pinned): make onnxruntime-cuda [FROM=release.tgz]
	$(call fetch,$(ORT_CUDA),--cuda $(if $(FROM),--from "$$FROM") bin/lib-cuda)
	$(own)

DESTDIR ?=
PREFIX ?= /usr/local
.PHONY: install
install: build onnxruntime ## Install program, library, unit, manual, configuration: make install [DESTDIR= PREFIX=/usr/local]
	cmd/earlydrop/package/install.sh "$(DESTDIR)" "$(PREFIX)" $(BIN) $(ORT)

DIST ?= dist
ARCHS ?= amd64 arm64
.PHONY: release
release: build onnxruntime ## Build deb and rpm packages, tarballs and their sums: make release [DIST=dist ARCHS="amd64 arm64"]
	$(call install,$(if $(filter-out $(shell go env GOHOSTARCH),$(ARCHS)),$(PKG_CROSS)))
	cmd/earlydrop/package/packages.sh "$(VERSION)" "$(DIST)" $(ARCHS)

IFACE ?=
MODE ?= monitor
# Built only when it is clear that what was built can be run.
.PHONY: run
run: export IFACE := $(IFACE)
run: export MODE := $(MODE)
run: ## Attach to an interface, in monitor mode: make run IFACE=eth0 [MODE=enforce]
	@there=$$(sed -n 's/^ *\([^:]*\):.*/\1/p' /proc/net/dev); list="(there are: $${there//$$'\n'/ })"; \
	[ -n "$$IFACE" ] || { echo "name the interface: sudo make run IFACE=eth0 $$list" >&2; exit 2; }; \
	grep -qxF -e "$$IFACE" <<< "$$there" || { echo "no such interface: $$IFACE $$list" >&2; exit 2; }; \
	[[ "$$MODE" =~ ^(monitor|enforce)$$ ]] || { echo "MODE=$$MODE: use monitor or enforce" >&2; exit 2; }
	@$(MAKE) --no-print-directory build
	$(BIN) attach -i "$$IFACE" --mode "$$MODE"

.PHONY: demo
demo: build onnxruntime ## Show it: real tunnels and ordinary flows through an enforcing gateway
	$(call install,$(PKG_TEST))
	go run ./test/demo -earlydrop $(BIN)

.PHONY: test
test: build onnxruntime ## Run every Go test, the end-to-end ones in network namespaces included
	$(call install,$(PKG_TEST))
	go test -count=1 -timeout 20m ./cmd/... ./classifier/... ./loader/... ./models/... ./policy/...
	# One after another: a flood beside it is no part of what an end-to-end test is about.
	EARLYDROP_NEED_LAB=1 go test -count=1 -timeout 20m -p 1 ./test/...

.PHONY: test-kernels
test-kernels: ## Run the loader's tests on Debian's other kernels, in software-emulated machines (minutes; RUN=pattern for some)
	$(call install,$(PKG_BUILD) $(PKG_KERNELS))
	go run ./test/kernels $(if $(RUN),-run '$(RUN)')

.PHONY: test-system
test-system: build onnxruntime ## Install, upgrade, kill and purge the packages: deb in an emulated Debian with systemd, rpm without
	$(call install,$(PKG_KERNELS) debootstrap e2fsprogs rpm)
	KINDS="deb rpm" cmd/earlydrop/package/packages.sh v0.0.1 .cache/system/older amd64
	KINDS="deb rpm" cmd/earlydrop/package/packages.sh v0.0.2 .cache/system/newer amd64
	cmd/earlydrop/package/test-rpm.sh .cache/system/older/*.rpm .cache/system/newer/*.rpm
	go run ./test/kernels -system .cache/system

.PHONY: test-race
test-race: build onnxruntime ## Run the tests of the concurrent packages with the race detector
	$(call install,$(PKG_TEST))
	# Left out: memory, which the detector multiplies, and the live view that ends by itself, where
	# the terminal library closes what its reader still reads.
	go test -count=1 -race -timeout 20m -skip '^TestReplayOfManyFlowsTakesLittleMemory$$|^TestTerminalIsRestored$$/^a_(signal|failure)$$|^TestAttachAndDetachAgainAndAgainLeaksNothing$$/^memory$$' \
		./classifier/... ./policy/... ./loader/... ./cmd/...

.PHONY: test-gpu
test-gpu: onnxruntime onnxruntime-cuda ## Run the tests with ONNX Runtime's real CUDA provider (300 MB to fetch); they need no GPU, but use one
	$(call install,$(PKG_BUILD))
	EARLYDROP_TEST_CUDA=$(CURDIR)/bin/lib-cuda go test -count=1 -v -tags gpu -run CUDA ./classifier/onnx

.PHONY: bench-gpu
bench-gpu: onnxruntime-cuda ## Print how many flows a GPU classifies a second, by model and batch size
	$(call install,$(PKG_BUILD))
	EARLYDROP_ONNXRUNTIME=$(CURDIR)/$(ORT_CUDA) go test -tags gpu -run '^$$' -bench CUDA ./classifier/onnx

.PHONY: test-train
test-train: ## Run the tests of the training code
	$(call install,$(PKG_EVAL))
	cd models/train && $(PYTHON) -B -m unittest -q train_test baselines_test eval_test

LAB ?=
POLICIES ?= built-in policy/examples/cautious.yaml
.PHONY: policies
policies: onnxruntime ## Measure what policies do to recorded traffic: make policies LAB=dir [CAPTURES=dir POLICIES="built-in file..."]
	$(call install,$(PKG_BUILD))
	go run ./test/policies -lab "$(LAB)" -captures "$(CAPTURES)" $(POLICIES)

DATA ?=
CAPTURES ?=
MODELS ?= $(wildcard models/compact.onnx models/paper.onnx)
STUDY ?= bars
OUT ?= .cache/eval
.PHONY: eval
eval: ## Measure models and other methods: make eval DATA=dir [STUDY=all CAPTURES="dir..." MODELS="file..." OUT=dir]
	@[ -n "$(DATA)" ] || { echo "name the folder that earlydrop dataset wrote: make eval DATA=dir" >&2; exit 2; }
	$(call install,$(PKG_EVAL))
	$(PYTHON) -B models/train/eval.py $(STUDY) $(DATA:%=--data %) $(CAPTURES:%=--captures %) $(MODELS:%=--model %) --out $(OUT)

.PHONY: train-programs
train-programs: ## Install what models/train/train.py runs on: Debian packages
	$(call install,$(PKG_TRAIN))

.PHONY: record-programs
record-programs: ## Install what a recording of training data runs: Debian packages, Go modules, one npm package
	test/install-packages.sh $$(go run ./test/lab/record --packages record)
	go run ./test/lab/record --install

BUDGET ?= 30m
SEED ?= 1
.PHONY: record
record: OUT = data/lab
record: record-programs ## Record labelled captures of real programs for training: make record [BUDGET=30m SEED=1 OUT=data/lab]
	go run ./test/lab/record --out $(OUT) --budget $(BUDGET) --seed $(SEED)
	@[ "$$(id -u)" -ne 0 ] || chown -R --reference=Makefile $(OUT)

FUZZTIME ?= 10s
.PHONY: fuzz
fuzz: build onnxruntime ## Fuzz each target for FUZZTIME (10s)
	test/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build onnxruntime ## Print the benchmarks: data path, user space, forwarding beside xdp-filter and nftables
	$(call install,$(PKG_TEST) $(PKG_BENCH))
	go test -run '^$$' -bench . -benchtime 1s ./loader/... ./policy ./classifier ./cmd/earlydrop/history
	go run ./test/bench -earlydrop $(BIN)
	go run ./test/bench -only overload -earlydrop $(BIN)
	go run ./test/bench -only lookback -earlydrop $(BIN)

.PHONY: bench-passed
bench-passed: build onnxruntime ## Count how many bytes of a tunnel pass before it is cut, at round trips of 0, 5 and 50 ms
	$(call install,$(PKG_TEST))
	go run ./test/bench -only passed -earlydrop $(BIN)

OPENGFW ?=
SURICATA ?=
SURICATA_RULES ?=
.PHONY: bench-peers
bench-peers: build onnxruntime ## Measure other programs beside earlydrop, in one table: make bench-peers [OPENGFW=program SURICATA=program SURICATA_RULES=file]
	$(call install,$(PKG_TEST) $(PKG_BENCH) libndpi-bin)
	go run ./test/bench -only peers -earlydrop $(BIN) -connections 50 $(if $(OPENGFW),-opengfw "$(OPENGFW)") $(if $(SURICATA),-suricata "$(SURICATA)") $(if $(SURICATA_RULES),-suricata-rules "$(SURICATA_RULES)")

.PHONY: lint
lint: ## Check format, vet (with and without cgo), staticcheck, imports, C format, Python and shell scripts
	$(call install,$(PKG_BUILD) clang-format flake8 shellcheck)
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "not gofmt'ed: $$bad" >&2; exit 1; }
	go vet ./...
	go vet -tags gpu ./classifier/onnx
	CGO_ENABLED=0 go vet ./...
	CGO_ENABLED=0 go build -o /dev/null ./cmd/earlydrop
	go tool staticcheck ./...
	go mod tidy -diff
	clang-format --dry-run -Werror bpf/*.c bpf/*.h classifier/native/*.c classifier/native/*.h
	shellcheck .ci/run $$(git ls-files '*.sh')
	flake8 --max-line-length 160 --extend-ignore E731 $$(git ls-files '*.py')
	go test -count=1 -run '^Test(Imports|Layers)' ./test

# clang for the bpf target knows no system headers; /usr/include must come last.
BPF_CFLAGS = -O2 -fno-strict-aliasing -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror \
	-idirafter $$(clang -print-resource-dir)/include \
	-idirafter /usr/include/$$(uname -m)-linux-gnu -idirafter /usr/include

.PHONY: generate
generate: ## Compile bpf/ into loader/*.o and their Go types, which are checked in
	$(call install,$(PKG_GENERATE))
	BPF_CFLAGS="$(BPF_CFLAGS)" go generate ./loader

.PHONY: vendor-uplot
vendor-uplot: ## Fetch the chart library of the web page again (pinned, an npm package); it is checked in
	$(call install,npm)
	cmd/earlydrop/web/fetch-uplot.sh cmd/earlydrop/web/static

.PHONY: screenshot
screenshot: ## Draw cmd/earlydrop/doc/web.png again, the picture of the web page
	$(call install,$(PKG_TEST))
	go test -count=1 ./cmd/earlydrop/web -run PageInChromium/picture -screenshot "$(CURDIR)/cmd/earlydrop/doc/web.png"

.PHONY: check-generate
check-generate: generate ## Fail if what is checked in is not what generate makes
	@git diff --exit-code --stat -- loader || { echo "generated files are stale: run make generate and commit" >&2; exit 1; }

.PHONY: clean
clean: ## Remove what was built; what is attached stays attached
	rm -rf bin
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
