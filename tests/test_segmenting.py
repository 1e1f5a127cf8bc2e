"""The command `relinv masks`, with a CLIPSeg of random weights or one whose maps are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    ViTImageProcessor,
)

from relinv.diffusion.bases import Base
from relinv.errors import UserError
from relinv.exemplars import read_exemplars
from relinv.learning.method import mask_of
from relinv.miniature.tokenizer import build_tokenizer
from relinv.segmenting import PROMPTS
from tests.checkouts import run

TOKENS = 32
SIZE = 64  # pixels a side, to which the tiny model's processor brings a picture
PROCESSORS = {
    "squashed": ViTImageProcessor(size={"height": SIZE, "width": SIZE}),  # as the published one
    "cut to the centre": CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIPSeg of random weights that has every part of the published one."""
    folder = tmp_path_factory.mktemp("clipseg")
    tokenizer = build_tokenizer({"photo", "picture", "cat", "box", "of", "in"}, TOKENS)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "max_position_embeddings": TOKENS, **width}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPSegConfig(
        text_config=text | ends,
        vision_config={"num_hidden_layers": 2, "image_size": SIZE // 2, "patch_size": 16, **width},
        extract_layers=[0, 1],
        projection_dim=16,
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        use_complex_transposed_convolution=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIPSegForImageSegmentation(config)
    network.save_pretrained(folder)
    CLIPSegProcessor(PROCESSORS["squashed"], tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(exemplar_folder: Path, tmp_path: Path) -> Path:
    """A relation's folder whose first picture is wider than high, with a white patch at the upper right."""
    folder = tmp_path / "inside"
    shutil.copytree(exemplar_folder, folder)
    picture = Image.new("RGB", (160, 64))
    picture.paste("white", (100, 8, 140, 24))
    picture.save(folder / "0.png")
    return folder


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., torch.Tensor]], None]:
    """Let a function of the network's inputs take the place of what it computes."""

    def replace(logits: Callable[..., torch.Tensor]) -> None:
        def forward(self: Any, **inputs: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=logits(**inputs))

        monkeypatch.setattr(CLIPSegForImageSegmentation, "forward", forward)

    return replace


def levels(path: Path) -> np.ndarray:
    """Return a grey picture's levels, (height, width)."""
    with Image.open(path) as mask:
        assert mask.mode == "L" and mask.format == "PNG"
        return np.asarray(mask)


