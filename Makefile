# The six words. PYTHON chooses the interpreter: `make test PYTHON=.venv/bin/python`.

PYTHON ?= python3

.PHONY: format check test test-all bench docs

format:  ## what machines write: layout, import order, generated tables
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m docs.tables

check:  ## what machines read
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test:  ## the tests that a pull request must pass
	$(PYTHON) -m pytest -n 2

test-all:  ## the slow ones as well
	$(PYTHON) -m pytest -m ""

bench:  ## the benchmarks, and the main race with its default budget into runs/race
	for name in muon_step kronecker orthogonalization curvature state_bytes elementwise flat_minima \
	  zeroth_order private_and_robust; do \
	  $(PYTHON) benchmarks/$$name.py || exit 1; \
	done
	for name in predict_then_run schedules matrix first_order tuning_free; do \
	  $(PYTHON) benchmarks/$$name.py --out runs/$$name || exit 1; \
	done
	$(PYTHON) -m optlab.lab.cli race --out runs/race

docs:  ## the site, every warning an error; result in site/
	$(PYTHON) -m mkdocs build --strict
