"""What every adapter must keep to: one whose entering fails midway leaves the base as it was, and can be used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.adapters import dreambooth
from relinv.diffusion.adapter import ConceptAdapter, in_place
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.token_rows import TokenRowsAdapter
from tests.conftest import tiny_settings
from tests.inverting import FORMS, METHODS, build, problem
from tests.unets import answer

HOOK = (torch.nn.Module, "register_forward_hook")
# What puts one part of several in its place, for those methods whose adapters do it otherwise than by hooks.
INSTALLS: dict[str, tuple[Any, str]] = {
    "dreambooth": (dreambooth, "_low_rank"),
    "dreambooth+full": (torch.nn.Module, "register_parameter"),
}


def fittings(base: Base) -> list[Any]:
    """Return all that an adapter may put into a base: modules, weights, hooks, the UNet's forward, the tokenizer."""
    found: list[Any] = [set(vars(base.unet)), base.tokenizer]
    for network in (base.unet, base.text_encoder):
        for name, module in network.named_modules():
            hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()
            found.append((name, id(module), hooks, [id(weight) for weight in module.parameters(recurse=False)]))
    return found


def failing(function: Callable[..., Any], call: int, calls: list[int] | None = None) -> Callable[..., Any]:
    """Return `function`, in which one call of those to come fails; `calls` gets an item at each."""
    made = [] if calls is None else calls

    def limited(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) == call:
            raise MemoryError("there is no more room")
        return function(*arguments, **options)

    return limited


def adapter_of(base: Base, exemplar_folder: Path, name: str) -> ConceptAdapter:
    """Return the adapter of an untrained method."""
    (adapter,) = build(problem(base, exemplar_folder, name)).adapters
    return adapter


@pytest.mark.parametrize("name", [*METHODS, *FORMS])
def test_one_that_fails_on_the_way_in_leaves_the_base_as_it_was(
    name: str, base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for adapter in build(problem(base, exemplar_folder, name)).adapters:
        plain, before = answer(base), fittings(base)
        otherwise = INSTALLS.get(name.removesuffix("+rows"), HOOK)
        owner, function = HOOK if isinstance(adapter, TokenRowsAdapter) else otherwise
        calls: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(owner, function, failing(getattr(owner, function), 0, calls))
            with adapter.applied():
                changed, last = fittings(base) != before, len(calls)
        assert changed == bool(last), "name in INSTALLS what puts its parts in place"
        for call in {1, last} if last else ():
            with monkeypatch.context() as patched:
                patched.setattr(owner, function, failing(getattr(owner, function), call))
                with pytest.raises(MemoryError), adapter.applied():
                    pass
            assert fittings(base) == before
        with adapter.applied():
            assert (fittings(base) != before) == changed
        assert fittings(base) == before and torch.equal(answer(base), plain)


@pytest.mark.parametrize("name", METHODS)
def test_what_was_compiled_is_discarded_once_hooks_have_come_or_gone(
    name: str, base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hooks() -> list[Any]:
        modules = base.unet.modules()
        return [hook for each in modules for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())]

    kept: list[list[Any]] = [hooks()]  # those that a compiled UNet knows
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"compile": True}))
    monkeypatch.setattr(torch.compiler, "reset", lambda: kept.append(hooks()))
    for adapter in build(problem(base, exemplar_folder, name)).adapters:
        with adapter.applied():
            assert kept[-1] == hooks()
        assert kept[-1] == hooks() == []


def test_a_unet_of_low_precision_gets_its_forward_back(
    tiny_base: Path, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": "bf16"}))
    adapter, before = adapter_of(base, exemplar_folder, "dreambooth+full"), fittings(base)
    monkeypatch.setattr(torch, "autocast", failing(torch.autocast, 1))
    with pytest.raises(MemoryError), adapter.applied():
        pass
    assert fittings(base) == before
    with adapter.applied():
        inside = fittings(base)
        with adapter.applied():  # as of a second concept of this kind
            assert fittings(base) != before
        assert fittings(base) == inside != before
    assert fittings(base) == before


def test_concepts_that_fail_to_be_edited_together_leave_the_base_as_it_was(
    base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fittings(base)
    one, two = (adapter_of(base, exemplar_folder, "perfusion") for _ in range(2))
    with torch.no_grad():
        for tensor in two.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).abs())
    for owner, function in (two, "output"), HOOK:
        with monkeypatch.context() as patched:
            patched.setattr(owner, function, failing(getattr(owner, function), 3))
            with pytest.raises(MemoryError), in_place([one, two]):
                pass
        assert fittings(base) == before
    with in_place([one, two]):
        assert fittings(base) != before
    assert fittings(base) == before
