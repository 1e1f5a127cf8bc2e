"""The pipeline's stages: one thin command each, run as `python -m stages.NAME`."""

import os

# A core to itself is worth more to a stage of the miniature than a second thread (120 training steps take 24 s on one),
# and results do not depend on how many cores a machine has. Read when torch is loaded.
THREADS_CHOSEN = "OMP_NUM_THREADS" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1")
