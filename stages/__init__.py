"""The pipeline's stages: one thin command each, run as `python -m stages.NAME`."""

import os

# One thread: a stage of the miniature gains more from a core to itself than from a second thread (120 training steps
# take 24 s on one), and results do not depend on how many cores a machine has. torch reads this when it is imported.
THREADS_CHOSEN = "OMP_NUM_THREADS" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1")
