"""Checkpoints as people have them: in shards, in part, quantised, pickled, in another layout; served or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BadInput, BadModel
from engine.model import ImageRequest, Sampling
from engine.registry import check_model, find_family, load_model
from engine.weights.convert import convert
from tests.support.families.tiny_anole import build_tiny_anole
from tests.support.tiny import build_tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_tiny(tmp_path_factory.mktemp("whole") / "ein Modell, für Tests")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "größeres Modell"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def part(folder: Path) -> Path:
    """Part the weights into SHARDS with an index, as transformers does."""
    tensors = tensors_of(folder)
    (folder / WEIGHTS).unlink()
    places = {name: SHARDS[number % 3] for number, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, folder / shard, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def pickled(folder: Path, *, shards: bool) -> Path:
    """The folder with weights as older releases of transformers wrote them."""
    if shards:
        part(folder)
        index = json.loads((folder / INDEX).read_text())
        names = {shard: f"pytorch_{shard.removesuffix('.safetensors')}.bin" for shard in SHARDS}
        index["weight_map"] = {key: names[shard] for key, shard in index["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / INDEX).unlink()
    else:
        names = {WEIGHTS: "pytorch_model.bin"}
    for shard, name in names.items():
        torch.save(load_file(folder / shard), folder / name)
        (folder / shard).unlink()
    return folder


def drawn(folder: Path) -> torch.Tensor:
    model = load_model(str(folder), "cpu", "float32")
    return model.draw([ImageRequest("a red apple", Sampling(7), model.base_codebook())])


def change_config(folder: Path, **values: Any) -> Path:  # noqa: ANN401 - JSON
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_shards_draw_what_one_file_draws(folder: Path, whole: Path) -> None:
    assert torch.equal(drawn(part(folder)), drawn(whole))


@pytest.mark.parametrize("shards", [False, True])
def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    shards: bool, folder: Path, whole: Path, tmp_path: Path
) -> None:
    pickled(folder, shards=shards)
    with pytest.raises(BadModel, match=r"holds pytorch_model.*\.bin.*safecb convert .*größeres Modell NEW_FOLDER"):
        load_model(str(folder), "cpu", "float32")
    new = tmp_path / "neu"
    assert convert(folder, new) == (SHARDS if shards else [WEIGHTS])
    assert not list(new.glob("*.bin*")) and [path.name for path in tmp_path.iterdir() if "neu" in path.name] == ["neu"]
    assert torch.equal(drawn(new), drawn(whole))
    with pytest.raises(BadInput, match="NEW_FOLDER"):
        convert(folder, new)
    with pytest.raises(BadInput, match=r"pytorch_model\.bin"):
        convert(new, tmp_path / "again")


class Runs:
    """Says on the screen that it was unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("a pickle has run",)


