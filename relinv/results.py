"""Where stages leave what they make, which command makes it if it is missing, and the benchmark they work on."""

from __future__ import annotations

from pathlib import Path

from relinv.benchmark import Benchmark, load_benchmark
from relinv.errors import UserError, unknown
from relinv.params import Params
from relinv.plugins import plugin_names

FOLDERS = {
    "fetch": Path("data/relations"),
    "validate": Path("data/verdicts"),
    "invert": Path("data/concepts"),
    "generate": Path("data/images"),
    "score": Path("data/scores"),
    "judge": Path("data/judged"),
}
SCRATCH = Path(".scratch")  # git-ignored: what an unfinished stage left, and what is not to be fetched again


def find_benchmark(params: Params, relation: str) -> Benchmark:
    """Return the benchmark of the base in use, and `relation` in it too if it is the user's own.

    Raises UserError if there is no such relation, before anything slow is done for it.
    """
    benchmark = load_benchmark(params.benchmark(), FOLDERS["fetch"] / relation)
    benchmark.relation(relation)
    return benchmark


def find_result(stage: str, relation: str, method: str) -> Path:
    """Return the folder that a stage left for a relation and method, below the working directory.

    Raises UserError if it is missing, with the closest method's name or the command that makes it. An imported
    concept is stored as a method's would be, under a name of its own.
    """
    folder = FOLDERS[stage] / relation / method
    found = {path.name for path in (FOLDERS[stage] / relation).glob("[!.]*") if path.is_dir()}
    if method in found:  # a name with a slash is in no folder, while a path with it may well exist
        return folder
    methods = plugin_names("relinv.methods")
    if method not in methods:
        raise unknown("method", method, {*methods, *found})
    raise UserError(f"There is no '{folder}' yet: make it with `python -m stages.{stage} {relation} {method}`.")
