"""Multiresolution Textual Inversion's published files: a pipeline's text encoder, whose table has the learned rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relinv.diffusion.bases import Base
from relinv.diffusion.token_rows import ROWS
from relinv.errors import UserError
from relinv.exchange.tensor_files import floats, rows
from relinv.exchange.token_files import Published

TABLE = "text_model.embeddings.token_embedding.weight"
NORM = "final_layer_norm.weight"  # of the text encoder's last layer, which this training leaves as it is


def is_text_encoder(content: Mapping[str, Any]) -> bool:
    """Return whether a file holds a text encoder."""
    return TABLE in content


def read_multires(content: Mapping[str, Any], file: Path, base: Base) -> Published:
    """Return the token whose rows, one for each part of the timesteps, end the token table in `content` of `file`.

    It is named after the pipeline's folder, as the published loader does. The `learned_embeds.bin` in that folder holds
    its last row alone. Raises UserError unless the table is the base's with at least two rows more, decayed as that
    training decays it (by AdamW; a copy of it without weight decay cannot be told from what other programs save), and
    the encoder is the base's otherwise.
    """
    import torch

    table = rows(content[TABLE], TABLE, file)
    known = len(base.table)
    if len(table) < known + 2:
        raise UserError(
            f"'{file}' is a text encoder with {len(table)} rows, where the base '{base.id}' has {known}: only one with "
            "the rows of a token after these, as Multiresolution Textual Inversion saves it, can be imported."
        )
    norm, own = content.get(f"text_model.{NORM}"), base.text_encoder.state_dict()[NORM]
    same = norm is not None and torch.equal(floats(norm, NORM, file).half(), own.cpu().half())
    decayed = not torch.equal(table[:known].half(), base.table.detach().cpu().half())
    if table.shape[1] == base.dim and not (same and decayed):  # of another width, the caller tells that
        raise UserError(
            f"'{file}' is a text encoder that was not saved by Multiresolution Textual Inversion, but by its "
            "DreamBooth form or by another program: its rows are not all that was learned, or not for ranges of "
            "timesteps. It cannot be imported."
        )
    name = file.absolute().parent.parent.name  # of FOLDER/text_encoder/pytorch_model.bin
    return Published(f"<{name}>", None, adapter="multires", tensors={ROWS: table[known:].clone()})
