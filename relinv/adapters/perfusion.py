"""Perfusion's concepts (Tewel et al. 2023): a gated rank-one edit of every cross-attention's keys and values.

Keys are locked to the concept's super-category, o_K = W_K e_super, so the token is attended to as that word is. Values
o_V are learned. Only i, C^-1 i, e_super and the o_V are stored, 59 KB for Stable Diffusion 1.5: o_K follows from these.
Several concepts in one base are composed into one edit (relinv/diffusion/rank_one.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from relinv.devices import to_device
from relinv.diffusion.adapter import ConceptAdapter, hooks_changed
from relinv.diffusion.cross_attention import projections
from relinv.diffusion.rank_one import Edit, are_distinct
from relinv.errors import UserError
from relinv.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer


# The tensors i, C^-1 i and e_super, (dim,) each.
INPUT, DIRECTION, SUPERCLASS = "concept_input", "concept_direction", "superclass_encoding"
FROZEN = (INPUT, DIRECTION, SUPERCLASS)  # no gradient reaches these


class DrawOptions(Settings):
    """How the edit is drawn: it applies to tokens more similar to the concept than about beta; tau softens that.

    locking: whether keys see the prompt itself (local), or that with the superclass in the token's place (global).
    Published betas are 0.6 to 0.75 with local locking, 0.4 to 0.6 with global, and 0.6 where concepts are combined.
    """

    beta: Annotated[float, Field(ge=-10, le=10)]
    tau: Annotated[float, Field(gt=0, le=10)]
    locking: Literal["local", "global"]


class Adapter(ConceptAdapter):
    """One concept's edit. `tensors` are i, C^-1 i, e_super, and o_V by the names of the layers that compute values.

    Outputs are (out,) each. Imported concepts hold o_K in place of e_super, and outputs that may differ between
    positions, (tokens, out).

    Options: superclass, the word whose keys the token gets; second_moment, the C it was learned by; and `DrawOptions`.
    """

    DrawOptions = DrawOptions
    learning = False  # whether its tensors change between two passes of the UNet

    def prepare(self) -> None:
        """Check the tensors and the locking, and freeze what is not learned by gradients."""
        self._check()
        self.gate: tuple[float, float] = (self.options["beta"], self.options["tau"])  # training sets its own
        for name in self.tensors.keys() & FROZEN:
            self.tensors[name].requires_grad_(False)
        self._keys: dict[str, torch.Tensor] = {}  # o_K of each layer that computes keys, (out,)
        require_lockable(self.base.tokenizer, self.options["superclass"], self.options["locking"])

    def _check(self) -> None:
        """Raise UserError if the tensors do not fit the base's layers."""
        layers, limit = projections(self.base), self.base.tokenizer.model_max_length
        allowed = {name: {(layer.out_features,), (limit, layer.out_features)} for name, layer in layers.items()}
        allowed |= {name: {(self.base.dim,)} for name in FROZEN}
        keys = {name for name in layers if name.endswith("to_k")}
        needless = keys if SUPERCLASS in self.tensors else {SUPERCLASS}  # either gives the other
        wrong = [name for name in allowed if name not in self.tensors and name not in needless]
        wrong += [name for name, tensor in self.tensors.items() if tensor.shape not in allowed.get(name, ())]
        if wrong:
            raise UserError(
                f"The concept's weights do not fit the base '{self.base.id}' (see '{wrong[0]}'), because it was "
                "learned for another kind of base: take one made for this, or name that base in params.yaml."
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the layers are edited for this concept."""
        with self.applied_together([self]):
            yield

    @classmethod
    @contextmanager
    def applied_together(cls, adapters: Sequence[Self]) -> Iterator[None]:
        """Inside the block the layers are edited for all these concepts, by one edit.

        Raises UserError if one cannot be told from another, or was learned with another second moment.
        """
        _require_distinct(adapters)
        with _JointEdit(adapters).installed():
            yield

    def encode(self, prompts: Sequence[str], plain: Callable[[Sequence[str]], torch.Tensor]) -> torch.Tensor:
        """Return the encodings, (prompts, tokens, dim); with global locking, those for values and those for keys.

        These are joined along the last dimension, (prompts, tokens, 2 * dim), and each layer takes its half.
        """
        import torch

        if self.options["locking"] == "local":
            return plain(prompts)
        token = re.compile(re.escape(str(self.token)), re.IGNORECASE)
        renamed = [token.sub(lambda _: self.options["superclass"], prompt) for prompt in prompts]
        dim = self.base.dim  # another concept's encodings may be joined already
        return torch.cat([plain(prompts)[..., :dim], plain(renamed)[..., -dim:]], dim=-1)

    def output(self, name: str, layer: torch.nn.Linear) -> torch.Tensor:
        """Return o of a layer, (out,) or (tokens, out) float32: the learned one, or for keys the superclass's."""
        if name in self.tensors:
            return self.tensors[name]
        if name not in self._keys:  # computed once, since neither factor is learned
            self._keys[name] = layer.weight.float() @ self.tensors[SUPERCLASS]
        return self._keys[name]


class _JointEdit:
    """One edit of a base's layers for some concepts together, and the hooks that make it."""

    def __init__(self, concepts: Sequence[Adapter]) -> None:
        import torch

        self._base, self._concepts = concepts[0].base, concepts
        self._layers = projections(self._base)
        # copied here, because torch.compile cannot trace a copy to a GPU, and `_renew` is part of the pass it traces
        gates = zip(*(concept.gate for concept in concepts), strict=True)
        self._betas, self._taus = (to_device(torch.tensor(values), self._base.device) for values in gates)
        self._prepare()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block the layers have the hooks."""
        with ExitStack() as undo:
            undo.callback(hooks_changed, self._base)
            undo.callback(self._base.unet.register_forward_pre_hook(self._renew).remove)
            for name, layer in self._layers.items():
                half = _keys_half if name.endswith("to_k") else _values_half
                undo.callback(layer.register_forward_pre_hook(half).remove)
                undo.callback(layer.register_forward_hook(self._edit_of(name)).remove)
            hooks_changed(self._base)
            yield

    def _renew(self, *_: Any) -> None:
        """Before a pass of the UNet, update the edit if training may have changed a concept."""
        if any(concept.learning for concept in self._concepts):
            self._prepare()

    def _prepare(self) -> None:
        """Compute what depends only on the concepts, not on the prompt or the step."""
        import torch

        concepts = self._concepts
        with torch.no_grad():
            self._edit = Edit.of(stacked(concepts, INPUT), stacked(concepts, DIRECTION), self._betas, self._taus)
            self._projected = {  # W u_j of each layer, (concepts, out)
                name: self._edit.basis @ layer.weight.float().T for name, layer in self._layers.items()
            }
        self._outputs = {name: [c.output(name, layer) for c in concepts] for name, layer in self._layers.items()}

    def _edit_of(self, name: str) -> Callable[..., torch.Tensor]:
        """Return the forward hook of a layer, which computes in float32 if the base is not under autocast."""

        def edit(layer: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            """Return the layer's output, (batch, tokens, out), with the concepts' values in it."""
            edited = self._edit.apply(inputs[0].float(), output.float(), self._projected[name], self._outputs[name])
            return edited.to(output.dtype)  # (batch, tokens, out)

        return edit


def require_lockable(tokenizer: CLIPTokenizer, superclass: str, locking: str) -> None:
    """Raise UserError if the locking is global and the superclass more than one token."""
    if locking == "global" and len(tokenizer(superclass, add_special_tokens=False).input_ids) > 1:
        raise UserError(
            f"Perfusion's locking cannot be global with '{superclass}', which is more than one token: the keys of all "
            "words after it would be their neighbours'. Take a shorter superclass, or local."
        )


def _require_distinct(concepts: Sequence[Adapter]) -> None:
    """Raise UserError if one concept cannot be told from another, or has another second moment."""
    if len(concepts) == 1:
        return  # before any number is read, which would wait for a GPU
    if len({other.options["second_moment"] for other in concepts}) > 1:
        raise UserError(
            "Two of the concepts in use were learned with different second moments of the base's encodings: "
            "invert both with the same captions."
        )
    if not are_distinct(*(stacked(concepts, name) for name in (INPUT, DIRECTION))):
        raise UserError("Two of the concepts in use have one encoding, so no edit tells them apart: use one of them.")


def stacked(concepts: Sequence[Adapter], name: str) -> torch.Tensor:
    """Return the tensor `name` of every concept, (concepts, dim) without gradient."""
    import torch

    return torch.stack([concept.tensors[name].detach() for concept in concepts])


def _values_half(layer: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Return the first half of joined encodings, (batch, tokens, 2 * dim) to (batch, tokens, dim)."""
    return (inputs[0][..., : layer.in_features],)


def _keys_half(layer: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Return the second half of joined encodings, (batch, tokens, 2 * dim) to (batch, tokens, dim)."""
    return (inputs[0][..., -layer.in_features :],)
