# earlydrop - every target that needs a program installs its Debian package.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOFLAGS ?= -mod=readonly

BIN := bin/earlydrop
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# clang for the bpf target knows no system headers; /usr/include must come last.
BPF_CFLAGS = -O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror \
	-idirafter $$(clang -print-resource-dir)/include \
	-idirafter /usr/include/$$(uname -m)-linux-gnu -idirafter /usr/include

.PHONY: generate
generate: ## Compile bpf/ into loader/*.o and their Go types (clang, checked in)
	BPF_CFLAGS="$(BPF_CFLAGS)" go generate ./loader
