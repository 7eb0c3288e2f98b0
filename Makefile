# make        builds ./bin/flexfs
# make demo   brings everything up on this machine and runs real programs on it
# make test   passes the tests, as .ci/run does
# make check  formatting, vet, staticcheck
# make fuzz   each fuzz target for a while
# make bench  measures a mount against the local disk, within twenty minutes; see docs/performance.md
# make bench-proxy  measures a proxy against nginx, within four minutes
# make sim    simulates 1,000 mounts and 64 proxies for hours, in minutes
# make soak   the long tests: random work and faults, an hour each, and a million files
# make clean  removes what the others made, except Go's own caches

.PHONY: all build demo test check fuzz bench bench-proxy clean setup library sim soak
.DEFAULT_GOAL := build

GO ?= go
FUZZTIME ?= 30s
library := third_party/jacobsa-fuse/made-by-make

all: build check test

build: library
	$(GO) build -o bin/flexfs .

# The FUSE library, with our patches: see third_party/jacobsa-fuse.
library:
	@third_party/jacobsa-fuse/setup

# What a fresh machine lacks: fusermount3, sqlite3, ip and fio, from its packages.
setup: library
	@internal/setup/packages

demo: setup build
	$(GO) run ./internal/demo -flexfs bin/flexfs

test: setup build check
	$(GO) test -race -timeout 20m ./...

check: library
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

fuzz: library
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done

# As root. BENCH has more flags for it: BENCH='-run "4 KiB" -repeats 5 -bucketDelay 30ms'.
bench: setup build
	$(GO) run ./internal/bench -flexfs bin/flexfs $(BENCH)

# BENCH has more flags for it, such as -json FILE.
bench-proxy: build
	@nginx=$$(internal/setup/nginx) && $(GO) run ./internal/proxybench -flexfs bin/flexfs -nginx "$$nginx" $(BENCH)

# SIMFLAGS='-sim.seed N' repeats what happened, -sim.hours N takes less time.
sim: library
	$(GO) test -run '^TestSimulation$$' -count 1 -timeout 60m -v ./store/remote -sim.mounts 1000 $(SIMFLAGS)

# Each long test (TestSoak…) in turn: random work for FLEXFS_SOAK_MINUTES each, the others until they are done. A failure is repeated with FLEXFS_SOAK_SEED, which each prints.
# SOAKFLAGS='-run ^TestSoakLocks' chooses.
soak: export FLEXFS_SOAK_MINUTES ?= 60
soak: setup
	@failed=; for p in $$(grep -rl --include='*_test.go' '^func TestSoak' . | grep -v made-by-make | xargs -n 1 dirname | sort -u); do \
	  $(GO) test -run '^TestSoak' -count 1 -v -p 1 -timeout 48h $$p $(SOAKFLAGS) || failed="$$failed $$p"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf bin $(library)
