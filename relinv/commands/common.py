"""What several commands share: arguments, and a base that needs no GPU."""

from __future__ import annotations

from relinv.diffusion.bases import Base, load_base
from relinv.params import load_params

ON_CPU = {"device": "cpu"}


def base_on_cpu() -> Base:
    """Return the base in use on the CPU, for what reads or checks its weights: a machine without its GPU will do."""
    return load_base(load_params().model().model_copy(update=ON_CPU))
