"""Base models: loaded frozen, and refused in one sentence when something is missing or damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from relinv import fingerprint
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.sampling import decode
from relinv.errors import UserError
from relinv.files import sha256_file, sha256_files
from relinv.hub import base_tokenizer
from relinv.settings import JudgeSettings
from relinv.validation import count_tokens
from tests.conftest import tiny_settings

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_networks_are_frozen_and_evaluated(base: Base) -> None:
    for network in (base.text_encoder, base.vae, base.unet):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_loading_says_nothing(tiny_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_base(tiny_settings(tiny_base))
    for network in (loaded.text_encoder, loaded.vae, loaded.unet):
        assert not network.training
    assert capfd.readouterr() == ("", "")


def test_a_large_file_is_read_again_only_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    read: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "LARGE", 5)
    monkeypatch.setattr(fingerprint, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    for content in (b"a large file", b"a large fool", b"another size"):
        large.write_bytes(content)
        small.write_bytes(content[:4])
        read.clear()
        found = {fingerprint.fingerprint(tmp_path, [large, small]) for _ in range(3)}
        assert found == {sha256_files(tmp_path, ["large", "small"])}
        assert read == ["large", "small", "small", "small"]
    fingerprint.KNOWN.write_text("damaged")
    assert fingerprint.hash_of(large) == sha256_file(large)
    monkeypatch.setattr(fingerprint, "write_json", MagicMock(side_effect=PermissionError))  # in another's checkout
    large.write_bytes(b"a larger file")
    assert fingerprint.hash_of(large) == sha256_file(large)


def test_a_judges_large_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = JudgeSettings(model=str(tmp_path / "judge"), pretrained=None, device="cpu")
    names = ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"]
    (tmp_path / "judge").mkdir()
    for name in [*names, "README.md"]:
        (tmp_path / "judge" / name).write_text(f"the content of {name}")
    read: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "LARGE", 30)
    monkeypatch.setattr(fingerprint, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    assert {fingerprint.judge_fingerprint(judge) for _ in range(2)} == {sha256_files(tmp_path / "judge", names)}
    assert read == [*names, "tokenizer.json"]  # the others, of more than 30 bytes, are remembered, both of them


def test_the_fingerprint_follows_the_files_that_are_loaded(base: Base, copied: Path) -> None:
    assert load_base(tiny_settings(copied)).fingerprint == base.fingerprint
    (copied / "README.md").write_text("about")
    (copied / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    assert load_base(tiny_settings(copied)).fingerprint == base.fingerprint
    tensors = load_file(copied / UNET)
    tensors[min(tensors)].add_(1e-3)
    save_file(tensors, copied / UNET)
    other = load_base(tiny_settings(copied)).fingerprint
    (copied / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    assert len({base.fingerprint, other, load_base(tiny_settings(copied)).fingerprint}) == 3


def test_a_noise_schedule_that_is_not_told_is_not_made_up(copied: Path) -> None:
    config = copied / "scheduler/scheduler_config.json"
    told = json.loads(config.read_text())
    for name in ("beta_start", "beta_end"):
        told.pop(name)
    config.write_text(json.dumps(told))
    with pytest.raises(UserError, match="lacks beta_end, beta_start in its scheduler"):
        _ = load_base(tiny_settings(copied)).scheduler
    config.write_text(json.dumps({**told, "trained_betas": [0.001] * 1000}))
    assert load_base(tiny_settings(copied)).scheduler.betas[7] == pytest.approx(0.001)


def test_a_unet_that_predicts_neither_noise_nor_velocity_is_refused(copied: Path) -> None:
    config = copied / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "sample"}))
    with pytest.raises(UserError, match=r"predicts 'sample', .* only on epsilon or v_prediction: name another base"):
        _ = load_base(tiny_settings(copied)).scheduler


# The files of published models, which are older than the libraries that are here


def rewrite(path: Path, rename: Callable[[str], str], **more: torch.Tensor) -> None:
    """Give each tensor of a weight file another name, and put `more` beside them."""
    tensors = load_file(path)
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed | more, path, metadata={"format": "pt"})


def test_a_text_encoder_of_older_names_loads(copied: Path, base: Base) -> None:
    ids = base.tokenize(["cat inside box"])
    positions = {"text_model.embeddings.position_ids": torch.arange(ids.shape[1])[None]}
    rewrite(copied / "text_encoder/model.safetensors", lambda name: f"text_model.{name}", **positions)
    assert torch.equal(load_base(tiny_settings(copied)).encode(ids), base.encode(ids))


def test_an_autoencoder_of_older_names_loads(copied: Path, base: Base) -> None:
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rewrite(
        copied / "vae/diffusion_pytorch_model.safetensors",
        lambda name: re.sub(r"(attentions\.0)\.(to_out\.0|to_.)", lambda part: f"{part[1]}.{older[part[2]]}", name),
    )
    other, pixels, latents = load_base(tiny_settings(copied)), torch.randn(1, 3, 64, 64), torch.randn(1, 4, 16, 16)
    assert torch.equal(other.vae.encode(pixels).latent_dist.mean, base.vae.encode(pixels).latent_dist.mean)
    assert torch.equal(decode(other, latents), decode(base, latents))


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])  # as Stable Diffusion 1.5 and 2 have it
def test_a_tokenizer_of_two_lists_loads(padding: str, copied: Path, base: Base) -> None:
    folder, caption = copied / "tokenizer", "a photo of a Cat, {} the naïve box"
    listed = json.loads((folder / "tokenizer.json").read_text())["model"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(listed["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, listed["merges"])]) + "\n")
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False,
           "single_word": False}  # fmt: skip
    config = {"bos_token": end | {"content": "<|startoftext|>"}, "eos_token": end, "unk_token": end,
              "pad_token": padding, "do_lower_case": True, "errors": "replace", "add_prefix_space": False,
              "model_max_length": base.tokenizer.model_max_length, "tokenizer_class": "CLIPTokenizer"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    settings = tiny_settings(copied)
    filled = caption.format("inside")
    ids, (expected,) = load_base(settings).tokenize([filled]), base.tokenize([filled]).tolist()
    words = expected.index(base.tokenizer.eos_token_id) + 1
    rest = base.tokenizer.convert_tokens_to_ids(padding)
    assert ids.tolist() == [expected[:words] + [rest] * (len(expected) - words)]
    assert [count_tokens(caption, base_tokenizer(each)) for each in (settings, base.settings)] == [words, words]


@pytest.mark.parametrize("place", ["/nowhere", "nowhere", "data/no/where"])
def test_a_missing_folder_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="There is no base model folder"):
        load_base(tiny_settings(Path(place)))


@pytest.mark.parametrize("first", [load_base, base_tokenizer])
def test_a_hub_id_that_cannot_be_had_is_refused(first: Callable[..., Any]) -> None:
    with pytest.raises(
        UserError, match=r"'nobody/nothing' is not a local folder and .* from the hub: .*, run `relinv download` first"
    ):
        first(tiny_settings(Path("nobody/nothing")))


def test_a_missing_component_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "vae")
    with pytest.raises(UserError, match="lacks vae: restore it"):
        load_base(tiny_settings(copied))


def test_missing_weights_are_named(copied: Path) -> None:
    (copied / UNET).unlink()
    with pytest.raises(UserError, match=r"weights of unet are missing .*: restore them"):
        load_base(tiny_settings(copied))


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"safe_serialization": False}, "diffusion_pytorch_model.bin, a pickle"),
        ({"variant": "fp16"}, "model.fp16.safetensors, a variant"),
        ({"variant": "fp16", "max_shard_size": "150KB"}, "model.fp16-00001-of-00002.safetensors, a variant"),
    ],
)
def test_weights_in_another_form_are_told_how_to_convert(
    form: dict[str, Any], why: str, base: Base, tiny_base: Path, tmp_path: Path
) -> None:
    StableDiffusionPipeline.from_pretrained(tiny_base).save_pretrained(tmp_path / "base", **form)
    with pytest.raises(UserError, match=rf"weights of \w+ are missing .*: {re.escape(why)}, is not loaded; ") as caught:
        load_base(tiny_settings(tmp_path / "base"))
    exec(str(caught.value).split('"')[1])
    converted = load_base(tiny_settings(tmp_path / "base-safetensors"))
    assert all(map(torch.equal, converted.unet.state_dict().values(), base.unet.state_dict().values()))


@pytest.mark.parametrize("first", [load_base, base_tokenizer])
def test_a_model_in_a_single_file_is_told_how_to_convert(first: Callable[..., Any], tmp_path: Path) -> None:
    (file := tmp_path / "v1-5.safetensors").write_bytes(b"weights")
    call = re.escape(f"from_single_file('{file}').save_pretrained('{tmp_path / 'v1-5-diffusers'}')")
    with pytest.raises(UserError, match=rf"'{file}' is a single file, not a folder: .*, convert it with .*{call}"):
        first(tiny_settings(file))


def test_damaged_weights_are_named(copied: Path) -> None:
    (copied / UNET).write_bytes((copied / UNET).read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"'{copied / UNET}' is damaged .* restore it"):
        load_base(tiny_settings(copied))


def test_weights_that_may_not_be_read_are_not_called_damaged(
    copied: Path, make_unreadable: Callable[[Path], None]
) -> None:
    make_unreadable(copied / UNET)
    with pytest.raises(PermissionError):
        load_base(tiny_settings(copied))


def test_incomplete_weights_are_refused_and_not_filled_at_random(copied: Path) -> None:
    path = copied / "text_encoder/model.safetensors"
    tensors = load_file(path)
    del tensors[max(tensors)]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights of text_encoder .* lack"):
        _ = load_base(tiny_settings(copied)).text_encoder


def test_a_missing_tokenizer_is_refused_and_not_made_up(copied: Path) -> None:
    (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer' lacks tokenizer\.json, or vocab\.json and merges\.txt"):
        _ = load_base(tiny_settings(copied)).tokenizer
    (copied / "tokenizer/vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer' lacks tokenizer\.json"):
        base_tokenizer(tiny_settings(copied))


def test_a_library_of_another_version_is_not_laid_to_the_folder(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = TypeError("UNet2DConditionModel.__init__() got an unexpected keyword argument 'torch_dtype'")
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", MagicMock(side_effect=older))
    with pytest.raises(UserError, match=r"diffusers or transformers do not fit .*'torch_dtype'\): install those"):
        _ = load_base(tiny_settings(tiny_base)).unet


def test_a_damaged_configuration_is_refused(copied: Path) -> None:
    (copied / "scheduler/scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match=r"The scheduler in .* cannot be loaded"):
        _ = load_base(tiny_settings(copied)).scheduler
    (copied / "unet/config.json").write_text("{")
    with pytest.raises(UserError, match=r"The configuration '.*unet/config\.json' is not valid JSON"):
        load_base(tiny_settings(copied))


@pytest.mark.parametrize(
    ("component", "change", "difference"),
    [
        ("unet", {"in_channels": 9}, "its UNet takes 9 channels, unlike its latents"),  # inpainting
        ("unet", {"addition_embed_type": "text_time"}, "its UNet takes more than timesteps and a prompt"),  # XL
        ("unet", {"time_cond_proj_dim": 256}, "its UNet takes more than timesteps and a prompt"),  # latent consistency
        ("unet", {"num_class_embeds": 1000}, "its UNet takes more than timesteps and a prompt"),
        ("unet", {"class_embed_type": "timestep"}, "its UNet takes more than timesteps and a prompt"),
        ("unet", {"encoder_hid_dim_type": "text_proj"}, "its UNet takes more than timesteps and a prompt"),
        (
            "unet",
            {"cross_attention_dim": 2048},
            "its UNet reads encodings of 2048 numbers, and its text encoder writes 32",
        ),
        (
            "text_encoder",
            {"hidden_size": 512},
            "its UNet reads encodings of 32 numbers, and its text encoder writes 512",
        ),
    ],
)
def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(
    component: str, change: dict[str, Any], difference: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    fetched: list[list[str]] = []

    def download(source: str, *, allow_patterns: list[str], **options: Any) -> str:
        fetched.append(allow_patterns)
        return str(copied)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=f"is not a Stable Diffusion 1 or 2 as this project runs them: {difference}"):
        load_base(tiny_settings(Path("some/model")))
    assert [pattern for (patterns,) in [fetched] for pattern in patterns if "safetensors" in pattern] == []


def test_of_a_model_on_the_hub_what_is_loaded_is_fetched_and_of_weights_one_variant(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = MagicMock(return_value=str(copied))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    _ = load_base(tiny_settings(Path("some/model"))).unet
    variants = [f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in (".fp16", ".non_ema")]
    others = ["v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"]
    configurations = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]
    tokenizer = [f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
    weights = [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    loaded = {*configurations, *tokenizer, *weights, "text_encoder/config.json"}
    patterns = ("allow_patterns", "ignore_patterns")
    calls = [{name: call.kwargs[name] for name in patterns} for call in download.call_args_list]
    there = [*loaded, *variants, *others]
    assert {name for call in calls for name in filter_repo_objects(there, **call)} == loaded


def test_a_configuration_that_is_no_mapping_is_refused(copied: Path) -> None:
    (copied / "vae/config.json").write_text("null")
    with pytest.raises(UserError, match=r"vae/config\.json"):
        load_base(tiny_settings(copied))


def test_a_width_for_each_block_fits_where_all_are_the_encoders(copied: Path) -> None:
    file = copied / "unet/config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"cross_attention_dim": [32] * len(content["down_block_types"])}))
    assert load_base(tiny_settings(copied)).unet.config.cross_attention_dim[0] == 32


def test_a_gpu_is_named_in_what_results_depend_on(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.gpu is None and "gpu" not in base.numerics
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a GPU as {device}")
    other = Base(base.settings.model_copy(update={"device": "cuda:1"}), base._folder, base.fingerprint)
    vars(other)["device"] = torch.device("cuda:1")  # as found, for there is none here
    assert other.gpu == other.numerics["gpu"] == other.processor == "a GPU as cuda:1"


def test_how_a_base_is_trained_is_not_among_what_its_pictures_depend_on(base: Base) -> None:
    settings = base.settings.model_copy(update={"samples_per_pass": 1, "deterministic": False})
    assert Base(settings, base._folder, base.fingerprint).numerics == base.numerics


def test_processors_are_told_apart_by_instructions_and_threads(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    assert base.processor == "AVX2, threads: 3" and base.processor not in base.numerics.values()


def test_a_home_folder_is_found_by_its_short_name(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copied.parent))
    assert load_base(tiny_settings(Path("~/base"))).fingerprint == load_base(tiny_settings(copied)).fingerprint


def test_a_device_this_machine_lacks_is_refused(tiny_base: Path) -> None:
    settings = tiny_settings(tiny_base).model_copy(update={"device": "cuda:99"})
    with pytest.raises(UserError, match="The device 'cuda:99' is not available"):
        load_base(settings)


def test_a_missing_device_is_told_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    download = MagicMock()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = tiny_settings(Path("some/model")).model_copy(update={"device": "cuda:99"})
    with pytest.raises(UserError, match="The device 'cuda:99' is not available"):
        load_base(settings)
    assert not download.called


def test_a_gpu_too_old_for_the_precision_is_told_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    download = MagicMock()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("relinv.diffusion.bases.find_device", torch.device)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    changes = {"device": "cuda", "precision": "bf16"}
    with pytest.raises(UserError, match="The GPU 'Tesla T4' is too old for bf16"):
        load_base(tiny_settings(Path("some/model")).model_copy(update=changes))
    assert not download.called


def test_too_little_memory_is_not_laid_to_the_folder(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", MagicMock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        _ = load_base(base.settings).unet


@pytest.mark.parametrize("first", [load_base, base_tokenizer])  # learning, and validation before it
def test_a_gated_model_says_how_to_get_access(first: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = MagicMock(side_effect=GatedRepoError("403 Forbidden", response=MagicMock(headers={})))
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"gated; accept its licence at https://huggingface\.co/some/model, then"):
        first(tiny_settings(Path("some/model")))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_take_a_model_is_not_laid_to_the_hub(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = MagicMock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(OSError) as caught:
        load_base(tiny_settings(Path("some/model")))
    assert caught.value.errno == number


def test_a_model_of_the_hub_that_is_here_in_part_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", MagicMock(return_value=str(copied)))
    (copied / UNET).unlink()  # as where the download was cut off
    told = r"of unet are missing .*'some/model' has .* \.bin alone, .*\('some/model'\)\.save.* run `relinv download`"
    with pytest.raises(UserError, match=told):
        load_base(tiny_settings(Path("some/model")))
    shutil.rmtree(copied / "unet")  # or validation alone was online
    with pytest.raises(UserError, match=r"lacks unet: restore it\. Without .* here, run `relinv download` first"):
        load_base(tiny_settings(Path("some/model")))
