# Two commands: `make demo` and `make test`. Python >= 3.11 and make are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := survive faults targets reporters tests

.PHONY: demo test check format clean live schema matrix soak-kill docs exam exam-real bench bench-proxy bench-freeze bench-memory bench-diff

demo: $(VENV)/.installed
	$(BIN)/survive run scenarios/quickstart.survive.yaml

test: $(VENV)/.tests
	$(BIN)/python -m pytest -q -n 4 -m "not alone"
	$(BIN)/python -m pytest -q -m alone

check: $(VENV)/.tests
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy survive faults targets reporters

format: $(VENV)/.tests
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

schema: $(VENV)/.installed
	$(BIN)/survive schema scenario > schema/scenario.v1.json
	$(BIN)/survive schema target > schema/target.v1.json
	$(BIN)/survive schema verdict > schema/verdict.v1.json
	$(BIN)/survive schema diff > schema/diff.v1.json

# Every fault kind, ended in every way: docs/matrix.md (20 minutes on two cores, as root).
matrix: $(VENV)/.tests
	$(BIN)/python tests/matrix/matrix.py -o docs/matrix.json

# kill -9 at 200 random moments; nothing may be left (ten minutes on two cores).
soak-kill: $(VENV)/.tests
	$(BIN)/python tests/matrix/soak.py

# Plant every weakness, see that the scenarios find it: ten seeds, and the kill matrix.
exam: $(VENV)/.installed
	$(BIN)/survive exam -o docs/exam.md

# The same claims on one seed in real time, one run after the other.
exam-real: $(VENV)/.installed
	$(BIN)/survive exam --real --cells -o docs/exam-real.md

docs: $(VENV)/.installed
	$(BIN)/python -m survive.host.docs docs

clean:
	rm -rf $(VENV) runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml hatch_build.py survive/load/_fastlanes.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "survive needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

bench-proxy: $(VENV)/.installed
	$(BIN)/python benchmarks/proxy.py

# The load generator beside wrk, hey, k6, Locust, guidellm, AIPerf (half an hour, an idle machine).
bench: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python benchmarks/load.py

# What generators say of a server that freezes: docs/coordinated-omission.md (a minute).
bench-freeze: $(VENV)/.installed
	$(BIN)/python benchmarks/freeze.py

# What `survive diff` says where nothing changed, and of planted weaknesses (an hour on one core).
bench-diff: $(VENV)/.installed
	$(BIN)/python benchmarks/diff.py -o benchmarks/results-diff.md

# Memory of a load worker at full rate (ten minutes).
bench-memory: $(VENV)/.installed
	$(BIN)/python benchmarks/memory.py -o benchmarks/results-memory.md
