"""Tokens of other programs are read in every common form, never run, and refused in one sentence."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from relinv.adapters import layout, vectors
from relinv.diffusion.adapter import in_place
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import Encodings, in_use, prompt_at
from relinv.diffusion.token_rows import ROWS, stem
from relinv.errors import UserError
from relinv.exchange.importing import import_concept, read_published
from relinv.files import sha256_file
from relinv.params import load_params
from tests.concepts import parameters_of_old, read_token
from tests.exploits import Exploit


def row(dim: int) -> torch.Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(0))


def forms(values: torch.Tensor) -> dict[str, tuple[str, Any, str]]:
    """Return what programs write: by name of the form, the file's name, its content, and the token's name."""
    parameter = torch.nn.Parameter(values[None])
    rinongal = {"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": parameter})}
    old = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters_of_old(values[None])}
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": parameter}, "name": "rel", "step": 500}
    return {
        "reversion": ("learned_embeds.bin", {"<R>": values}, "<R>"),
        "diffusers": ("learned_embeds.safetensors", {"<r>": values}, "<r>"),
        "diffusers of one row": ("two.safetensors", {"<r>": values[None]}, "<r>"),
        "half precision": ("half.safetensors", {"<r>": values.half()}, "<r>"),
        "a1111": ("renamed.pt", a1111, "rel"),
        "rinongal's textual inversion": ("embeddings.pt", rinongal, "embeddings"),
        "rinongal's by torch 1.11": ("old.pt", old, "old"),
        "early a1111's by torch 1.11": ("rel.pt", old | {"name": "rel", "step": 500}, "rel"),
        "written in capitals": ("RELATION.SAFETENSORS", {"<r>": values}, "<r>"),
        "kohya": ("inside.safetensors", {"emb_params": values[None]}, "inside"),
    }


@pytest.mark.parametrize("form", list(forms(torch.zeros(1))))
def test_every_form_gives_the_row_and_its_name(form: str, base: Base, tmp_path: Path) -> None:
    values = row(base.dim)
    name, content, token = forms(values)[form]
    write(tmp_path / name, content)
    found, read = read_token(tmp_path / name)
    assert found == token
    assert read.dtype == torch.float32 and read.shape == (1, base.dim)
    torch.testing.assert_close(read[0], values, atol=1e-3, rtol=1e-3)


def write(path: Path, content: Any) -> None:
    if path.suffix.lower() == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


@pytest.mark.parametrize("name", ["renamed.bin", "renamed.pt", "renamed"])
def test_a_safetensors_file_is_known_by_what_it_holds_whatever_its_name(name: str, tmp_path: Path) -> None:
    save_file({"<r>": row(8)}, tmp_path / name)
    assert torch.equal(read_token(tmp_path / name)[1], row(8)[None])


def test_a_pickle_is_known_by_what_it_holds_and_not_run_whatever_its_name(tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "was-run")
    torch.save({"<R>": row(8)}, tmp_path / "renamed.safetensors")
    assert torch.equal(read_token(tmp_path / "renamed.safetensors")[1], row(8)[None])
    torch.save({"<R>": exploit}, tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match="might run code"):
        read_token(tmp_path / "renamed.safetensors")
    assert not exploit.marker.exists()
    (tmp_path / "renamed.safetensors").write_bytes(bytes(100))
    with pytest.raises(UserError, match="is damaged, or not a file of tensors"):
        read_token(tmp_path / "renamed.safetensors")


def test_a_file_that_unpacks_to_more_than_it_holds_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    torch.save({"<R>": torch.zeros(100_000)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with zipfile.ZipFile(tmp_path / "parts.pt", "w", zipfile.ZIP_DEFLATED) as parts:  # none larger than the whole
        for number in range(9):
            parts.writestr(str(number), bytes(500))
    assert 500 < (tmp_path / "parts.pt").stat().st_size < 9 * 500
    with pytest.raises(UserError, match=r"parts\.pt' is compressed"):
        read_token(tmp_path / "parts.pt")
    with pytest.raises(UserError, match=r"packed\.pt' is compressed, which torch's files never are: ask"):
        read_token(tmp_path / "packed.pt")


def test_a_view_leaves_its_table_behind(tmp_path: Path) -> None:
    torch.save({"<R>": torch.zeros(1000, 8)[3]}, tmp_path / "view.bin")
    assert read_token(tmp_path / "view.bin")[1].untyped_storage().nbytes() == 8 * 4


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "was-run")
    torch.save({"<R>": exploit}, tmp_path / "evil.bin")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"<R>": exploit}))
    for name in ("evil.bin", "evil.pt"):
        with pytest.raises(UserError, match=r"not opened|damaged") as caught:
            read_token(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not exploit.marker.exists()


def test_code_within_the_parameters_of_an_old_torch_is_never_run(tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "was-run")
    parameters = parameters_of_old(row(8))
    parameters.__dict__["_parameters"]["*"] = exploit
    torch.save({"string_to_param": parameters}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="might run code"):
        read_token(tmp_path / "evil.pt")
    assert not exploit.marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "two.safetensors",
            {"<a>": torch.zeros(8), "<b>": torch.ones(8)},
            "holds <a>, <b>, not one learned token: name a file that",
        ),
        ("xl.safetensors", {"clip_l": torch.zeros(1, 8), "clip_g": torch.ones(1, 9)}, "SDXL"),
        ("nan.bin", {"<R>": torch.full((8,), torch.nan)}, "not finite"),
        ("inf.bin", {"<R>": torch.full((8,), torch.inf)}, "not finite"),
        ("more.bin", {"<R>": torch.zeros(8), "step": 500}, "holds <R>, step, not one learned token"),
        ("text.bin", {"<R>": "cat"}, "not one learned token"),
        ("list.bin", [torch.zeros(8)], "a list"),
        ("empty.bin", OrderedDict(), "holds nothing"),
        ("scalar.bin", {"<R>": torch.tensor(1.0)}, r"\(\) numbers, not the rows of a token"),
        ("none.bin", {"<R>": torch.zeros(0, 8)}, r"\(0, 8\) numbers, not the rows of a token"),
        ("deep.bin", {"<R>": torch.zeros(1, 1, 8)}, r"\(1, 1, 8\) numbers, not the rows of a token"),
    ],
)
def test_what_is_not_one_token_is_refused(name: str, content: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path / name, content)
    with pytest.raises(UserError, match=reason):
        read_token(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # torch calls some of them unfinished, others outdated
def test_what_is_not_plain_numbers_in_memory_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    for tensor, kind in (
        (torch.ones(1, 8).to_sparse(), "sparse_coo"),
        (torch.ones(1, 8).to_sparse_csr(), "sparse_csr"),
        (torch.empty(8, device="meta"), "on meta"),
        (torch.quantize_per_tensor(torch.ones(8), 1.0, 0, torch.quint8), "quint8"),
        (torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4"),
        (torch.zeros(1).expand(1, 10**12), "float32"),  # four terabytes of one number
        (torch.zeros(8).expand(4, 8), "float32"),
        (torch.ones(8, dtype=torch.bool), "bool"),
        (torch.ones(8, dtype=torch.int64), "int64"),
        (torch.ones(8, dtype=torch.complex64), "complex64"),
    ):
        torch.save({"<R>": tensor}, tmp_path / "odd.bin")
        with pytest.raises(UserError, match=rf"odd\.bin' holds <R> in a form of its own \(.*{kind}"):
            read_token(tmp_path / "odd.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_bytes_are_damaged_the_file_is_read_or_refused(zipped: bool, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.bin", tmp_path / "damaged.bin"
    torch.save({"<R>": row(8)}, whole, _use_new_zipfile_serialization=zipped)
    generator = random.Random(0)
    refused = 0
    for _ in range(500):
        content = bytearray(whole.read_bytes())
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        damaged.write_bytes(content)
        try:
            read_token(damaged)
        except UserError:
            refused += 1
    assert 100 < refused < 500  # a changed digit of the row itself nobody can tell


def test_a_parameter_dict_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.ones(1, 8)})
    del parameters.__dict__["_parameters"]
    torch.save({"string_to_param": parameters}, tmp_path / "embeddings.pt")
    with pytest.raises(UserError, match=r"embeddings\.pt' is damaged"):
        read_token(tmp_path / "embeddings.pt")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.bin' does not exist"):
        read_token(tmp_path / "none.bin")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_token(tmp_path)
    for name in ("cut.safetensors", "cut.bin"):
        (tmp_path / name).write_bytes(b"\x08\x00")
        with pytest.raises(UserError, match=rf"'.*{name}' is damaged|not opened"):
            read_token(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # torch calls its own format outdated
def test_a_program_in_torchs_own_format_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(UserError, match=r"program\.pt' is damaged, or not a file of tensors") as caught:
        read_token(tmp_path / "program.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["learned_embeds.bin", "learned_embeds.safetensors", "koala.ckpt"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4094\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (
            "<!doctype html>\n<html><title>Grüße</title></html>\n",
            "is text, .*download the file itself",
        ),
    ],
)
def test_what_a_download_leaves_instead_is_named(
    content: str, reason: str, name: str, base: Base, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        read_published(tmp_path / name, base)


def test_an_imported_token_is_a_concept_like_any_other(base: Base, tmp_path: Path) -> None:
    write(tmp_path / "learned_embeds.bin", {"<R>": row(base.dim)})
    import_concept(tmp_path / "learned_embeds.bin", "inside", "published", base, tmp_path / "concept")
    concept = load_concept(tmp_path / "concept", base)
    assert concept.method == "published"
    assert concept.prompt("cat", "box") == "cat <r> box"
    assert torch.equal(concept.embedding, row(base.dim))
    sha256 = sha256_file(tmp_path / "learned_embeds.bin")
    assert concept.metadata["imported"] == {"file": "learned_embeds.bin", "sha256": sha256, "token": "<R>"}


@pytest.mark.parametrize(
    ("name", "token", "reason"),
    [
        ("learned_embeds.bin", "<\ud83d>", r"learned_embeds\.bin' holds a name .* '<\\ud83d>': rename that token\.$"),
        ("caf\udce9.bin", "<R>", r"holds a name that is not UTF-8, 'caf\\udce9\.bin': rename that file\.$"),
    ],
)
def test_names_that_a_concept_cannot_keep_are_refused(
    name: str, token: str, reason: str, base: Base, tmp_path: Path
) -> None:
    try:
        write(tmp_path / name, {token: row(base.dim)})
    except (OSError, RuntimeError):
        pytest.skip("This file system takes no name that is not UTF-8.")
    with pytest.raises(UserError, match=reason):
        import_concept(tmp_path / name, "inside", "published", base, tmp_path / "concept")
    assert not (tmp_path / "concept").exists()


def test_a_file_in_the_folder_that_is_replaced_is_not_lost(base: Base, tmp_path: Path) -> None:
    write(tmp_path / "learned_embeds.bin", {"<R>": row(base.dim)})
    import_concept(tmp_path / "learned_embeds.bin", "inside", "published", base, tmp_path / "concept")
    moved = (tmp_path / "learned_embeds.bin").rename(tmp_path / "concept/learned_embeds.bin")
    with pytest.raises(UserError, match=r"learned_embeds\.bin' lies in '.*concept', which is to be replaced: move the"):
        import_concept(moved, "inside", "published", base, tmp_path / "concept")
    assert moved.is_file()


def test_rows_of_a_concept_of_this_project_are_no_phrase(base: Base, tmp_path: Path) -> None:
    write(tmp_path / "rows.safetensors", {"rows": torch.zeros(10, base.dim)})
    with pytest.raises(UserError, match=r"part of a concept of this project, .*: copy their folder into data/concepts"):
        import_concept(tmp_path / "rows.safetensors", "inside", "published", base, tmp_path / "concept")


@pytest.mark.parametrize("width", [8, 768])
def test_a_token_of_another_width_is_refused(width: int, base: Base, tmp_path: Path) -> None:
    write(tmp_path / "other.bin", {"<R>": row(width)})
    with pytest.raises(UserError, match=f"{width} numbers and the base .* takes {base.dim}"):
        import_concept(tmp_path / "other.bin", "inside", "published", base, tmp_path / "concept")
    assert not (tmp_path / "concept").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("learned_embeds.bin", lambda rows: {"<r>": rows}),
        ("learned_embeds.safetensors", lambda rows: {"<r>": rows}),
        ("rel.pt", lambda rows: {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "rel"}),
    ],
)
def test_several_rows_follow_one_another_as_diffusers_reads_them(
    name: str, content: Callable[[torch.Tensor], Any], base: Base, tiny_base: Path, tmp_path: Path
) -> None:
    rows = torch.stack([row(base.dim), -row(base.dim), 2 * row(base.dim)])
    write(tmp_path / name, content(rows))
    import_concept(tmp_path / name, "inside", "published", base, tmp_path / "concept")
    concept, prompts = load_concept(tmp_path / "concept", base), ["cat <r> box", "two <R>", "<r> on <r>"]
    with in_use(base, [concept]) as adapters:
        ours = torch.cat([Encodings(base, adapters, prompts, [0]).of([prompt])(0) for prompt in prompts])
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(str(tmp_path / name), token="<r>")
    texts = pipeline.maybe_convert_prompt([prompt.lower() for prompt in prompts], pipeline.tokenizer)
    ids = pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    torch.testing.assert_close(ours, pipeline.text_encoder(ids).last_hidden_state.detach())


def test_two_tokens_of_several_rows_stand_in_one_prompt(base: Base) -> None:
    first, second = torch.stack([row(base.dim), -row(base.dim)]), torch.ones(3, base.dim)
    adapters = [vectors.Adapter(base, "<r>", {ROWS: first}, {}), vectors.Adapter(base, r"<\s>", {ROWS: second}, {})]
    with in_place(adapters):
        ids = base.tokenize([prompt_at(adapters, r"<\s> cat <R> box", 0)])
        (read,) = base.text_encoder.get_input_embeddings()(ids)  # (tokens, dim); the start token is at place 0
    assert torch.equal(read[1:4], second) and torch.equal(read[5:7], first)


def test_a_token_and_its_rows_are_told_from_tokens_that_begin_like_it() -> None:
    assert stem("<r>") == stem("<r|3|>")
    assert not any(stem(name) == stem("<r>") for name in ("<r2>", "<red>", "<red|3|>"))


def test_boxes_tell_head_from_tail_beside_several_rows(base: Base) -> None:
    several = vectors.Adapter(base, "<r>", {ROWS: torch.ones(3, base.dim)}, {})
    boxes = layout.Adapter(base, "<r>", {}, load_params().section("invert.compositional.layout", dict[str, Any]))
    with several.applied():
        words = boxes.words([several.prompt_at("cat <r> big box", 0)])
    assert [row.nonzero()[:, 0].tolist() for row in words[0]] == [[1], [5, 6]]


def test_rows_that_no_prompt_has_room_for_are_refused(base: Base, tmp_path: Path) -> None:
    limit = base.tokenizer.model_max_length
    bring = partial(import_concept, tmp_path / "long.bin", "inside", "published", base, tmp_path / "concept")
    write(tmp_path / "long.bin", {"<R>": torch.ones(limit - 3, base.dim)})
    with pytest.raises(UserError, match=f"takes {limit - 3} tokens of a prompt, and '.*' reads {limit}"):
        bring()
    assert not (tmp_path / "concept").exists()
    write(tmp_path / "long.bin", {"<R>": torch.ones(limit - 4, base.dim)})
    with in_use(base, [bring()]) as adapters:
        assert base.tokenize([prompt_at(adapters, "cat <r> box", 0)]).shape == (1, limit)


def test_another_perfusion_whose_layers_are_not_told_is_named(base: Base, tmp_path: Path) -> None:
    torch.save({"embed_params": torch.zeros(base.dim), "key_value_params": [torch.zeros(8)]}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"is a concept of lucidrains' perfusion-pytorch, .*: it cannot be imported"):
        import_concept(tmp_path / "ckpt.pt", "inside", "published", base, tmp_path / "concept")
