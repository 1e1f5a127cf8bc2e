"""What an adapter is: a change that a concept makes to a frozen base while it is in use, and undoes afterwards.

A method (relinv/learning/method.py) says how something is learned, an adapter what it does once it is learned:
training, previews and image generation apply it by the same code. A token's single row needs no adapter: the concept
itself holds it (relinv/diffusion/embeddings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from pydantic import create_model

from relinv.checking import parse
from relinv.errors import UserError, unknown
from relinv.plugins import find_plugin
from relinv.settings import Settings

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

    # An adapter's guidance, which moves the latents before a sampling step (it is not classifier-free guidance):
    # (latents, timestep, share of the steps taken, encodings) to latents. The share means the same for any number of
    # steps; the encodings are those that the step is conditioned on, to which several adapters may have contributed.
    Guidance = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]


class ConceptAdapter:
    """Learned tensors, and how they are applied to a base temporarily.

    `tensors` are what is learned, by the names they have in the concept's file, as float32 parameters on the base's
    device: training optimises these very objects. `options` are the method's settings for their use. Each part below
    has a neutral default, which an adapter may override.
    """

    FILE = "weights.safetensors"  # the file in a concept folder that holds `tensors`
    # True if it leaves the UNet and the encodings' width unchanged, so several trainings can share one forward pass
    shares_unet = False
    DrawOptions: type[Settings] = Settings  # the options that can be changed each time the concept is drawn
    addable = False  # whether concepts that were learned without it can be drawn with it; it has no tensors then
    replaces_layers = False  # whether it replaces modules or weights, which must happen before hooks are added

    def __init__(
        self, base: Base, token: str | None, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        """Copy `tensors` and call `prepare`; the base is not changed yet."""
        import torch

        self.base, self.token, self.options = base, token, dict(options)
        self.tensors = {
            name: torch.nn.Parameter(tensor.detach().float().to(base.device, copy=True))
            for name, tensor in tensors.items()
        }
        self.prepare()

    def prepare(self) -> None:
        """Compute what is needed once; UserError if the tensors or options do not fit the base. Default: nothing."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the tensors are applied; leaving it, even by an error, restores the base bit for bit.

        An error on entering also leaves the base as it was.
        """
        yield

    @classmethod
    @contextmanager
    def applied_together(cls, adapters: Sequence[Self]) -> Iterator[None]:
        """Inside the block several adapters of this kind are applied. Default: one within the other."""
        with ExitStack() as stack:
            for adapter in adapters:
                stack.enter_context(adapter.applied())
            yield

    def prompt_at(self, prompt: str, timestep: int) -> str:
        """Return the prompt to use at a timestep, with only such placeholders as the tokenizer knows in the block."""
        return prompt

    def forms(self) -> list[list[str]]:
        """Return lines of forms that can replace the token in a prompt, if their pictures are worth comparing."""
        return []

    def encode(self, prompts: Sequence[str], plain: Callable[[Sequence[str]], torch.Tensor]) -> torch.Tensor:
        """Return the UNet's conditioning, (prompts, tokens, dim or more); `plain` gives the text encodings.

        What is beyond `dim` is read by the adapter's own hooks, and adapters of one kind may share it. Only one kind of
        adapter may add any, and Perfusion's does. A method trains with the same encodings, by its `conditioning`.
        """
        return plain(prompts)

    def guidance(self, prompts_at: Callable[[int], list[str]]) -> Guidance | None:
        """Return the guidance that moves a batch's latents before each sampling step, or None.

        `prompts_at` gives the prompts of a timestep, one per image.
        """
        return None


def drawing_adapter(name: str, options: Mapping[str, Any], file: str = "params.yaml") -> type[ConceptAdapter]:
    """Return the adapter class of that name, after checking `options`, which stand in `file`, as drawing options of it.

    Raises UserError, with the closest name, for an unknown adapter or option, for a value out of range, and for an
    adapter without such options.
    """
    kind: type[ConceptAdapter] = find_plugin("relinv.adapters", name).Adapter
    fields = kind.DrawOptions.model_fields
    if not fields:
        raise UserError(f"The adapter '{name}' has nothing to choose when it draws: leave it out of the adapters.")
    for option in options:
        if option not in fields:
            raise unknown(f"option of the adapter '{name}'", option, fields)
    chosen: dict[str, Any] = {option: (fields[option].annotation, fields[option]) for option in options}
    parse(create_model("Chosen", __base__=Settings, **chosen), dict(options), f"generate.adapters.{name}", file)
    return kind


@contextmanager
def in_place(adapters: Sequence[ConceptAdapter]) -> Iterator[None]:
    """Inside the block all of `adapters` are applied to the base, whatever their order."""
    kinds = sorted({type(adapter): None for adapter in adapters}, key=lambda kind: not kind.replaces_layers)
    with ExitStack() as stack:
        for kind in kinds:  # those that replace layers first, then those that add hooks
            stack.enter_context(kind.applied_together([adapter for adapter in adapters if type(adapter) is kind]))
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
    """Discard what torch.compile made of the base, if it compiles: it does not notice added or removed hooks."""
    import torch

    if base.settings.compile:
        torch.compiler.reset()
