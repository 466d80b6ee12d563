# The project's commands. Everything that they write is in .venv, .cache, data and runs.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=
PEOPLE := data/people
DEMO_DATA := data/demo
DEMO_RUN := runs/demo
PEOPLE_ARGS ?=
TRAIN_ARGS ?=

# An installation is ready when its stamp is there: the last thing written, and named by what was
# installed and where, so that a half-made .venv, or one of another lock, is made again.
KEY := $(shell { pwd; cat requirements*.lock pyproject.toml; } | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(KEY)
TORCH_READY := $(VENV)/.torch-ready-$(KEY)
TPU_READY := $(VENV)/.tpu-ready-$(KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --no-deps --no-build-isolation

.PHONY: help demo test check setup lint format types lock clean
help:
	@echo 'make demo    install, render the people, train, evaluate, print the table, write the report'
	@echo 'make check   lint, types and the fast tests: 3 minutes, for every save'
	@echo 'make test    install, run the test suite (PYTEST_ARGS="-k ranking" for a part of it);'
	@echo '             the report is tested in a browser where there is a chromium'
	@echo 'make setup   install only: everything that demo and test need'
	@echo 'make lint    ruff: rules and format;  make format repairs them'
	@echo 'make types   mypy'
	@echo 'make lock    resolve pyproject.toml anew into requirements.lock (UPGRADE=--upgrade: to the newest)'
	@echo 'make clean   remove .venv and caches; data and runs stay'

# PEOPLE_ARGS and TRAIN_ARGS shorten it for CI.
demo: $(READY)
	test -d $(PEOPLE) || $(BIN)/python -m ddag_jax.data people --to $(PEOPLE) --sheet $(PEOPLE).png $(PEOPLE_ARGS)
	$(BIN)/python -m ddag_jax.data prepare sysu_mm01 --from $(PEOPLE) --to $(DEMO_DATA) --image-size 96 48
	if test -d $(DEMO_RUN); then resume=--resume; fi; \
	$(BIN)/python train.py configs/demo.py --workdir $(DEMO_RUN) --data.dir $(DEMO_DATA) $$resume $(TRAIN_ARGS)
	$(BIN)/python evaluate.py $(DEMO_RUN) --report $(DEMO_RUN)/report

# One process a core; the tests of a file share what they compiled.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(TORCH_READY) $(TPU_READY)
	$(PYTEST) $(PYTEST_ARGS)

check: lint types $(TORCH_READY) $(TPU_READY)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

setup: $(TORCH_READY) $(TPU_READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

# pip and setuptools first, from the same lock: the one package without a wheel is built by them.
$(READY):
	@set -e; \
	for name in '$(PYTHON)' python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  test -n "$$name" || continue; \
	  python=$$(command -v "$$name") || python=; \
	  if test -n "$$python" && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then break; fi; \
	  python=; \
	  if test "$$name" = '$(PYTHON)'; then \
	    echo "error: PYTHON=$(PYTHON) is no Python 3.11 or newer" >&2; exit 2; fi; \
	done; \
	if test -z "$$python"; then \
	  echo 'error: no Python 3.11 or newer found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; \
	  exit 2; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$python cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv), or name another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	  exit 2; fi; \
	echo "installing the locked dependencies into $(VENV) (once, a minute or two) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV); \
	awk '/^[^ #]/ { keep = /^(pip|setuptools)==/ } keep' requirements.lock > $(VENV)/build.lock; \
	$(INSTALL) --require-hashes -r $(VENV)/build.lock; \
	$(INSTALL) --require-hashes -r requirements.lock; \
	$(INSTALL) -e .; \
	$(PIP) check; \
	touch $@

# Only to compare with and convert from PyTorch. The build that pip would choose is asked for its
# dependencies first, since one with CUDA is several gigabytes.
$(TORCH_READY): $(READY)
	@set -e; \
	index='$(TORCH_INDEX)'; \
	$(INSTALL) --dry-run --report $(VENV)/torch.json $${index:+--index-url "$$index"} -r requirements-torch.lock; \
	if test "$$(uname -s)" = Linux && grep -qE '"(nvidia|cuda)-' $(VENV)/torch.json; then \
	  echo 'error: the torch that pip finds here needs gigabytes of CUDA packages; name the index of CPU wheels that pytorch.org gives (Get started, Compute platform: CPU): make $(MAKECMDGOALS) TORCH_INDEX=https://...' >&2; \
	  exit 2; fi; \
	echo 'installing torch (CPU) for the tests'; \
	$(INSTALL) $${index:+--index-url "$$index"} -r requirements-torch.lock; \
	$(PIP) check; \
	touch $@

# The TPU compiler, in a folder of its own: beside jax, every jax would look for a TPU. It exists for
# Linux on x86-64; the tests that use it skip elsewhere.
$(TPU_READY): $(READY)
	@set -e; \
	if test "$$(uname -sm)" = 'Linux x86_64'; then \
	  echo 'installing libtpu, the TPU compiler, for the tests'; \
	  rm -rf $(VENV)/libtpu; \
	  $(INSTALL) --require-hashes --target $(VENV)/libtpu -r requirements-tpu.lock; \
	fi; \
	touch $@

# uv resolves for every platform and for Python 3.11 and newer at once; nothing else needs it.
lock: $(READY)
	$(BIN)/python -m venv --clear .cache/lock
	.cache/lock/bin/python -m pip install --quiet uv
	.cache/lock/bin/uv pip compile pyproject.toml requirements.in --extra test --universal \
	  --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' --quiet -o requirements.lock $(UPGRADE)

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build dist
