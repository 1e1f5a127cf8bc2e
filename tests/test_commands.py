"""What holds for several commands of `relinv`, and `relinv download`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from dvc.utils.hydra import apply_overrides

from relinv.diffusion.bases import load_base
from relinv.errors import UserError
from relinv.params import load_params
from tests.checkouts import ROOT, files_below, run
from tests.concepts import keep, made
from tests.conftest import draw_exemplars


def test_commands_compute_on_as_many_threads_as_stages_do() -> None:  # else an image drawn again has other last bits
    told = "import relinv.commands, torch; print(torch.get_num_threads())"
    chosen = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for given, threads in ({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2"):
        done = subprocess.run(
            [sys.executable, "-c", told], env=chosen | given, capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout.split() == [threads]


@pytest.mark.parametrize(
    "words",
    [
        ("new", "kissing", ""),
        ("masks", "", "cat"),
        ("export", "inside", "reversion", "--for", "webui", "--to="),
        ("import", "", "inside", "published"),
        ("import", "text.json", "inside", "published", "--token", ""),
        ("second-moment", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(words: tuple[str, ...], checkout: Path) -> None:
    draw_exemplars(checkout)
    keep(checkout, made(load_base(load_params().model())))
    before = files_below(checkout)
    with pytest.raises(UserError, match=r"^A path is empty, .*: name a file or folder\.$"):
        run(*words)
    assert files_below(checkout) == before


def test_a_model_and_a_judge_are_downloaded_where_there_is_no_gpu(
    checkout: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model.source": "some/model", "model.device": "cuda:99", "judge.device": "cuda:99"}
    changes |= {"judge.model": str(ROOT / "data/miniature/judge")}
    apply_overrides(Path("params.yaml"), [f"bases.miniature.{name}={value}" for name, value in changes.items()])
    from_hub = MagicMock(return_value=str(tiny_base))
    monkeypatch.setattr("huggingface_hub.snapshot_download", from_hub)
    assert "some/model and " in run("download")
    assert "unet/*.safetensors" in from_hub.call_args.kwargs["allow_patterns"]
    vqa = "{model: some/other, revision: abc, precision: bf16}"
    apply_overrides(Path("params.yaml"), [f"bases.miniature.judge.vqa={vqa}"])
    assert "judge and some/other are here" in run("download")
    assert from_hub.call_args.args == ("some/other",) and from_hub.call_args.kwargs["revision"] == "abc"
