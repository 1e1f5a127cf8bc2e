"""Custom Diffusion's published files: written by diffusers, taken over with their token, and refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from relinv.adapters.custom_diffusion import Adapter
from relinv.commands.tokens import as_change
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept, load_concept, save_concept
from relinv.errors import UserError
from relinv.exchange.importing import import_concept
from relinv.files import sha256_file
from relinv.imagining import imagine
from relinv.settings import GenerateSettings
from tests.concepts import made
from tests.exploits import Exploit
from tests.unets import changed_projections, unet_of_diffusers

BIN, SAFE = "pytorch_custom_diffusion_weights.bin", "pytorch_custom_diffusion_weights.safetensors"
SETTINGS = GenerateSettings(pairs="all", seed=3, steps=2, guidance_scale=5.0, scheduler="ddim", batch_size=1)


def row(base: Base) -> torch.Tensor:
    return torch.randn(base.dim, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def published(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both forms of the weights as diffusers saves them, and the token as its script does."""
    folder = tmp_path_factory.mktemp("published")
    for safe in (True, False):
        unet_of_diffusers(base, changed_projections(base)).save_attn_procs(folder, safe_serialization=safe)
    torch.save({"<new1>": torch.nn.Parameter(torch.stack([row(base)] * 1000))[999]}, folder / "<new1>.bin")
    return folder


