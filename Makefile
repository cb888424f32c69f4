# make run    train an expanded GPT and its dense twin on Shakespeare, collapse, plot, sample
# make test   lint and all tests, with the check of RESULTS.md and README.md against the logs
# make test-fast   the tests that take less than a minute together
# make compare-demo   a small comparison on a CPU: two arms, three seeds, learning rates swept; table, plots, page
# All set up .venv with the pinned packages first. PYTHON chooses the interpreter (3.11 or later).

PYTHON ?= python3
PY = .venv/bin/python

.PHONY: run compare-demo test test-fast lint clean

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "nanoMorph needs Python 3.11 or later, this is " + sys.version.split()[0] + "; make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

run: .venv/ready
	$(PY) train.py config/shakespeare_char.py --out_dir=out/run/dense
	$(PY) train.py config/expansive_shakespeare.py --out_dir=out/run/expanded
	$(PY) plot.py out/run/dense out/run/expanded --out=out/run/loss.png
	$(PY) transfer.py collapse --checkpoint=out/run/expanded/best.pt --out=out/run/collapsed/ckpt.pt
	$(PY) sample.py --checkpoint=out/run/collapsed/ckpt.pt

compare-demo: .venv/ready
	$(PY) compare.py config/compare/demo.py

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	$(PY) -m pytest -q -n 2

test-fast: lint
	$(PY) -m pytest -q -n 2 -m "not slow"

clean:
	rm -rf .venv out .pytest_cache .ruff_cache
