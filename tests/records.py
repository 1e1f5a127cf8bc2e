"""The record of an image that was never drawn."""

from __future__ import annotations

from relinv.images import ImageRecord

SETTINGS = {"pairs": "all", "seed": 3, "steps": 25, "guidance_scale": 5.0, "scheduler": "dpmpp", "batch_size": 50,
            "resolution": 16, "base": "data/some/base", "base_sha256": "abcdef0123456789"}  # fmt: skip


def record(index: int, **changes: object) -> ImageRecord:
    """Return the record of the picture at `index`; `changes` are to its fields."""
    fields = {
        "file": f"{index:03d}.png",
        "prompt": "cat <r> box",
        "head": "cat",
        "tail": "box",
        "relation": "inside",
        "index": index,
        "seed": 2**32 - 1,
        "held_out": None,
        "method": "reversion",
        "settings": SETTINGS,
    }
    return ImageRecord(**{**fields, **changes})
