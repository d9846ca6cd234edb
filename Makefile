# make demo | test | lint | bench | gpu: each sets up what it needs on a fresh machine.
#
# The set-up installs into .venv. torch is pinned there because the newest release brings gigabytes of CUDA packages with
# it; to build against a torch of your own, activate its environment and run make VENV=0.

TORCH ?= torch==2.13.0
VENV ?= 1
export THP_MEM_ALLOC_ENABLE ?= 1

ifeq ($(VENV),1)
PYTHON := .venv/bin/python
STAMP := .venv/ready
else
PYTHON ?= python3
STAMP :=
endif

.PHONY: setup demo demo-brain test test-all lint format bench gpu cuda clean

setup: $(STAMP)

.venv/bin/python:
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet $(TORCH)

# the editable install builds the kernels; it runs again when a native source or the build itself has changed
$(STAMP): .venv/bin/python pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	.venv/bin/python -m pip install --quiet "setuptools>=77" wheel cmake ninja
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m pip install --quiet --no-build-isolation -e ".[cli,test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(PYTHON) -m deqreg demo lung -o out/lung

demo-brain: $(STAMP)
	$(PYTHON) -m deqreg demo brain -o out/brain

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow"

test-all: $(STAMP)
	$(PYTHON) -m pytest

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)
	.venv/bin/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

format: $(STAMP)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	.venv/bin/clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# the native layer on its own: its tests, and, wherever nvcc is, the CUDA sources compiled without a spill
cuda: $(STAMP)
	$(PYTHON) .ci/native.py

# JSON, a roofline plot and README's table of operators
bench: $(STAMP)
	$(PYTHON) benchmarks/ops.py
	$(PYTHON) benchmarks/tables.py

# for a machine with a GPU and perhaps no package registry: takes the torch that is there, installs nothing
gpu:
	python3 .ci/gpu.py

clean:
	rm -rf build .venv out deqreg/*.so *.egg-info
