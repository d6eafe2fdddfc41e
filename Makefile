comma := ,
# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A range would pull gigabytes of CUDA on a machine without a GPU.
TORCH ?= torch==2.13.0
# LOCK=requirements.lock installs the versions that the tests last passed with.
LOCK ?=
STUDENT ?= runs/emoji-4step/student

.PHONY: setup demo targets matrix methods guided tutorials interop peers docs reference faults test test-core test-export test-fast slow wheels lock lint fix bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml runtime/pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(if $(LOCK),-c $(LOCK)) -e runtime -e ".[dev,all]"
	! command -v npm >/dev/null || npm install --prefix runtime/web --omit=optional --ignore-scripts --no-audit --no-fund --silent
	touch $@

demo: setup
	$(BIN)/edgedistill distill recipe=emoji-4step
	$(BIN)/edgedistill export --target auto
	$(BIN)/edgedistill bench
	$(BIN)/edgedistill evaluate
	$(BIN)/edgedistill report
	$(BIN)/edgedistill generate runs/latest/bundles/ort-fp32 "red apple, noto" --seed 3 --out runs/apple.png

# Every target and precision of one student: sizes, parity, latencies, and int8 with and without training.
targets: setup
	test -d $(STUDENT) || $(BIN)/edgedistill distill recipe=emoji-4step out=$(patsubst %/student,%,$(STUDENT))
	test -d runs/emoji-4step-qat || $(BIN)/edgedistill distill recipe=emoji-4step-qat student.init=$(STUDENT) out=runs/emoji-4step-qat
	$(BIN)/python benchmarks/targets.py $(STUDENT) --qat runs/emoji-4step-qat/student --out runs/targets

# A tiny student of every family to every target, each cell in a process of its own; taken up where it stopped.
matrix: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/matrix.py

# Every method on planar mixtures, where the truth is known; MIXTURE=FILE adds another. What is there already is not repeated.
methods: setup
	$(BIN)/python benchmarks/methods.py --one-step --alone --mixtures ring,grid,clusters$(if $(MIXTURE),$(comma)$(MIXTURE))

# Methods that guidance is for, on a mixture of two classes, where the truth is known.
guided: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guided.py

# Every page of docs/tutorials as a reader runs it; PAGES=FILES for some. Prints the seconds of each.
tutorials: setup
	$(BIN)/python benchmarks/tutorials.py $(PAGES)

# A student and a bundle opened in optimum, in an environment of its own; pictures compared.
interop: setup
	$(BIN)/python benchmarks/interop.py

# The student and its bundles against diffusers, optimum and OpenVINO GenAI, each in environments of their own: hours.
peers: setup
	$(BIN)/python benchmarks/peers.py $(STUDENT)

# The site of docs/, in build/site; fails on a broken link.
docs: setup
	$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# The pages of docs/reference that are made from code, and the charts of docs/results from their tables.
reference: setup
	$(BIN)/python docs/generate.py

# Two halves side by side, one thread each.
test: setup
	$(MAKE) --no-print-directory -j2 -Otarget test-core test-export

# What the second half tests; the first tests all other folders.
SECOND := tests/export tests/planning

test-core: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(ONLY),--measure build/core.json) $(addprefix --ignore=,$(SECOND))

test-export: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(ONLY),--measure build/export.json) $(SECOND)

# The tests that tests/slow.txt leaves: 80 seconds of a core in each half, once `make slow` has measured both.
test-fast: setup
	$(MAKE) --no-print-directory -j2 -Otarget test-core test-export ONLY='-m "not slow"'

# tests/slow.txt anew, from what the last `make test` measured.
slow: setup
	$(BIN)/python tests/measuring.py build/core.json build/export.json > build/slow.txt
	LC_ALL=C sort -u build/slow.txt > tests/slow.txt

# Both packages built into dist/, and their wheels tried in an empty environment.
wheels: setup
	$(BIN)/python benchmarks/wheels.py --torch "$(TORCH)"

# The versions of this environment, for LOCK.
lock: setup
	grep '^#' requirements.lock > requirements.lock.new
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> requirements.lock.new
	mv requirements.lock.new requirements.lock

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/runtime_overhead.py

# Kills, damage and fuzzed inputs, tried on the real programs: about an hour. What was interrupted goes on.
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --out runs/faults
