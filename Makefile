# `make help` lists what there is. Every target first makes .venv when it is missing or out of date.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := $(PY) -m pip --disable-pip-version-check --no-input

# The first Python on the path that runs and is new enough; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# Seconds: for all tests together, and for one lesson.
BUDGET := 1200
LESSON := 300
BROWSER = $(PY) -m pytest --session-timeout=$(BUDGET) -m browser tests/browser

.DEFAULT_GOAL := help
.PHONY: help setup new-venv demo lab test lint docs status shots bench browser doctor clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything in it (2 to 5 minutes, once)

# A folder that was moved or copied has a .venv full of old paths: it is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null || echo $(CURDIR)),$(CURDIR))
MOVED := yes
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "workbench needs Python 3.11 or newer, and none is on the path." \
		"Install it, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(if $(MOVED),echo "$(VENV) was made in another folder; making it anew."; rm -rf $(VENV))
	@$(PY) -c 'import pip' >/dev/null 2>&1 || $(MAKE) --no-print-directory new-venv
	@echo "Installing the versions in constraints.txt into $(VENV). The first time this takes minutes: PyTorch is large."
	@$(PIP) install --quiet -c constraints.txt "torch==2.13.0"
	@$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@echo $(CURDIR) > $@
	@echo "$(VENV) is ready."

# Debian's Python comes without ensurepip; its pip can still put a pip into the new .venv.
new-venv:
	@echo "Making $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(PY) --disable-pip-version-check install --quiet pip; } || \
		{ echo "$(PYTHON) cannot make a virtual environment: both its venv module and its pip are missing." \
		"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

demo: $(READY)  ## watch the shipped model learn: headless, into runs/demo
	$(VENV)/bin/workbench demo $(ARGS)

lab: $(READY)  ## open JupyterLab on the lessons (ARGS="--no-browser --port 8889" goes to JupyterLab)
	$(VENV)/bin/workbench lab $(if $(ARGS),-- $(ARGS))

doctor: $(READY)  ## say what works on this machine
	$(VENV)/bin/workbench doctor $(ARGS)

lint: $(READY)  ## style, and the rule about who imports whom
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

test: $(READY) lint browser  ## lint, then all tests, lessons and browser tests
	$(PY) -m pytest -n 2 --dist loadfile --session-timeout=$(BUDGET) --nbmake --nbmake-timeout=$(LESSON) \
		-m "not browser and not bench" tests notebooks $(ARGS)
	$(BROWSER) || { test $$? -eq 1 && echo "Once more, those that failed: a machine that stalls fails a page once," \
		"a fault fails it twice." && $(BROWSER) --last-failed --last-failed-no-failures none; }

docs: $(READY)  ## write the generated pages and tables of docs/ anew, from the source
	$(PY) -m docs.generator

status: $(READY)  ## run every example of the catalogue, and write down which methods work
	WORKBENCH_WRITE_STATUS=1 $(PY) -m pytest -q tests/test_catalogue.py

shots: $(READY) browser  ## take the pictures of docs/views.md anew, from real runs
	WORKBENCH_SHOTS=docs/images $(PY) -m pytest -q tests/browser/test_browser_shots.py

bench: $(READY)  ## measure speed and memory, and write the tables of docs/speed.md (ARGS="--only sft,dpo", "--all")
	@$(PY) tests/bench/collect.py $(ARGS)
	@$(PY) -m pytest -q -s -m bench tests || test $$? -eq 5

# The browser tests drive the system's Chromium. Where it cannot be had they are skipped, and say so.
browser: $(READY)
	@test -x /usr/bin/chromium || { \
		echo "The browser tests need Chromium: installing it with apt-get."; \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
		{ $$as_root apt-get update -qq; \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			-o DPkg::Lock::Timeout=120 chromium; } </dev/null >$(VENV)/chromium.log 2>&1 || true; }
	@test -x /usr/bin/chromium || { tail -n 3 $(VENV)/chromium.log; \
		echo "Chromium could not be installed (the whole story: $(VENV)/chromium.log), so the browser tests are"; \
		echo "skipped. To run them, install Chromium so that /usr/bin/chromium is there: apt-get install chromium"; }

clean:  ## remove build outputs and caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find workbench tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
