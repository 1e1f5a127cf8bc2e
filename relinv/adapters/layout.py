"""Spatial inversion: latents are moved during sampling until attention to head and tail is within their boxes.

Compositional Inversion (Zhang et al. 2024) guides latents as training-free layout control does (Chen et al. 2024):
before a sampling step, latents x take a few steps of gradient descent on the share of each word's attention outside its
box. Nothing is learned here, and the base is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Annotated

from PIL import Image, ImageDraw
from pydantic import AfterValidator, Field

from relinv.checking import parse
from relinv.devices import deterministic, to_device
from relinv.diffusion.adapter import ConceptAdapter
from relinv.diffusion.attention_maps import attention_maps
from relinv.diffusion.bases import PLACEHOLDER
from relinv.diffusion.token_rows import stem
from relinv.errors import UserError
from relinv.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

    from relinv.diffusion.adapter import Guidance
    from relinv.diffusion.concept import Concept

Share = Annotated[float, Field(ge=0, le=1)]
# Gradients are computed this many times too large: fp16 would round small ones to 0, and a power of two rounds none.
GRADIENT_SCALE = 1024.0
COLOURS = {"head": "#c9506b", "tail": "#2b7bb9"}


def _has_area(box: list[float]) -> list[float]:
    match box:
        case [left, top, right, bottom] if left < right and top < bottom:
            return box
    raise ValueError("it must hold four numbers in the order left, top, right, bottom, with left < right, top < bottom")


Box = Annotated[list[Share], AfterValidator(_has_area)]


class Layout(Settings):
    """Where head and tail belong, and how latents are moved there.

    A box is left, top, right, bottom, as shares of the picture's sides. Before each of the first sampling steps, an
    image takes at most `iterations` gradient steps of `scale`, and none once its loss is `threshold` or less. (The
    published code then leaves it alone; here the next sampling step checks again, since sampling may raise the loss.)
    """

    head: Box
    tail: Box
    scale: Annotated[float, Field(gt=0, le=10_000)]
    threshold: Share  # 1: never guided, since no loss is above it
    iterations: Annotated[int, Field(ge=1, le=100)]
    fraction: Share  # of the sampling steps, from the first, that are guided: 0.2 is the published 10 of 50

    @property
    def boxes(self) -> list[list[float]]:
        """Return the boxes of head and tail."""
        return [self.head, self.tail]


class Adapter(ConceptAdapter):
    """Guides images whose prompts have the concept's token: words before it are the head, words after it the tail.

    If there are only words after it, such as those of a place, the token is an object and is itself the head; but not
    if it stands, as head or tail, beside another token that has both.
    """

    shares_unet = True
    DrawOptions = Layout
    addable = True

    def prepare(self) -> None:
        """Read the options."""
        self.layout = parse(Layout, self.options, "adapter.options", "concept.json")

    def guidance(self, prompts_at: Callable[[int], list[str]]) -> Guidance | None:
        """Return the guidance of a batch, or None if no prompt has the token together with other words.

        The prompts at the noisiest timestep, where the layout is decided, tell which words are head and which tail.
        Each is guided as long as it has all of its tokens: a form of a token may leave it at finer timesteps.
        """
        noisiest = prompts_at(self.base.scheduler.config.num_train_timesteps - 1)
        words, lengths = self.words(noisiest), self._lengths(noisiest)

        def words_at(timestep: int) -> torch.Tensor:
            """Return where these words are in the prompts that are whole at a timestep, (prompts, 2, tokens) bool."""
            whole = self._lengths(prompts_at(timestep)) == lengths
            return words & to_device(whole, words.device)[:, None, None]

        return partial(self._guide, words_at) if words.any() else None

    def _lengths(self, prompts: list[str]) -> torch.Tensor:
        """Return how many tokens each prompt has, (prompts,) on the CPU."""
        import torch

        return torch.tensor([len(ids) for ids in self.base.tokenizer(prompts).input_ids])

    def words(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return where the words of head and tail are, (prompts, 2, tokens) bool; all False without the token.

        In "cat <r> red box" these are "cat" and "red box"; in "<r> on a beach", "<r>" and "on a beach". In "<dog> <r>
        <box>" the layouts of "<dog>" and "<box>" have none, and that of "<r>" has these two.
        """
        import torch

        ids = self.base.tokenize(prompts)  # (prompts, tokens)
        learned = token_ids(self.base.tokenizer.get_added_vocab())
        own = learned.pop(stem(self.token or ""), set())
        words = torch.zeros(len(prompts), 2, ids.shape[1], dtype=torch.bool)
        for (head, tail), row in zip(words, ids.tolist(), strict=True):
            prompt = words_in(row, self.base.tokenizer)
            token, before, after = sides(prompt, own)
            if not (before and after) and any(all(sides(prompt, other)) for other in learned.values()):
                continue  # that token has words on both sides
            if after and not before:
                before = token
            head[before], tail[after] = True, True
        return to_device(words, ids.device)

    def _guide(
        self,
        words_at: Callable[[int], torch.Tensor],
        latents: torch.Tensor,
        timestep: torch.Tensor,
        progress: float,
        encodings: torch.Tensor,
    ) -> torch.Tensor:
        """Return the latents, (images, channels, height, width), moved by x <- x - (1 - abar_t) grad_x(scale * loss).

        Each image stops independently, so none depends on its batch. The factor 1 - abar_t is the sigma^2 of the
        published update, for latents scaled as in DDPM.
        """
        import torch

        layout = self.layout
        if progress >= layout.fraction:
            return latents
        words = words_at(int(timestep))  # (images, 2, tokens)
        far = words.flatten(1).any(-1).nonzero()[:, 0]  # indices in the batch of the images still to be moved
        if not len(far):
            return latents
        step = layout.scale * (1 - self.base.scheduler.alphas_cumprod[int(timestep)].item())
        latents = latents.clone()
        for _ in range(layout.iterations):
            with torch.enable_grad(), deterministic(self.base.device):
                moving = latents[far].requires_grad_()
                maps = attention_maps(self.base, moving, timestep, encodings[far])
                losses = spatial_loss(maps, words[far], layout.boxes)  # (images,)
                above = losses.detach() > layout.threshold
                if not above.any():
                    break
                # each loss depends on its own image's latents
                (gradient,) = torch.autograd.grad(GRADIENT_SCALE * losses.sum(), moving)
            far = far[above]
            latents[far] -= step / GRADIENT_SCALE * gradient[above]
        return latents


