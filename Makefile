# natengine: `make demo` shows it, `make test` tests it; both install what is missing first (Debian, root).

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-vm setup lint asan fuzz soak bench conformance clean help

help:
	@echo "make demo    the gateway at work in a lab of network namespaces (root)"
	@echo "make test    all tests; those that need root and NFQUEUE are skipped without (ARGS='-k name')"
	@echo "make test-vm the tests that a kernel can change the outcome of, on the distribution's own kernel in QEMU (20 minutes)"
	@echo "make setup   install what is missing, and build into $(VENV)"
	@echo "make conformance   natengine and the kernel, requirement by requirement: docs/conformance.md"
	@echo "make bench   benchmarks      make lint   ruff and mypy      make asan    tests under AddressSanitizer"
	@echo "make fuzz    nobody's packets and nobody's text (FUZZ_SECONDS=60)      make soak    ten busy minutes (SOAK_SECONDS=600)"
	@echo "make clean   remove what was built"

demo: setup
	@$(PY) netns-lab/lab demo

test: setup
	$(PY) -m pytest $(ARGS)

# VM_KERNEL=PACKAGE chooses another kernel, VM_ACCEL=kvm a real processor (docs/kernels.md)
test-vm: setup
	VENV=$(VENV) netns-lab/test-vm $(ARGS)

setup:
	@PYTHON=$(PYTHON) netns-lab/setup-host
	@$(MAKE) --no-print-directory $(VENV)/built

# everything that the compiled extension, or what pip installed, was made from
$(VENV)/built: pyproject.toml setup.py $(wildcard natengine/*.pyx natengine/*.pxd natengine/*/*.pyx natengine/*/*.pxd)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

lint: setup
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	$(PY) -m ruff check .
	$(PY) -m mypy

# the extension's tests once more, in a build that stops at the first byte read or written out of bounds
UNDER_ASAN = LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	PYTHONPATH=$(CURDIR)/build/asan:$(CURDIR)/tests PYTHONDONTWRITEBYTECODE=1

asan: build/asan/built
	$(UNDER_ASAN) NATENGINE_FUZZ_CALLS=1000000 $(VENV)/bin/pytest -q -p no:cacheprovider --timeout 900 tests/differential tests/unit/test_fastpath.py \
	tests/unit/adapters/test_batched_queue.py

build/asan/built: $(VENV)/built $(wildcard natengine/*.py natengine/*/*.py)
	rm -rf build/asan
	NATENGINE_BUILD_EXT=asan $(PY) setup.py -q build --build-lib build/asan --build-temp build/asan-tmp
	touch $@

# nobody's packets and nobody's text, for FUZZ_SECONDS: a third with both fast paths, a third under AddressSanitizer,
# a third guided by coverage where atheris is installed (tests/fuzz)
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= $(shell date +%s)
fuzz: setup build/asan/built
	PYTHONPATH=tests $(PY) -m fuzz packets --seed $(FUZZ_SEED) --seconds $$(($(FUZZ_SECONDS) / 3))
	$(UNDER_ASAN) $(PY) -P -m fuzz packets --seed $(FUZZ_SEED) --backends cython --seconds $$(($(FUZZ_SECONDS) / 3))
	PYTHONPATH=tests $(PY) -m fuzz guided --seed $(FUZZ_SEED) --seconds $$(($(FUZZ_SECONDS) / 3))

# traffic of all kinds while everything changes; the test suite has a minute of it
SOAK_SECONDS ?= 600
soak: setup
	SOAK_SECONDS=$(SOAK_SECONDS) $(PY) -m pytest -s tests/lab/test_gateway_soak.py

bench: setup
	$(PY) -m pytest bench --benchmark-enable --benchmark-only $(ARGS)
	$(PY) -m bench run $(GATEWAY)

conformance: setup
	NATENGINE_CONFORMANCE=docs/conformance.md $(PY) -m pytest -q tests/lab/conformance

clean:
	rm -rf $(VENV) build natengine.egg-info natengine/*.so natengine/*.c natengine/*/*.so natengine/*/*.c
