# make test    build .venv if need be, run the tests        make lint        ruff and mypy
# make demo    build .venv if need be, train and evaluate   make clean-venv  remove .venv
# Other targets: venv, test-slow, test-gpu, test-real-data, pin. PYTHON=... chooses the interpreter,
# PYTEST_ARGS=... goes to pytest.

VENV := .venv
BIN := $(VENV)/bin
FASTREID := fastreid==1.4.0
PYTHON ?=
PYTEST_ARGS ?=
OUR_CODE := $(wildcard occluded_reid fed_plugin aonet_plugin)

# Two processes of one thread each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: test test-slow test-gpu test-real-data demo lint venv clean-venv pin
.DEFAULT_GOAL := test

test: $(VENV)/.installed
	@$(PYTEST) -n 2 --dist worksteal -m "not slow and not gpu and not real_data" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	@$(PYTEST) -n 2 --dist worksteal -m "slow and not gpu and not real_data" $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed
	@$(PYTEST) -m gpu $(PYTEST_ARGS)

test-real-data: $(VENV)/.installed
	@$(PYTEST) -m real_data $(PYTEST_ARGS)

demo: $(VENV)/.installed
	@$(BIN)/python tools/demo.py

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(OUR_CODE)

venv: $(VENV)/.installed

clean-venv:
	rm -rf $(VENV)

# The exact versions in requirements.txt, for every supported Python; needs a network.
pin: $(VENV)/.installed
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.10 --upgrade \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o $(VENV)/pinned.txt
	@grep -v -e "sys_platform == 'win32'" -e "sys_platform == 'emscripten'" $(VENV)/pinned.txt \
	    > requirements.txt

# The mark .installing tells an interrupted installation from a finished one: it is thrown away.
# What could not be finished by uv (no wheel of it, no route for it to the index) pip does.
$(VENV)/.installed: requirements.txt pyproject.toml
	@if [ -e $(VENV)/.installing ]; then \
	    echo "The last installation was interrupted: starting again."; rm -rf $(VENV); \
	fi
	@if $(BIN)/python -c "" 2>/dev/null; then :; else \
	    python=$$(sh .ci/find_python $(PYTHON)) || exit 1; \
	    echo "Making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@touch $(VENV)/.installing
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@echo "Installing the packages of requirements.txt (at first some 3 GB to download)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv>=0.5" \
	    || echo "uv cannot be had: going on with pip, which takes longer"
	@install() { \
	    if [ -x $(BIN)/uv ]; then \
	        UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install -q --python $(BIN)/python "$$@" && return; \
	        echo "uv failed: trying pip"; \
	    fi; \
	    $(BIN)/python -m pip install -q --disable-pip-version-check "$$@"; \
	}; \
	install -r requirements.txt && install --no-deps $(FASTREID) \
	    && install --no-deps --no-build-isolation -e .
	@mv $(VENV)/.installing $@
	@touch $@