def lay(published: Path, folder: Path, *names: str) -> Path:
    """Copy files of `published` into a new folder and return this."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes((published / name).read_bytes())
    return folder


@pytest.mark.parametrize("name", [BIN, SAFE])
def test_both_forms_draw_what_the_concept_saved_here_draws(
    name: str, base: Base, published: Path, tmp_path: Path
) -> None:
    adapter = {"name": "custom_diffusion", "file": Adapter.FILE, "options": {}}
    weights = {"custom_diffusion": changed_projections(base)}
    (tmp_path / "own").mkdir()
    save_concept(tmp_path / "own", Concept("<r>", row(base), made(base, adapters=[adapter]).metadata, weights))
    import_concept(published / name, "inside", "published", base, tmp_path / "concept")
    concept = load_concept(tmp_path / "concept", base)
    assert list(concept.adapters) == [adapter] and concept.metadata["imported"]["token"] == "<new1>"
    drawn, expected, bare = (
        imagine(base, [each], "cat <r> box", SETTINGS, 7).tobytes()
        for each in (concept, load_concept(tmp_path / "own", base), Concept("<r>", row(base), made(base).metadata))
    )
    assert drawn == expected != bare


def test_a_bin_names_self_attentions_and_its_token_has_a_table_behind_it(base: Base, published: Path) -> None:
    """What these tests take over is what the published files are like."""
    content = torch.load(published / BIN, weights_only=True)
    assert [name for name, value in content.items() if value == {}]
    assert set(load_file(published / SAFE)) == set(changed_projections(base))
    assert torch.load(published / "<new1>.bin")["<new1>"].untyped_storage().nbytes() == 1000 * 4 * base.dim


def test_the_token_is_the_only_one_beside_or_the_one_given(base: Base, published: Path, tmp_path: Path) -> None:
    folder = lay(published, tmp_path / "files", SAFE)
    bring = lambda token=None: import_concept(folder / SAFE, "inside", "cd", base, tmp_path / "concept", token)  # noqa: E731
    with pytest.raises(UserError, match="beside it there is none: name it, as --token FILE"):
        bring()
    save_file({"<one>": row(base)}, folder / "<one>.safetensors")
    imported = bring().metadata["imported"]
    assert (imported["token"], imported["file"], imported["token_file"]) == ("<one>", SAFE, "<one>.safetensors")
    assert imported["token_sha256"] == sha256_file(folder / "<one>.safetensors")
    torch.save({"<two>": -row(base)}, folder / "<two>.bin")
    with pytest.raises(UserError, match=r"there is <one>\.safetensors, <two>\.bin: name it, as --token"):
        bring()
    assert torch.equal(bring(folder / "<two>.bin").embedding, -row(base))  # type: ignore[arg-type]
    assert (tmp_path / "concept" / "learned_embeds.safetensors").stat().st_size < 4 * base.dim + 2000
    with pytest.raises(UserError, match=r"holds its token itself: leave '.*<one>\.safetensors' out"):
        import_concept(folder / "<two>.bin", "i", "m", base, tmp_path / "x", folder / "<one>.safetensors")


def test_a_token_in_the_folder_that_is_replaced_is_not_lost(base: Base, published: Path, tmp_path: Path) -> None:
    folder = lay(published, tmp_path / "files", SAFE, "<new1>.bin")
    import_concept(folder / SAFE, "inside", "cd", base, tmp_path / "concept")
    moved = (folder / "<new1>.bin").rename(tmp_path / "concept" / "<new1>.bin")
    with pytest.raises(UserError, match=r"<new1>\.bin' lies in '.*concept', which is to be replaced: move the file"):
        import_concept(folder / SAFE, "inside", "cd", base, tmp_path / "concept", moved)
    assert moved.is_file()


def test_the_change_for_the_pipeline_names_the_token_that_was_given(
    base: Base, published: Path, tmp_path: Path
) -> None:
    weights, token = lay(published, tmp_path / "files", SAFE) / SAFE, published / "<new1>.bin"
    concept = import_concept(weights, "inside", "cd", base, tmp_path / "concept", token)
    assert f'token:"{token}"' in as_change(concept, weights, token)


def test_the_change_for_the_pipeline_holds_wherever_it_runs(
    base: Base, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = lay(published, tmp_path / "files", SAFE, "<new1>.bin") / SAFE
    concept = import_concept(weights, "inside", "cd", base, tmp_path / "concept")
    monkeypatch.chdir(weights.parent)
    change = as_change(concept, Path(SAFE), Path("<new1>.bin"))
    assert f'file:"{weights}"' in change and f'token:"{weights.with_name("<new1>.bin")}"' in change


def test_weights_that_cannot_be_taken_over_are_refused(base: Base, published: Path, tmp_path: Path) -> None:
    folder = lay(published, tmp_path / "files", "<new1>.bin")
    learned = changed_projections(base)
    name, weight = next(iter(learned.items()))
    query, out = name.replace("to_k", "to_q"), name.replace("to_k_custom_diffusion", "to_out_custom_diffusion.0")
    for content, reason in (
        (learned | {query: weight}, "holds queries and outputs too"),
        (learned | {out: weight}, "holds queries and outputs too"),
        (learned | {"down.attn1.processor": {"to_k": weight}}, r"holds a dict as down\.attn1\.processor, not a tensor"),
        ({key: tensor[:, 1:] for key, tensor in learned.items()}, "do not fit the base"),
        ({name: weight}, "is missing and should be"),
        (learned | {"other_blocks.attn2.processor.to_k_custom_diffusion.weight": weight}, "should be absent"),
        (learned | {name: "weights"}, "holds a str as .*, not a tensor"),
        (learned | {name: weight.detach().to_sparse()}, "in a form of its own .*sparse_coo"),
        (learned | {name: weight * torch.nan}, "not finite"),
    ):
        torch.save(content, folder / BIN)
        with pytest.raises(UserError, match=reason):
            import_concept(folder / BIN, "inside", "published", base, tmp_path / "concept")
    torch.save(learned, folder / BIN)
    torch.save({"<new1>": torch.zeros(768)}, folder / "<new1>.bin")
    with pytest.raises(UserError, match=rf"token in '.*<new1>\.bin' has 768 numbers and the base .* takes {base.dim}"):
        import_concept(folder / BIN, "inside", "published", base, tmp_path / "concept")
    assert not (tmp_path / "concept").exists()


def test_missing_and_damaged_files_and_code_in_them_are_refused(base: Base, published: Path, tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "was-run")
    folder = lay(published, tmp_path / "files", BIN, SAFE, "<new1>.bin")
    bring = lambda name, **token: import_concept(folder / name, "i", "m", base, tmp_path / "concept", **token)  # noqa: E731
    with pytest.raises(UserError, match=r"other\.bin' does not exist"):
        bring("other.bin")
    with pytest.raises(UserError, match=r"<new2>\.bin' does not exist"):
        bring(BIN, token_file=folder / "<new2>.bin")
    for name in (BIN, SAFE):
        (folder / name).write_bytes((published / name).read_bytes()[:1000])
        with pytest.raises(UserError, match=r"damaged|not opened"):
            bring(name)
    torch.save(changed_projections(base) | {"down.attn1.processor": exploit}, folder / BIN)
    torch.save({"<new1>": exploit}, folder / "<new1>.bin")
    (folder / SAFE).write_bytes((published / SAFE).read_bytes())
    for name in (BIN, SAFE):  # code in the weights, code in the token
        with pytest.raises(UserError, match="might run code"):
            bring(name)
    assert not exploit.marker.exists() and not (tmp_path / "concept").exists()
