"""Inversion from start to end: exemplars and a base in, a concept folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relinv.diffusion.concept import METADATA, save_concept
from relinv.errors import UserError
from relinv.files import atomic_folder, atomic_write_bytes, code_hash, is_visible, sha256_file
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.problem import Problem, Task
from relinv.plugins import find_plugin

# The code that determines the result, besides the method's: a checkpoint is never resumed by different code.
CODE = ("adapters", "benchmark.py", "devices.py", "diffusion", "exemplars.py", "learning")


def invert_relation(problem: Problem, folder: Path, scratch: Path, confirm: Callable[[], None] = lambda: None) -> None:
    """Learn the relation and write its concept folder: concept.json, token, losses.csv and previews.

    A concept that is there already is replaced, with all else in its folder. Raises UserError if that holds files but
    no concept. If it is killed and run again, it resumes from the last checkpoint below `scratch`, with byte-identical
    results; so it does if `confirm`, which is called before it learns and at the end, raises an error.
    """
    _require_replaceable(folder)
    task = _task(problem, scratch)
    confirm()  # its checkpoints are named by the code that is there by now
    learn(task, folder)
    confirm()
    task.checkpoints.remove()


def _require_replaceable(folder: Path) -> None:
    """Raise UserError if the folder that a concept is to replace holds something, and no concept."""
    names = [path.name for path in folder.iterdir() if is_visible(path.name)] if folder.is_dir() else []
    if names and METADATA not in names:
        raise UserError(f"'{folder}' holds files but no concept, which would replace them: move them away.")


def invert_together(problems: Sequence[Problem], scratch: Path) -> None:
    """Train several relations on one base at once, and save the final state of each below `scratch`.

    `invert_relation` then only has to write each folder. Each result is that of training alone, up to rounding: a
    larger batch is summed in another order. `train` says how large the difference may be.
    """
    from relinv.learning.training import train

    train([_task(problem, scratch) for problem in problems], keep=True)


def _task(problem: Problem, scratch: Path) -> Task:
    """Return a problem's training task, not yet started; its checkpoints may hold earlier progress."""
    kind = find_plugin("relinv.methods", problem.method).Method
    method = kind(problem.base, problem.words, problem.settings, problem.exemplars)
    name = f"invert-{problem.exemplars.relation}-{problem.method}"
    decides = identity(problem) if method.steps else {}  # without steps nothing is kept, nor PyTorch needed
    return Task(problem, method, Checkpoints(scratch, name, decides))


def learn(task: Task, folder: Path) -> None:
    """Train the task's method and write the concept folder, whole or not at all."""
    files: dict[str, bytes] = {}
    steps = 0
    if task.method.steps:
        from relinv.learning.training import train  # imports torch, which a method without steps does not need

        (log,) = train([task])
        files, steps = log.files(), log.steps
    with atomic_folder(folder) as new:
        save_concept(new, task.concept(steps))
        for name, content in files.items():
            atomic_write_bytes(new / name, content)


def identity(problem: Problem) -> Mapping[str, Any]:
    """Return everything that determines the result to the last bit, code included; it names the checkpoint folder."""
    return {
        "relation": problem.exemplars.relation,
        "exemplars": problem.exemplars.fingerprint,
        "words": problem.words,
        "method": problem.method,
        "settings": problem.settings.model_dump(mode="json"),
        "files": {name: sha256_file(value) for name, value in problem.settings if isinstance(value, Path)},
        "seed": problem.seed,
        "preview": problem.preview.model_dump(mode="json"),
        "base": problem.base.fingerprint,
        "run": problem.base.settings.model_dump(exclude={"source", "revision"}),
        "numerics": problem.base.numerics,
        "processor": problem.base.processor,
        "code": code_hash(Path(__file__).parents[1], [*CODE, f"methods/{problem.method}.py"]),
    }
