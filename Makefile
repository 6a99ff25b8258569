# Two commands are enough: `make assess` and `make test`. Each sets up what it needs, once.
# The first that can make a virtual environment. Debian's own is built with profiles: a search runs a tenth faster on it
# than on one that is not.
PYTHON ?= /usr/bin/python3 python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?=
OUT    ?= chamber-out
ONLY   ?=

# What a run needs, and what tests need besides; see docs/dependencies.md.
RUN_PACKAGES  := python3-venv user-mode-linux
TEST_PACKAGES := afl++ chromium cpio e2fsprogs fio iproute2 iputils-ping ipxe-qemu qemu-system-common qemu-system-x86 seabios tshark

# What building a kernel needs.
KERNEL_PACKAGES := bc binutils bison coccinelle flex gcc libc6-dev patch perl xz-utils

# Tests of what runs in the test's own process, for any of two workers; what has kernels or a browser, file by file.
MODEL_TESTS := tests/attacks tests/device tests/guest tests/host tests/lab/test_model.py tests/lab/test_model_hosted.py \
               tests/platform tests/wire
QUICK       := not slow and not kernel and not qemu

.PHONY: setup setup-test assess test test-kernel test-qemu test-all lint bench clean

setup: $(VENV)/.ready
	@scripts/debian-packages $(RUN_PACKAGES)

setup-test: setup
	@scripts/debian-packages $(TEST_PACKAGES)
	@scripts/debian-guest

$(VENV)/.ready: pyproject.toml
	@scripts/debian-packages python3-venv
	@test -x $(BIN)/python || { for python in $(PYTHON); do "$$python" -c 'import ensurepip' 2>/dev/null && break; done; \
		"$$python" -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

assess: setup
	@$(BIN)/chamber assess --out $(OUT) $(if $(JOBS),--jobs $(JOBS))

test: setup-test
	@$(BIN)/python -m pytest -q -n 2 -m '$(QUICK)' $(MODEL_TESTS)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m '$(QUICK)' $(MODEL_TESTS:%=--ignore=%)

test-kernel: setup-test
	@scripts/debian-packages $(KERNEL_PACKAGES)
	@$(BIN)/python -m pytest -q -m 'kernel and not slow'

test-qemu: setup-test
	@$(BIN)/chamber lab install qemu
	@$(BIN)/chamber lab install kernel
	@$(BIN)/python -m pytest -q -m 'qemu and not slow'

test-all: setup-test
	@scripts/debian-packages $(KERNEL_PACKAGES)
	@$(BIN)/chamber lab install qemu
	@$(BIN)/chamber lab install kernel
	@$(BIN)/python -m pytest -q --timeout 1800

lint: setup
	@$(BIN)/ruff check src tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@$(BIN)/python -m bench $(ONLY)

clean:
	rm -rf $(VENV) $(OUT) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
