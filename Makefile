# `make run` gives a mounted ./state, `make test` checks everything; `make help` names the rest.

PY := .venv/bin/python
PYTEST = $(PY) -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
STATE ?= ./state
# More arguments for pytest, e.g. make test PYTEST_ARGS="-k rename tests/mounted"
PYTEST_ARGS ?=
# Processes that test beside each other: they wait for disks and daemons most of the time
TEST_JOBS ?= 3
HOURS ?= 1
MINUTES ?= 10
# Of scripts/load.py, e.g. make load MINUTES=60 LOAD_ARGS=--no-kills to look for leaks
LOAD_ARGS ?=
# Of scripts/crash_hunt.py, e.g. make crash CRASH_ARGS=--engine for disks that fail or lose power
CRASH_ARGS ?=
# Of scripts/call_faults.py, e.g. make faults FAULT_ARGS=--pairs
FAULT_ARGS ?=
# Of scripts/power_cuts.py, e.g. make power POWER_ARGS=--without-syncs
POWER_ARGS ?=

.PHONY: help run setup stop test long check lint types layers bench crash load power faults install-helper install-service

help: ## Name the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

run: setup ## Install what is missing, mount ./state, show what to do with it
	@scripts/run.sh "$(STATE)"

setup: ## Install what is missing and make .venv/bin/statefs
	@scripts/setup.sh

stop: ## Unmount ./state; its data stays in ./state.store
	@scripts/stop.sh "$(STATE)"

test: setup-tests ## Run the test suite (installs the programs that tests drive)
	@$(PYTEST) $(PYTEST_ARGS)

long: setup-tests ## Run the slow tests, with those that `make test` leaves out
	@STATEFS_LONG_TESTS=1 $(PY) -m pytest -m slow $(PYTEST_ARGS)

check: setup-tests ## Lint, types, layers, then the test suite
	@$(MAKE) --no-print-directory lint types layers
	@$(PYTEST) $(PYTEST_ARGS)

lint: setup-tests ## Check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup-tests ## Check types
	@$(PY) -m mypy

layers: setup-tests ## Check that each layer imports only lower ones
	@.venv/bin/lint-imports --no-logo

bench: setup ## Measure operations, size, history, going back, other tools (minutes; as root, nothing else running)
	@$(PY) -m benchmarks.operations
	@$(PY) -m benchmarks.scale
	@$(PY) -m benchmarks.sealing
	@$(PY) -m benchmarks.time_travel
	@$(PY) -m benchmarks.takeover
	@$(PY) -m benchmarks.peers

crash: setup-tests ## Kill the daemon at random for HOURS (default 1); nothing acknowledged may be lost
	@$(PY) scripts/crash_hunt.py --hours $(HOURS) $(CRASH_ARGS)

power: setup-tests ## Cut the power at every moment of all workloads of one and two operations (minutes)
	@$(PY) scripts/power_cuts.py $(POWER_ARGS)

faults: setup-tests ## Have each system call of each operation fail, in each way that it may (minutes)
	@$(PY) scripts/call_faults.py $(FAULT_ARGS)

load: setup-tests ## Eight programs in a mount that is saved, pruned and killed for MINUTES (default 10)
	@$(PY) scripts/load.py --minutes $(MINUTES) $(LOAD_ARGS)

install-helper: setup ## As root: let mount(8) and /etc/fstab use statefs
	@ln -sfn "$(CURDIR)/scripts/mount.fuse.statefs" /sbin/mount.fuse.statefs
	@echo "/sbin/mount.fuse.statefs -> $(CURDIR)/scripts/mount.fuse.statefs"

install-service: setup ## As root: let systemd mount states, as statefs@PATH.service
	@sed 's#@STATEFS@#$(CURDIR)/.venv/bin/statefs#' scripts/statefs@.service >/etc/systemd/system/statefs@.service
	@systemctl daemon-reload
	@echo "systemctl enable --now \"statefs@\$$(systemd-escape --path /srv/shop/state).service\" mounts /srv/shop/state, now and at each start"

.PHONY: setup-tests
setup-tests:
	@scripts/setup.sh --tests
