# make reproduce: set up and rebuild every result.  make test: set up and run the tests.
# Both use the packages pinned in constraints.txt, in .venv; to choose an interpreter: make reproduce PYTHON=python3.12
PYTHON ?= python3
INSTALLED := .venv/.installed

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# the miniature needs no network; for a base from the hub: make reproduce HF_HUB_OFFLINE=0
export HF_HUB_OFFLINE ?= 1

# up to a quarter faster on a CPU where this allocator is installed; no result depends on it
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))

.PHONY: reproduce test

reproduce: $(INSTALLED)
	LD_PRELOAD="$(TCMALLOC)" dvc repro

test: $(INSTALLED)
	python -m ruff check .
	python -m pytest

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