def token_ids(added: Mapping[str, int]) -> dict[str, set[int]]:
    """Return the ids that stand for each learned token, its own or those of its rows, by its `stem`."""
    found: dict[str, set[int]] = {}
    for name, id_ in added.items():
        if PLACEHOLDER.fullmatch(name):
            found.setdefault(stem(name), set()).add(id_)
    return found


def words_in(row: Sequence[int], tokenizer: CLIPTokenizer) -> dict[int, int]:
    """Return a prompt's ids by their places in the `row`, without its ends and its punctuation, which is no object."""
    pieces = tokenizer.convert_ids_to_tokens(row[1 : row.index(tokenizer.eos_token_id)])
    return {place: row[place] for place, piece in enumerate(pieces, 1) if _is_word(piece.removesuffix("</w>"))}


def _is_word(piece: str) -> bool:
    """Return whether a token is one or part of one; beyond ASCII, it may be a single byte of a letter."""
    return bool(PLACEHOLDER.fullmatch(piece)) or any(sign.isalnum() or not sign.isascii() for sign in piece)


def sides(words: Mapping[int, int], token: Collection[int]) -> tuple[list[int], list[int], list[int]]:
    """Return where a token stands among a prompt's words, ids by their places, and which of these are around it.

    That is its own places, those before and those after it; all are empty without the token.
    """
    places = [place for place, id_ in words.items() if id_ in token]
    if not places:
        return [], [], []
    others = [place for place in words if place not in places]
    before = [place for place in others if place < places[0]]
    return places, before, others[len(before) :]


def spatial_loss(maps: Sequence[torch.Tensor], words: torch.Tensor, boxes: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return each image's mean of (1 - share)^2, (images,), for the share of a word's attention that is in its box.

    The mean is over maps, heads, objects, and each object's words. `maps` are (images, heads, cells, tokens) of square
    grids, `words` marks the words of each object, (images, objects, tokens); an object without words does not count.
    The result is 0 if all attention is in the boxes, 1 if none is.
    """
    import torch

    each = words / words.sum(-1, keepdim=True).clamp(min=1)  # (images, objects, tokens), a mean's weights
    terms = []
    for probabilities in maps:
        cells = torch.stack([box_cells(box, isqrt(probabilities.shape[2])) for box in boxes]).to(probabilities)
        within = torch.einsum("ihct,oc->ihot", probabilities, cells)  # (images, heads, objects, tokens)
        everywhere = probabilities.sum(2)[:, :, None]  # (images, heads, 1, tokens)
        outside = 1 - within / everywhere.clamp(min=torch.finfo(everywhere.dtype).tiny)
        terms.append((outside.square().mean(1) * each).sum(-1))  # (images, objects)
    objects = words.any(-1).sum(-1).clamp(min=1)  # (images,)
    return torch.stack(terms).mean(0).sum(-1) / objects


def box_cells(box: Sequence[float], side: int) -> torch.Tensor:
    """Return the cells of a `side` x `side` grid that a box covers, (side * side,) of 0 and 1; at least one.

    Edges are rounded to the nearest line of the grid. Rounding them down, as published, shifts a box by up to a cell to
    the upper left, which is an eighth of the picture in the coarsest map.
    """
    import torch

    left, top, right, bottom = (int(edge * side + 0.5) for edge in box)
    left, top = min(left, side - 1), min(top, side - 1)
    cells = torch.zeros(side, side)
    cells[top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return cells.flatten()


def layout_of(concept: Concept) -> Layout:
    """Return the layout with which a concept is drawn. Raises UserError if it has none."""
    for adapter in concept.adapters:
        if adapter["name"] == __name__.rpartition(".")[2]:
            return parse(Layout, adapter["options"], "adapters.layout", "concept.json")
    raise UserError(f"What {concept.method} learned is drawn without boxes: name a picture by compositional.")


def draw_boxes(picture: Image.Image, layout: Layout) -> Image.Image:
    """Return a copy of the picture with both boxes outlined: the head's in red, the tail's in blue."""
    marked = picture.copy()
    pen = ImageDraw.Draw(marked)
    for name, box in zip(COLOURS, layout.boxes, strict=True):
        corners = [round(edge * (side - 1)) for edge, side in zip(box, picture.size * 2, strict=True)]
        pen.rectangle(corners, outline=COLOURS[name], width=max(1, picture.width // 128))
    return marked