@pytest.mark.parametrize("holds", [{"weight": Runs()}, {"model": {"weight": torch.zeros(2)}}, b"no pickle"])
def test_a_pickle_of_more_than_tensors_is_not_run(
    holds: Any,  # noqa: ANN401
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = folder / "pytorch_model.bin"
    if isinstance(holds, bytes):
        file.write_bytes(holds)
    else:
        torch.save(holds, file)
    with pytest.raises(BadModel, match="tensors"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists() and "a pickle has run" not in capsys.readouterr().out


def test_tied_weights_are_written_each(folder: Path, tmp_path: Path) -> None:
    tensors = tensors_of(folder)
    name = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    torch.save(tensors | {"lm_head.weight": tensors[name], "part": tensors[name][2:4]}, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "new")
    written = tensors_of(tmp_path / "new")
    assert torch.equal(written["lm_head.weight"], written[name])
    assert torch.equal(written["part"], written[name][2:4])


def without_a_shard(folder: Path) -> str:
    (part(folder) / SHARDS[1]).unlink()
    return rf"lacks {SHARDS[1]}, of the 3 files of {INDEX}, and so \d+ of \d+ weights"


def without_the_index(folder: Path) -> str:
    (part(folder) / INDEX).unlink()
    return f"lacks {INDEX}"


def with_a_cut_shard(folder: Path) -> str:
    shard = part(folder) / SHARDS[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    return rf"{SHARDS[2]}: is cut off: it has [\d,]+ of [\d,]+ bytes"


def with_a_pointer(folder: Path) -> str:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / WEIGHTS).write_text(text)
    return f"{WEIGHTS}: is a pointer of Git LFS"


def with_a_page_for_weights(folder: Path) -> str:
    (folder / WEIGHTS).write_text("<html>404</html>")
    return f"{WEIGHTS}: is no safetensors file"


def without_weights(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    return r"holds no \.safetensors file"


def without_a_weight(folder: Path) -> str:
    tensors = tensors_of(folder)
    del tensors["model.vqmodel.quantize.embedding.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return r"lack 1 weights of its class, such as model\.vqmodel\.quantize\.embedding\.weight"


def with_other_names(folder: Path) -> str:
    """Weights under DeepSeek's names, beside the configuration of transformers."""
    names = {"model.language_model.": "language_model.model.", "model.vqmodel.": "gen_vision_model."}
    tensors = tensors_of(folder)
    for ours, theirs in names.items():
        tensors = {key.replace(ours, theirs): tensor for key, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return r"lack \d+ weights of its class, such as .*a checkpoint of another layout"


def quantised_by_bitsandbytes(folder: Path) -> str:
    change_config(folder, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
    return r"quantised \(its config\.json says bitsandbytes, 4 bits\).*SAFECB_DTYPE=bfloat16"


def quantised_by_gptq(folder: Path) -> str:
    change_config(folder, quantization_config={"bits": 4, "quant_method": "gptq"})
    return r"quantised \(its config\.json says gptq, 4 bits\)"


def quantised_by_awq_in_a_part(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, text_config=config["text_config"] | {"quantization_config": {"quant_method": "awq"}})
    return r"quantised \(its config\.json says awq\)"


def quantised_to_fp8(folder: Path) -> str:
    tensors = tensors_of(folder)
    name = next(key for key in tensors if key.endswith("q_proj.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return rf"quantised \(its tensor {name} is of F8_E4M3\)"


@pytest.mark.parametrize(
    "change",
    [
        *(without_a_shard, without_the_index, without_weights, without_a_weight, with_other_names),
        *(with_a_cut_shard, with_a_pointer, with_a_page_for_weights),
        *(quantised_by_bitsandbytes, quantised_by_gptq, quantised_by_awq_in_a_part, quantised_to_fp8),
    ],
)
def test_what_cannot_be_served_is_refused_by_what_is_missing(change: Callable[[Path], str], folder: Path) -> None:
    why = change(folder)
    with pytest.raises(BadModel, match=why) as refused:
        load_model(str(folder), "cpu", "float32")
    assert str(folder) in str(refused.value)
    if change not in (without_a_weight, with_other_names):  # of these the headers are in order
        with pytest.raises(BadModel, match=why):
            check_model(str(folder))


@pytest.mark.parametrize(("hidden", "size"), [(2048, "1B"), (4096, "7B"), (None, "7B")])
def test_deepseek_s_own_layout_is_refused_with_the_name_of_the_other(
    hidden: int | None, size: str, tmp_path: Path
) -> None:
    language = {"model_type": "llama"} | ({} if hidden is None else {"hidden_size": hidden})
    config = {"model_type": "multi_modality", "language_config": language}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadModel, match=f"DeepSeek's own layout.*deepseek-community/Janus-Pro-{size}"):
        find_family(tmp_path)


def test_baai_s_own_layout_is_refused_with_the_name_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Emu3", "image_area": 518400}))
    with pytest.raises(BadModel, match=r"BAAI's own layout.*BAAI/Emu3-Gen-hf"):
        find_family(tmp_path)


def test_further_weights_of_a_family_are_checked_too(tmp_path: Path) -> None:
    folder = part(build_tiny_anole(tmp_path / "anole"))
    load_model(str(folder), "cpu", "float32")
    (folder / SHARDS[0]).unlink()
    with pytest.raises(BadModel, match=f"lacks {SHARDS[0]}"):
        load_model(str(folder), "cpu", "float32")
