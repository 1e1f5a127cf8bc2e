"""The pipeline's stages: one thin command each, run as `python -m stages.NAME`."""

import os

# Threads that spin while they wait fight over the cores when anything else runs: a training step beside one busy
# process took 0.2-0.65 s with the default and 0.22 s with this; alone, 0.10 s and 0.12 s. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
