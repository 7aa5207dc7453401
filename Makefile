# make test    build .venv if need be, run the tests        make lint        ruff and mypy
# make demo    build .venv if need be, train and evaluate   make clean-venv  remove .venv
# Other targets: venv, configuration, site, test-slow, test-docs, test-wheel, test-extras, test-trackers, test-gpu, test-real-data, pin. PYTHON=...
# chooses the interpreter, PYTEST_ARGS=... goes to pytest.

VENV := .venv
BIN := $(VENV)/bin
FASTREID := fastreid==1.4.0
EVALUATOR := reid==0.1.0rc1
PYTHON ?=
PYTEST_ARGS ?=
OUR_CODE := occluded_reid fed_plugin aonet_plugin gallery_search
EXTRAS_VENV := .venv-extras
EXTRAS := onnx,openvino,web,video,milvus,ray
TRACKERS_VENV := .venv-trackers
TRACKERS := boxmot==25.0.0 trackers==2.6.1 tracklab==1.3.24 motmetrics==1.4.0

# Two processes of one thread each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
ANYWHERE := not gpu and not real_data and not extras and not trackers

# Installs into the environment whose programs stand in $(1). What could not be finished by uv (no
# wheel of it, no route for it to the index) pip does.
INSTALL = install() { \
    if [ -x $(BIN)/uv ]; then \
        UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install -q --python $(1)/python "$$@" && return; \
        echo "uv failed: trying pip"; \
    fi; \
    $(1)/python -m pip install -q --disable-pip-version-check "$$@"; \
};

.PHONY: site configuration test test-slow test-docs test-wheel test-extras test-trackers test-gpu test-real-data demo lint venv clean-venv pin
.DEFAULT_GOAL := test

test: $(VENV)/.installed
	@$(PYTEST) -n 2 --dist worksteal -m "not slow and $(ANYWHERE)" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	@$(PYTEST) -n 2 --dist worksteal -m "slow and $(ANYWHERE)" $(PYTEST_ARGS)

# The commands of README.md, docs and projects, on tiny data.
test-docs: $(VENV)/.installed
	@$(PYTEST) tests/test_docs.py tests/test_example_method.py $(PYTEST_ARGS)

# Builds the wheel, installs it elsewhere and uses it from another folder.
test-wheel: $(VENV)/.installed
	@$(PYTEST) tests/test_wheel.py $(PYTEST_ARGS)

# In an environment of its own: what is optional must not be needed in $(VENV).
test-extras: $(EXTRAS_VENV)/.installed
	@OMP_NUM_THREADS=1 $(EXTRAS_VENV)/bin/python -m pytest -q -m "extras and not gpu" $(PYTEST_ARGS)

# BoxMOT is AGPL: nothing of ours contains it or needs it.
test-trackers: $(TRACKERS_VENV)/.installed
	@OMP_NUM_THREADS=1 $(TRACKERS_VENV)/bin/python -m pytest -q -m trackers tests/deploy $(PYTEST_ARGS)

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
	@MYPYPATH=benchmarks $(BIN)/mypy --explicit-package-bases benchmarks

venv: $(VENV)/.installed

clean-venv:
	rm -rf $(VENV) $(EXTRAS_VENV) $(TRACKERS_VENV)

# docs/configuration.md, from the code that adds the keys.
configuration: $(VENV)/.installed
	@$(BIN)/python docs/make_configuration.py

# The pages as a web site in build/site; needs git, and the extra docs: pip install -e '.[docs]'
site:
	@rm -rf build/pages && mkdir -p build/pages
	@git ls-files -z '*.md' '*.jpg' '*.png' docs projects | xargs -0 cp --parents -t build/pages
	@$(BIN)/python -m mkdocs build -q

# The exact versions in requirements.txt, for every supported Python; needs a network.
pin: $(VENV)/.installed
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.10 --upgrade \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o $(VENV)/pinned.txt
	@grep -v -e "sys_platform == 'win32'" -e "sys_platform == 'emscripten'" $(VENV)/pinned.txt \
	    > requirements.txt

# The mark .installing tells an interrupted installation from a finished one: it is thrown away.
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
	@$(call INSTALL,$(BIN)) \
	install -r requirements.txt && install --no-deps $(FASTREID) \
	    && install --no-deps --no-build-isolation -e .
	@mv $(VENV)/.installing $@
	@touch $@

# The newest packages that the bounds in pyproject.toml allow, so that the bounds are tried too.
$(EXTRAS_VENV)/.installed: $(VENV)/.installed
	@echo "Making $(EXTRAS_VENV) with the extras $(EXTRAS)"
	@$(BIN)/python -m venv --clear $(EXTRAS_VENV)
	@$(call INSTALL,$(EXTRAS_VENV)/bin) \
	install -e '.[dev,$(EXTRAS)]' playwright && install --no-deps $(FASTREID) $(EVALUATOR)
	@touch $@

# They bring opencv-python, in place of dev's headless one.
$(TRACKERS_VENV)/.installed: $(VENV)/.installed
	@echo "Making $(TRACKERS_VENV) with $(TRACKERS) $(EVALUATOR)"
	@$(BIN)/python -m venv --clear $(TRACKERS_VENV)
	@$(call INSTALL,$(TRACKERS_VENV)/bin) \
	install -e . pytest $(TRACKERS) $(EVALUATOR) && install --no-deps $(FASTREID)
	@touch $@
