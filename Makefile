# `make serve` and `make test` are all a newcomer needs; both set themselves up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: install models serve test lint typecheck unit fuzz bench bench-gpu browser npm turnserver clean docs

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "duplex needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[local]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[local,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps moshi==0.2.13
	@touch $@

models: install
	$(BIN)/duplex models pull

serve: models
	$(BIN)/duplex serve

# $(call debian,commands,package,for what): what the tests drive besides Python, installed where it is missing.
AS_ROOT = $$( [ $$(id -u) = 0 ] || echo sudo )
define debian
	@for command in $(1); do command -v $$command >/dev/null && exit 0; done; \
	  { $(AS_ROOT) apt-get update -qq && \
	    $(AS_ROOT) apt-get install -y -qq --no-install-recommends $(2) >/dev/null; } || \
	  { echo "Install $(2) to run the tests of $(3)."; exit 1; }
endef

browser:
	$(call debian,chromium chromium-browser google-chrome,chromium,the page)

npm:
	$(call debian,npm,npm,the official JavaScript client)

turnserver:
	$(call debian,turnserver,coturn,calls through a relay)

test: $(VENV)/.installed-dev models browser npm turnserver lint typecheck unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not see that folders map to sub-packages, and codecs/ would shadow the standard library: link them.
typecheck: $(VENV)/.installed-dev
	@rm -rf build/typing && mkdir -p build/typing/duplex
	@ln -s "$(CURDIR)"/duplex/* build/typing/duplex/
	@for d in benchmarks codecs thinker_talker transport web_demo; do ln -s "$(CURDIR)/$$d" build/typing/duplex/$$d; done
	cd build/typing && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p duplex

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Longer than the tests do, each target for so many seconds: make fuzz SECONDS=600 TARGET=events,sdp (docs/fuzzing.md)
SECONDS ?= 60
TARGET  ?= all
fuzz: $(VENV)/.installed-dev
	cd tests && $(abspath $(BIN))/python -m fuzz --seconds $(SECONDS) --target $(TARGET)

bench: models
	$(BIN)/duplex bench voice

# On a machine with a GPU: its tests, then the native engine's table for a 7B. No network; under nine minutes. PYTHON
# needs PyTorch with CUDA; benchmarks/engine/gpu_machine.py says how what else it lacks comes from the folder WHEELS.
WHEELS ?= .whl
bench-gpu:
	$(PYTHON) benchmarks/engine/gpu_machine.py --wheels $(WHEELS) $(BENCH_GPU)

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache *.egg-info
