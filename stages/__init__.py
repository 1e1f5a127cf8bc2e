"""The pipeline's stages: one thin command each, run as `python -m stages.NAME`."""

import os

# The miniature gains nothing from a second thread (150 training steps: 34.2 s on one core, 33.7 s on two), two stages
# beside each other do; and results do not depend on how many cores a machine has. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
