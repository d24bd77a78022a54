# The same commands that CI runs. Each does its own set-up from a fresh clone; needs Python 3.10-3.13 and pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEBIAN := chromium nginx redis-server openssl

.PHONY: run test test-slow check fix docs bench eval dist lock clean debian

run: $(VENV)/.run  ## install and serve the embedded model on 127.0.0.1:8080
	$(BIN)/visiongate serve

test: $(VENV)/.test debian  ## the whole suite, slow and CUDA tests excepted
	$(BIN)/python -m pytest

test-slow: $(VENV)/.test debian  ## what needs minutes or gigabytes
	$(INSTALL) -e ".[ray]"
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.test  ## format, lint, types, floors, large files, keys
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_tree.py

fix: $(VENV)/.test  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test  ## the standard work against what is installed of the peers
	$(BIN)/python -m benchmarks

eval: $(VENV)/.run  ## the embedded model on held-out questions
	$(BIN)/visiongate eval

dist: $(VENV)/.test  ## wheel and sdist with page and kernels
	$(INSTALL) build
	$(BIN)/python -m build

lock: $(VENV)/.test  ## write constraints.txt from what is installed
	( echo "# Exact versions that CI uses; floors are in pyproject.toml. Remade by: make lock"; \
	  $(BIN)/python -m pip freeze | grep -viE '^(-e|#|visiongate)|@ ' | sed 's/+cpu//' | sort -f ) > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) dist build .build-stamps src/visiongate/static src/visiongate/kernels/_native.so

NATIVE := $(wildcard src/visiongate/kernels/csrc/*)
PAGE := $(shell find webui -path webui/node_modules -prune -o -type f -print 2>/dev/null)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml hatch_build.py constraints.txt $(NATIVE) $(PAGE) | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e ".[test,check,redis,xlsx,pdf]"
	touch $@

# What the suite needs from Debian: installed where this user may, else named with the tests that stay out.
debian:
	@missing=""; for name in $(DEBIAN); do \
	  command -v $$name >/dev/null 2>&1 || [ -x /usr/sbin/$$name ] || missing="$$missing $$name"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
	      || echo "could not install$$missing: tests that need them are skipped"; \
	  else \
	    echo "not installed:$$missing; tests that need them are skipped (apt-get install$$missing)"; \
	  fi; fi
