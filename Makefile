# Two commands: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
EXTRAS := models,train,tune,serve,ui,whisper,faster-whisper,s3,demo,monitoring,docs,notebooks,dev
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
DEMO_ARGS ?=

export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test bench docs lint format install clean

demo: $(INSTALLED)
	$(BIN)/spark-ray demo $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

# torch comes first and pinned, or a later package would pull its newest CUDA build; DeepSpeed is
# a source package whose build looks at the installed torch.
$(INSTALLED): pyproject.toml requirements/no-deps.txt $(CONSTRAINTS)
	@echo "Installing into $(VENV): 2 to 5 minutes and about 4 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch setuptools
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation deepspeed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) demo site build dist *.egg-info
