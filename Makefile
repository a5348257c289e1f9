# Two commands do all set-up in a private environment: `make demo` builds the demo bundle, `make test` runs the tests.
# What they need from the system (Debian/Ubuntu): apt install python3-venv g++ make

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# For llama-cpp-python: images and sound, a quarter of its files, are not for edgekit.
export CMAKE_ARGS := -DLLAVA_BUILD=OFF $(CMAKE_ARGS)

.PHONY: help demo test lint nightly emulator schemas docs clean

help: ## Say what the targets do
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

# The CPU build of torch is a fifth of the size of the default one; where its index does not answer, pip's own is used.
$(VENV)/.torch: $(VENV)/.pip constraints.txt
	@echo "Installing: about 500 MB of downloads; llama-cpp-python is compiled once (5 to 15 minutes of silence)."
	@if $(BIN)/python -c "import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=10)" 2>/dev/null; \
	then index="--index-url $(TORCH_INDEX)"; else index=""; fi; \
	$(BIN)/python -m pip install $$index -c constraints.txt torch
	@touch $@

$(VENV)/.build: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[build,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.build
	$(BIN)/python -m pip install -c constraints.txt -e '.[build,demo,dev]'
	@touch $@

demo: $(VENV)/.build ## Build SmolLM2-135M for a Raspberry Pi 5, show its coherence, let both engines speak
	$(BIN)/edgekit build --target rpi5 --output dist --force --no-runtime
	@echo; echo "llama.cpp says:"
	$(BIN)/edgekit run dist/smollm2-135m.rpi5 "What is a Raspberry Pi? Answer in one sentence." --engine gguf --max-tokens 60
	@echo; echo "onnxruntime says:"
	$(BIN)/edgekit run dist/smollm2-135m.rpi5 "What is a Raspberry Pi? Answer in one sentence." --engine onnx --max-tokens 60

test: $(VENV)/.dev ## Run the unit and integration tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=30 --numprocesses logical --dist loadfile tests/fuzz tests/unit
	$(BIN)/python -m pytest --durations=30 tests/integration

lint: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

nightly: $(VENV)/.dev ## The slow tests as well
	$(BIN)/python -m pytest -m "not hardware"

# Boards need root anyway. Through sudo, the system goes into the cache of who calls it; -B: no byte code of root's here.
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=EDGEKIT_CACHE$(comma)XDG_CACHE_HOME)
comma := ,

emulator: $(VENV)/.build ## Install what emulated boards need (Debian packages, root) and make their system
	$(SUDO) $(BIN)/python -B -m edgekit.emulator install
	$(SUDO) $(BIN)/python -B -m edgekit.emulator setup --whole

schemas: $(VENV)/.build ## Write the JSON schemas again
	$(BIN)/python -m edgekit.targets > docs/schemas/target.schema.json
	$(BIN)/python -m edgekit.bench.result > docs/schemas/bench.schema.json
	$(BIN)/python -m edgekit.bundle.manifest > docs/schemas/manifest.schema.json

docs: $(VENV)/.build ## Write the pages that are made from the code
	$(BIN)/python docs/generate.py

clean: ## Remove the environment, caches and built bundles
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