def test_every_picture_gets_the_mean_of_its_maps_in_its_own_size(model: Path, folder: Path) -> None:
    (folder / "._1.png").write_bytes(b"left by macOS")
    printed = run("masks", str(folder), "cat box", "--model", str(model))
    assert f"{folder / 'masks'} holds 4 masks" in printed
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert levels(folder / "masks/0.png").shape == (64, 160)
    network = CLIPSegForImageSegmentation.from_pretrained(model).eval()
    processor = CLIPSegProcessor.from_pretrained(model)
    with Image.open(folder / "1.png") as picture, torch.no_grad():
        square = picture.convert("RGB").resize((352, 352), Image.Resampling.BILINEAR)
        total = torch.zeros(SIZE, SIZE)
        for prompt in PROMPTS:
            inputs = processor(text=[prompt.format("cat box")], images=[square], return_tensors="pt")
            total += network(**inputs).logits.sigmoid().view(SIZE, SIZE)
        expected = Image.fromarray((255 * total / len(PROMPTS)).round().byte().numpy()).resize(picture.size, 2)
    found = levels(folder / "masks/1.png")
    assert found.std() > 0 and np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_the_mean_is_of_probabilities(model: Path, folder: Path, forward: Any) -> None:
    logits = torch.tensor([0.0, 4.0, -1.0, 0.5, 9.0])
    texts = []

    def by_prompt(pixel_values: torch.Tensor, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        assert len(pixel_values) == len(input_ids) == len(PROMPTS)
        texts.append(input_ids)
        return logits.view(-1, 1, 1).expand(-1, SIZE, SIZE)

    forward(by_prompt)
    assert "hardly found" not in run("masks", str(folder), "cat", "--model", str(model))
    assert len(texts[0].unique(dim=0)) == len(PROMPTS)
    mean = sum(1 / (1 + np.exp(-logits.double().numpy()))) / 5
    assert set(levels(folder / "masks/2.png").flat) == {round(255 * mean)}


@pytest.mark.parametrize("processor", list(PROCESSORS))
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_found_lies_where_it_is_in_the_picture(
    processor: str, turned: bool, model: Path, folder: Path, tmp_path: Path, forward: Any
) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    CLIPSegProcessor(PROCESSORS[processor], CLIPSegProcessor.from_pretrained(model).tokenizer).save_pretrained(other)
    forward(lambda pixel_values, **_: 40 * pixel_values.mean(dim=1))  # bright is found, dark is not
    if turned:  # the file holds it on its side, and says so
        with Image.open(folder / "0.png") as picture:
            exif = Image.Exif()
            exif[0x0112] = 6
            picture.transpose(Image.Transpose.ROTATE_90).save(folder / "0.png", exif=exif)
    run("masks", str(folder), "white patch", "--model", str(other))
    mask = levels(folder / "masks/0.png")
    assert mask.shape == (64, 160)
    assert (mask[12:20, 108:132] > 250).all()
    outside = np.ones(mask.shape, dtype=bool)
    outside[4:28, 92:148] = False  # the square holds 2.5 columns of the picture in one
    assert (mask[outside] < 5).all()


def test_what_is_nowhere_found_is_said_and_weighs_nothing(model: Path, folder: Path, forward: Any, base: Base) -> None:
    forward(lambda pixel_values, **_: torch.full((len(pixel_values), SIZE, SIZE), -20.0))
    printed = run("masks", str(folder), "cat", "--model", str(model))
    assert "0.png: 'cat' was hardly found, at most 0.00" in printed
    exemplar = read_exemplars(folder).exemplars[0]
    assert exemplar.mask == folder / "masks/0.png" and mask_of(base, exemplar) is None


def test_what_is_hardly_found_is_said_with_its_brightness(model: Path, folder: Path, forward: Any) -> None:
    forward(lambda pixel_values, **_: torch.full((len(pixel_values), SIZE, SIZE), -1.0))
    printed = run("masks", str(folder), "cat", "--model", str(model))
    assert "3.png: 'cat' was hardly found, at most 0.27." in printed


def test_what_is_found_in_one_place_is_not_called_hardly_found(model: Path, folder: Path, forward: Any) -> None:
    logits = torch.full((SIZE, SIZE), -9.0)
    logits[SIZE // 4 : SIZE // 2, SIZE // 4 : SIZE // 2] = 9.0
    forward(lambda pixel_values, **_: logits.expand(len(pixel_values), -1, -1))
    assert "hardly found" not in run("masks", str(folder), "cat", "--model", str(model))


def test_what_is_there_is_never_overwritten(model: Path, folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks/1.png").write_bytes(b"painted by hand")
    with pytest.raises(UserError, match="holds masks already: move it away"):
        run("masks", str(folder), "cat", "--model", str(model))
    assert [path.read_bytes() for path in (folder / "masks").iterdir()] == [b"painted by hand"]


def test_as_many_words_as_the_model_reads_fill_an_emptied_folder(model: Path, folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks/.DS_Store").write_text("looked at")
    tokenizer = CLIPSegProcessor.from_pretrained(model).tokenizer
    count = TOKENS - max(len(tokenizer(prompt.format("")).input_ids) for prompt in PROMPTS)
    run("masks", str(folder), " ".join(["cat"] * count), "--model", str(model))
    assert len(list((folder / "masks").glob("*.png"))) == 4


def test_a_picture_that_cannot_be_read_leaves_no_masks(model: Path, folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"'.*3\.png' cannot be read"):
        run("masks", str(folder), "cat", "--model", str(model))
    assert not list(folder.glob("*masks*"))


def test_folders_and_words_that_cannot_do_are_refused(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for place, words, reason in (
        (tmp_path / "none", "cat", "There is no folder '.*none'"),
        (tmp_path / "empty", "cat", "'.*empty' holds no pictures"),
        (folder, " ", "say nothing to look for"),
        (folder, "cat " * TOKENS, f"more than the {TOKENS} tokens"),
    ):
        with pytest.raises(UserError, match=reason):
            run("masks", str(place), words, "--model", str(model))
    copy = tmp_path / "data/relations/inside"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(tmp_path)
    for place in ("data/relations/inside", str(copy)):
        with pytest.raises(UserError, match=r"inside' is a copy, which .*: name .* as data/exemplars/own/inside\.$"):
            run("masks", place, "cat", "--model", str(model))
    (folder / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"'0\.jpg' and '0\.png' of '.*' would share masks/0\.png"):
        run("masks", str(folder), "cat", "--model", str(model))
    assert not list(tmp_path.rglob("masks"))


def test_models_that_cannot_be_had_are_named(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'CIDAS/clipseg-rd64-refined' cannot be loaded .* go online"):
        run("masks", str(folder), "cat")  # the hub is out of reach in tests
    with pytest.raises(UserError, match=r"'.*nowhere' cannot be loaded"):
        run("masks", str(folder), "cat", "--model", str(tmp_path / "nowhere"))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"'.*damaged' cannot be loaded"):
        run("masks", str(folder), "cat", "--model", str(damaged))
    CLIPTextModel(CLIPTextConfig(vocab_size=600, hidden_size=16, intermediate_size=16)).save_pretrained(damaged)
    with pytest.raises(UserError, match=r"'.*damaged' (is not a complete CLIPSeg: it lacks|cannot be loaded)"):
        run("masks", str(folder), "cat", "--model", str(damaged))
    assert not (folder / "masks").exists()
