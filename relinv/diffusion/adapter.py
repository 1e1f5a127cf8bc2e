"""What an adapter is: something a concept changes in a frozen base while it is in use, and undoes afterwards.

A method (relinv/learning/method.py) says how something is learned, an adapter what it does once it is learned:
training, previews and drawing put it in place by the same code. A token's single row needs none: it is part of every
concept (relinv/diffusion/embeddings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError, unknown
from relinv.plugins import find_plugin

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base
    from relinv.settings import Settings

    # What changes latents before a step of sampling: (latents, timestep, share of the steps taken, encodings) to
    # latents. A share means the same however many steps there are; the encodings are those the step conditions on,
    # which several adapters may have made.
    Guidance = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]


class ConceptAdapter:
    """Learned tensors, and how they are put in their place within a base for a while.

    `tensors` are what is learned, by the names they have in the concept's file, as float32 parameters on the base's
    device: training optimises these very objects. `options` are what the method's settings say of their use. Each part
    below has a neutral default; an adapter overrides its own.
    """

    FILE = "weights.safetensors"  # the file of a concept folder that keeps `tensors`
    shares_unet = False  # whether the UNet is the same inside the block, so that several may share its one pass
    Drawing: type[Settings] | None = None  # the options that may be chosen anew at each drawing
    addable = False  # whether concepts that were learned without it may be drawn with it; it has no tensors then
    replaces_layers = False  # whether it puts modules or weights in the place of others, to be done before any hook

    def __init__(
        self, base: Base, token: str | None, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        """Take copies of `tensors`; the base is not changed yet. UserError where they do not fit it."""
        import torch

        self.base, self.token, self.options = base, token, dict(options)
        self.tensors = {
            name: torch.nn.Parameter(tensor.detach().float().to(base.device, copy=True))
            for name, tensor in tensors.items()
        }

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the tensors are in their place; leaving it, by an error too, restores the base bit by bit.

        Blocks nest: inside another adapter's, both hold. What fails on the way in leaves the base as it was, too.
        """
        yield

    def prompt_at(self, prompt: str, timestep: int) -> str:
        """Return the prompt that holds at a timestep, with no placeholder but those the tokenizer now knows."""
        return prompt

    def forms(self) -> list[list[str]]:
        """Return what may stand for the token in a prompt, in lines, where comparing the pictures tells something."""
        return []

    def encode(self, prompts: Sequence[str], plain: Callable[[Sequence[str]], torch.Tensor]) -> torch.Tensor:
        """Return what conditions the UNet, (prompts, tokens, dim or more); `plain` gives the text encodings."""
        return plain(prompts)

    def guidance(self, prompts: Sequence[str]) -> Guidance | None:
        """Return what changes a batch's latents before each step of its sampling, one prompt an image, or None."""
        return None


def drawing_adapter(name: str, options: Iterable[str]) -> type[ConceptAdapter]:
    """Return the adapter of that name, some of whose drawing options are to be chosen anew.

    Raises UserError, with the closest name, for an unknown adapter or option, and for an adapter without any.
    """
    kind: type[ConceptAdapter] = find_plugin("relinv.adapters", name).Adapter
    if not kind.Drawing:
        raise UserError(f"The adapter '{name}' has nothing to choose when it draws: leave it out of the adapters.")
    for option in options:
        if option not in kind.Drawing.model_fields:
            raise unknown(f"option of the adapter '{name}'", option, kind.Drawing.model_fields)
    return kind


@contextmanager
def in_place(adapters: Sequence[ConceptAdapter]) -> Iterator[None]:
    """Inside the block the base has all of `adapters`, whatever their order."""
    with ExitStack() as stack:
        for adapter in sorted(adapters, key=lambda adapter: not adapter.replaces_layers):  # hooks go onto what is there
            stack.enter_context(adapter.applied())
        yield


def require_fit(base: Base, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError unless `tensors` have the names and shapes of `expected`."""
    shapes, wanted = ({name: tuple(t.shape) for name, t in each.items()} for each in (tensors, expected))
    if shapes != wanted:
        name = min(name for name in {**shapes, **wanted} if shapes.get(name) != wanted.get(name))
        raise UserError(
            f"The learned weights do not fit the base '{base.id}': {name} is {shapes.get(name, 'missing')} and should "
            f"be {wanted.get(name, 'absent')}; they were learned for another kind of base."
        )


def hooks_changed(base: Base) -> None:
    """Drop what torch.compile made of the base, where it compiles: it does not see that hooks have come or gone."""
    import torch

    if base.settings.compile:
        torch.compiler.reset()
