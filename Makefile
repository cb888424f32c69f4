# make run    dense and expanded GPT at one learning rate, dense at its own: three runs, a text, a table, two sentences;
#             interrupted, the same command goes on; what is done stays done: rm -r out/run to start anew
# make test   lint and all tests, with the check of RESULTS.md and the documents against the logs
# make test-fast   the tests that are not marked slow
# make compare-demo   a small comparison on a CPU: three arms, up to six seeds, learning rates swept; table, plots, page
# make torture     200 runs killed, some in the middle of a write: each must end the same to the bit (minutes)
# make fuzz        10,000 odd inputs each for flags and configs, checkpoints, token files, records of runs: each is
#             accepted, or refused in one line, in 5 seconds and little memory (minutes; FUZZ_CASES=1000 for fewer)
# All set up .venv with the pinned packages first. PYTHON chooses the interpreter (3.11 or later).

PYTHON ?= python3
PY = .venv/bin/python

.PHONY: run compare-demo test test-fast torture fuzz lint clean

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "nanoMorph needs Python 3.11 or later, this is " + sys.version.split()[0] + "; make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

RUNS = out/run/dense out/run/expanded out/run/dense-own-rate

run: .venv/ready $(RUNS:%=%/done)
	$(PY) sample.py --out_dir=$$($(PY) plot.py $(RUNS) --best)
	$(PY) plot.py $(RUNS) --story --out=out/run/loss.png

out/run/dense/done: CONFIG = config/shakespeare_char.py
out/run/expanded/done: CONFIG = config/expansive_shakespeare.py
out/run/dense-own-rate/done: CONFIG = config/shakespeare_char_own_rate.py

out/run/%/done: | .venv/ready
	$(PY) train.py $(CONFIG) --out_dir=$(@D) $(if $(wildcard $(@D)/ckpt.pt),--init_from=resume)
	touch $@

compare-demo: .venv/ready
	$(PY) compare.py config/compare/demo.py

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	$(PY) -m pytest -q -n 2

test-fast: lint
	$(PY) -m pytest -q -n 2 -m "not slow"

torture: .venv/ready
	$(PY) tests/torture.py --kills=200

fuzz: .venv/ready
	$(PY) tests/fuzz.py

clean:
	rm -rf .venv out .pytest_cache .ruff_cache
