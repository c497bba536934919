"""The store: what is bad is refused by the name of its check, and no crash, race or replay bends the truth."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from codebook.identity import FORMAT, Identity
from codebook.mode import Mode
from codebook.router import HalfwayProbe, Router
from codebook.store import CodebookStore, codebook_hash
from codebook.tensors import check, pack
from codebook.value import Codebook, HeadEdit
from core.errors import BadCodebook, BadInput, Conflict, NotFound
from tests.support.books import (
    FACTS,
    base_book,
    open_store,
    output_draft,
    output_edit,
    pixel_draft,
    publish,
    publish_active,
)
from tests.support.racing import race

Damage = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def assert_same(one: Codebook, other: Codebook) -> None:
    """Two codebooks are equal to the last bit."""
    a, b = pack(one), pack(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name])


# What a store is at its birth


def test_a_new_store_has_the_models_own_codebook_active(root: Path) -> None:
    store = open_store(root)
    assert_same(store.load("v0"), base_book())
    manifest = store.manifest("v0")
    assert (manifest.tables, manifest.binds, manifest.parent, manifest.job) == ([], "decode", None, None)
    assert (store.active().version, store.active().epoch, store.active().previous) == ("v0", 0, None)
    assert store.report("v0")["grid"] == [4, 4]


def test_initialise_again_changes_nothing(root: Path) -> None:
    store = open_store(root, versions=2)
    store.activate("v2", by="me")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    CodebookStore(root).initialise(base_book(), {"other": "facts"})
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"model_hash": "b" * 64}, "model_hash"),
        ({"family": "emu3"}, "family"),
        ({"pixel": torch.ones(16, 5)}, "shape"),
        ({"pixel": torch.ones(16)}, "shape"),
        ({"pixel": torch.ones(16, 4, dtype=torch.bfloat16)}, "dtype"),
    ],
)
def test_a_store_of_another_model_is_refused_and_kept(root: Path, change: dict[str, Any], check: str) -> None:
    store = open_store(root, versions=1)
    with pytest.raises(BadCodebook) as refused:
        CodebookStore(root).initialise(replace(base_book(), **change), FACTS)
    assert refused.value.check == check
    assert_same(store.load("v0"), base_book())


def test_a_bad_first_codebook_leaves_no_store(root: Path) -> None:
    broken = replace(base_book(), pixel=torch.full((16, 4), math.nan))
    with pytest.raises(BadCodebook, match="finite"):
        CodebookStore(root).initialise(broken, FACTS)
    with pytest.raises(BadCodebook, match="shape"):
        CodebookStore(root).initialise(replace(base_book(), pixel=torch.ones(16)), FACTS)
    with pytest.raises(BadInput, match="base"):
        CodebookStore(root).initialise(pixel_draft(1), FACTS)
    for name in ("feature_dim", "hidden_dim"):
        for width in (0, -1, 2.0, "6", True):
            with pytest.raises(BadInput, match=name):
                CodebookStore(root).initialise(base_book(), {name: width})
    with pytest.raises(NotFound):
        CodebookStore(root).active()
    open_store(root)


def test_before_initialise_there_is_nothing(root: Path) -> None:
    store = CodebookStore(root)
    assert (store.names(), store.versions()) == ([], [])
    calls: list[Callable[[], object]] = [
        store.active,
        store.audit,
        lambda: store.load("v0"),
        lambda: store.manifest("v0"),
        lambda: store.activate("v0", by="me"),
        lambda: store.rollback(by="me"),
        lambda: publish(store, pixel_draft(1)),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    assert not root.exists()


@pytest.mark.slow
def test_the_store_needs_no_redis() -> None:
    code = "import sys, codebook.store, codebook.live, records.journal; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Publishing


@pytest.mark.parametrize(
    ("draft", "tables", "binds"),
    [
        (pixel_draft(1), ["pixel"], "decode"),
        (output_draft(1), ["output"], "admission"),
        (output_draft(1, routed=False), ["output"], "admission"),
        (replace(output_draft(1), pixel=pixel_draft(2).pixel), ["pixel", "output"], "admission"),
    ],
)
def test_what_is_published_comes_back_to_the_last_bit(
    root: Path, draft: Codebook, tables: list[str], binds: str
) -> None:
    store = open_store(root)
    figures, gates = {"svr": (0.5, 0.6)}, {"G1": {"holds": True}}
    manifest = publish(store, draft, figures=figures, gates=gates, report={"n": 3}, images={"grid-1.png": b"png"})
    loaded = store.load("v1")
    assert_same(loaded, draft)
    assert (loaded.version, loaded.model_hash) == ("v1", draft.model_hash)
    assert manifest == store.manifest("v1") == store.versions()[-1]
    assert (manifest.tables, manifest.binds, manifest.dtype) == (tables, binds, "float32")
    assert (manifest.parent, manifest.job, manifest.round) == ("v0", "j", 1)
    assert (manifest.figures, manifest.gates) == ({"svr": [0.5, 0.6]}, gates)
    assert manifest.content_hash == codebook_hash(draft) == codebook_hash(loaded)
    assert (store.report("v1"), store.image("v1", "grid-1.png")) == ({"n": 3}, b"png")


def test_a_router_comes_back_exactly(root: Path) -> None:
    draft = output_draft(1)
    store = open_store(root)
    publish(store, draft)
    loaded = store.load("v1")
    assert loaded.output is not None and draft.output is not None
    assert loaded.output.router is not None and draft.output.router is not None
    assert torch.equal(loaded.output.router.weight, draft.output.router.weight)
    assert torch.equal(loaded.output.router.bias, draft.output.router.bias)
    assert torch.equal(loaded.output.router.expert, draft.output.router.expert)


def test_a_look_and_a_share_of_guidance_come_back_exactly(root: Path) -> None:
    probes = Router(torch.randn(2, 6), torch.randn(2), torch.tensor([1, 0]))
    draft = with_edit(replace(EDIT, probe=HalfwayProbe(7, probes), guidance=0.25, groups=torch.tensor([1, 0])))
    store = open_store(root)
    publish(store, draft)
    loaded = store.load("v1")
    assert_same(loaded, draft)
    assert loaded.output is not None and loaded.output.probe is not None and loaded.output.probe.after == 7
    assert loaded.output.guidance == 0.25
    assert loaded.output.groups is not None and loaded.output.groups.tolist() == [1, 0]


@pytest.mark.parametrize("mode", ["edit", "rewrite", "redraw", "refuse"])
def test_a_mode_comes_back_and_has_a_content_of_its_own(root: Path, mode: Mode) -> None:
    store = open_store(root)
    publish(store, with_edit(replace(EDIT, mode=mode)))
    assert store.load("v1").mode == mode and store.manifest("v1").mode == mode
    assert (store.manifest("v1").content_hash == codebook_hash(with_edit(EDIT))) == (mode == "edit")


def test_a_version_of_two_modes_is_refused() -> None:
    tensors = pack(with_edit(replace(EDIT, mode="refuse")))
    with pytest.raises(BadCodebook, match=r"tensors.*output\.rewrite"):
        check("v1", Identity.of(base_book(), FACTS), tensors | {"output.rewrite": torch.tensor(1)})


def test_another_mode_is_a_child_with_the_same_tables_and_no_figures(root: Path) -> None:
    store = open_store(root)
    publish(store, with_edit(EDIT), figures={"harmful": 0.1}, gates={"validity": {"passed": True}})
    child = store.derive("v1", "rewrite")
    assert (child.version, child.parent, child.mode, child.figures, child.gates) == ("v2", "v1", "rewrite", {}, {})
    assert store.report("v2") == {"derived_from": "v1", "mode": "rewrite"}
    assert_same(store.load("v2").in_mode("edit"), with_edit(EDIT))
    assert store.active().version == "v0"
    assert store.derive("v1", "rewrite") == child  # once
    assert store.derive("v1", "edit").version == "v1"  # it is that already
    assert store.derive("v2", "edit").version == "v1"


def test_a_model_that_rewrites_nothing_has_no_mode_that_does(root: Path) -> None:
    store = CodebookStore(root)
    store.initialise(base_book(), FACTS | {"rewrites": False})
    publish(store, with_edit(EDIT))
    with pytest.raises(BadInput, match=r"mode.*edit, redraw or refuse: tiny rewrites no prompts"):
        store.derive("v1", "rewrite")
    assert store.derive("v1", "refuse").mode == "refuse" and store.names() == ["v0", "v1", "v2"]


def test_a_version_that_routes_nothing_has_no_other_mode(root: Path) -> None:
    store = open_store(root, versions=1)
    publish(store, with_edit(replace(EDIT, router=None)), job="other")
    for version in ("v0", "v1", "v2"):
        with pytest.raises(BadInput, match="router"):
            store.derive(version, "refuse")
    with pytest.raises(NotFound):
        store.derive("v9", "refuse")
    assert store.names() == ["v0", "v1", "v2"]


def test_tensors_that_share_memory_are_stored(root: Path) -> None:
    table = torch.randn(32, 8)
    draft = replace(pixel_draft(1), pixel=table[::2, ::2])
    store = open_store(root)
    publish(store, draft)
    assert torch.equal(store.load("v1").pixel, table[::2, ::2])


def test_versions_sort_by_number(root: Path) -> None:
    store = open_store(root, versions=11)
    assert store.names() == [f"v{n}" for n in range(12)]
    assert [manifest.version for manifest in store.versions()] == store.names()


def with_pixel(pixel: torch.Tensor) -> Codebook:
    return replace(pixel_draft(1), pixel=pixel)


def with_edit(edit: HeadEdit) -> Codebook:
    return replace(base_book(), version="draft", output=edit)


def probe(after: int = 3, width: int = 6, expert: int = 1) -> HalfwayProbe:
    return HalfwayProbe(after, Router(torch.ones(1, width), torch.zeros(1), torch.tensor([expert])))


EDIT = output_edit(1)
BAD_DRAFTS = {
    "another model": (replace(pixel_draft(1), model_hash="b" * 64), "model_hash"),
    "another family": (replace(pixel_draft(1), family="emu3"), "family"),
    "a row too few": (with_pixel(torch.ones(15, 4)), "shape"),
    "a column too many": (with_pixel(torch.ones(16, 5)), "shape"),
    "turned": (with_pixel(torch.ones(4, 16)), "shape"),
    "half precision": (with_pixel(torch.ones(16, 4).half()), "dtype"),
    "double precision": (with_pixel(torch.ones(16, 4).double()), "dtype"),
    "a NaN": (
        with_pixel(pixel_draft(1).pixel.clone().index_put_((torch.tensor(3),), torch.tensor(math.nan))),
        "finite",
    ),
    "infinity": (with_pixel(torch.full((16, 4), math.inf)), "finite"),
    "all zeros": (with_pixel(torch.zeros(16, 4)), "zero_rows"),
    "one zero row": (with_pixel(pixel_draft(1).pixel * (torch.arange(16) != 7)[:, None]), "zero_rows"),
    "a row too short to normalise": (with_pixel(torch.full((16, 4), 1e-30)), "zero_rows"),
    "edit of another width": (with_edit(replace(EDIT, mean=torch.ones(5))), "shape"),
    "basis turned": (with_edit(replace(EDIT, basis=torch.ones(2, 2, 6))), "shape"),
    "basis a vector": (with_edit(replace(EDIT, basis=torch.ones(6))), "shape"),
    "basis a scalar": (with_edit(replace(EDIT, basis=torch.tensor(1.0))), "shape"),
    "ranks of down and up differ": (with_edit(replace(EDIT, up=torch.ones(2, 2, 6))), "shape"),
    "edit in half precision": (with_edit(replace(EDIT, down=torch.ones(2, 6, 3).half())), "dtype"),
    "edit with NaN": (with_edit(replace(EDIT, up=torch.full((2, 3, 6), math.nan))), "finite"),
    "router of another width": (
        with_edit(replace(EDIT, router=Router(torch.ones(2, 4), torch.zeros(2), torch.zeros(2).long()))),
        "shape",
    ),
    "router of an expert too many": (
        with_edit(replace(EDIT, router=Router(torch.ones(2, 5), torch.zeros(2), torch.tensor([0, 2])))),
        "expert",
    ),
    "router of no whole expert": (
        with_edit(replace(EDIT, router=Router(torch.ones(2, 5), torch.zeros(2), torch.tensor([0.0, 1.0])))),
        "dtype",
    ),
    "a probe without a router": (with_edit(replace(EDIT, router=None, probe=probe())), "tensors"),
    "a probe before the first token": (with_edit(replace(EDIT, probe=probe(after=0))), "look"),
    "a probe at features of another width": (with_edit(replace(EDIT, probe=probe(width=5))), "shape"),
    "a probe of an expert too many": (with_edit(replace(EDIT, probe=probe(expert=2))), "expert"),
    "groups of other experts": (with_edit(replace(EDIT, groups=torch.tensor([0, 1, 1]))), "shape"),
    "groups that are no numbers": (with_edit(replace(EDIT, groups=torch.tensor([0.0, 1.0]))), "dtype"),
    "a mode without a router": (with_edit(replace(EDIT, router=None, mode="refuse")), "tensors"),
    "groups without a router": (with_edit(replace(EDIT, router=None, groups=torch.tensor([0, 1]))), "tensors"),
    "more guidance than was asked for": (with_edit(replace(EDIT, guidance=1.5)), "guidance"),
    "router with NaN": (
        with_edit(replace(EDIT, router=Router(torch.ones(2, 5), torch.tensor([0, math.nan]), torch.zeros(2).long()))),
        "finite",
    ),
}


@pytest.mark.parametrize("name", BAD_DRAFTS)
def test_a_bad_draft_is_refused_by_name_and_leaves_nothing(root: Path, name: str) -> None:
    draft, check = BAD_DRAFTS[name]
    store = open_store(root)
    with pytest.raises(BadCodebook) as refused:
        publish(store, draft)
    assert (refused.value.check, refused.value.version) == (check, "draft")
    assert sorted(path.name for path in (root / "versions").iterdir()) == ["v0"]
    assert store.active().version == "v0"


@pytest.mark.parametrize(
    "change",
    [
        {"figures": {"x": math.nan}},
        {"gates": {"x": torch.ones(1)}},
        {"report": {"x": object()}},
        {"images": {"../escape.png": b""}},
        {"images": {"manifest.json": b""}},
        {"images": {".png": b""}},
        {"images": {"a/b.png": b""}},
        {"images": {"grid.png\n": b""}},
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(root: Path, change: dict[str, Any]) -> None:
    store = open_store(root)
    with pytest.raises(BadInput):
        publish(store, pixel_draft(1), **change)
    assert sorted(path.name for path in (root / "versions").iterdir()) == ["v0"]


def test_a_version_needs_a_parent(root: Path) -> None:
    with pytest.raises(NotFound):
        publish(open_store(root), pixel_draft(1), parent="v1")


@pytest.mark.parametrize(
    "version", ["", "v", "v00", "v01", "v2", "V1", "draft", "..", "../versions/v1", "v1/", "v1\n", "v\u0660"]
)
def test_an_unknown_version_is_not_found_and_never_a_path(root: Path, version: str) -> None:
    store = open_store(root, versions=1)
    calls: list[Callable[[], object]] = [
        lambda: store.load(version),
        lambda: store.manifest(version),
        lambda: store.report(version),
        lambda: store.image(version, "grid.png"),
        lambda: store.activate(version, by="me"),
        lambda: store.rollback(by="me", to=version),
        lambda: store.share({"v0": 0.5, version: 0.5}, by="me"),
        lambda: store.revoke(version, by="me"),
        lambda: store.restore(version, by="me"),
        lambda: store.derive(version, "refuse"),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    for name in ("../../../model.json", "manifest.json", "none.png", "../v0/grid.png"):
        with pytest.raises(NotFound):
            store.image("v1", name)


# Exactly once


def test_a_replayed_round_is_published_once(root: Path) -> None:
    store = open_store(root)
    first = publish(store, pixel_draft(1))
    assert publish(store, pixel_draft(1), fence=2, figures={"later": 1}) == first
    assert store.names() == ["v0", "v1"]
    assert publish(store, pixel_draft(1), round=2, fence=2).version == "v2"
    assert publish(store, pixel_draft(1), job="other").version == "v3"


def test_a_replayed_round_with_other_content_is_refused(root: Path) -> None:
    store = open_store(root)
    publish(store, pixel_draft(1))
    with pytest.raises(Conflict, match="v1"):
        publish(store, pixel_draft(2))
    assert_same(store.load("v1"), pixel_draft(1))


def test_a_stale_worker_cannot_publish(root: Path) -> None:
    store = open_store(root)
    publish(store, pixel_draft(1), fence=3)
    for draft, round in ((pixel_draft(1), 1), (pixel_draft(2), 2)):
        with pytest.raises(Conflict, match="stale"):
            publish(store, draft, round=round, fence=2)
    assert (store.names(), store.active().version) == (["v0", "v1"], "v0")
    publish(store, pixel_draft(2), job="other", fence=1)  # fences are a job's own


# Bad files


def rewrite(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **manifest: object) -> None:
    """Forge a version: other tensors with a sha256 that fits them, other facts."""
    facts = json.loads((folder / "manifest.json").read_bytes())
    if tensors is not None:
        data = safetensors.torch.save(tensors)
        (folder / "codebook.safetensors").write_bytes(data)
        facts |= {"sha256": hashlib.sha256(data).hexdigest()}
        facts |= {"shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}}
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))


def forge(**tensors: torch.Tensor) -> Damage:
    return lambda folder: rewrite(folder, {"pixel": pixel_draft(1).pixel} | tensors)


def facts(**manifest: object) -> Damage:
    return lambda folder: rewrite(folder, None, **manifest)


def truncate(name: str, keep: float) -> Damage:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return cut


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "codebook.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "codebook.safetensors").write_bytes(bytes(data))


def garbage_with_a_fitting_hash(folder: Path) -> None:
    (folder / "codebook.safetensors").write_bytes(b"\x10" * 100)
    rewrite(folder, sha256=hashlib.sha256(b"\x10" * 100).hexdigest())


def without_a_field(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write(name: str, data: bytes) -> Damage:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return put


def put_a_folder_in_place_of_the_file(folder: Path) -> None:
    (folder / "codebook.safetensors").unlink()
    (folder / "codebook.safetensors").mkdir()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "manifest missing": (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
    "manifest empty": (truncate("manifest.json", 0), "manifest"),
    "manifest cut": (truncate("manifest.json", 0.5), "manifest"),
    "manifest a list": (write("manifest.json", b"[]"), "manifest"),
    "manifest not UTF-8": (write("manifest.json", b"\xff{}"), "manifest"),
    "manifest nested for ever": (write("manifest.json", b'{"a":' * 100_000), "manifest"),
    "manifest with NaN": (facts(figures={"x": math.nan}), "manifest"),
    "manifest without a field": (without_a_field, "manifest"),
    "manifest with a field too many": (facts(extra=1), "manifest"),
    "manifest of a wrong type": (facts(shapes=[16, 4]), "manifest"),
    "manifest with a boolean size": (facts(shapes={"pixel": [True, 4]}), "manifest"),
    "manifest with an unknown table": (facts(tables=["input"]), "manifest"),
    "manifest of another version": (facts(version="v2"), "manifest"),
    "manifest of another family": (facts(family="emu3"), "family"),
    "manifest of another model": (facts(model_hash="b" * 64), "model_hash"),
    "manifest with a wrong hash": (facts(sha256="0" * 64), "sha256"),
    "manifest with a wrong dtype": (facts(dtype="float16"), "dtype"),
    "manifest with a wrong shape": (facts(shapes={"pixel": [4, 16]}), "shape"),
    "manifest that binds elsewhere": (facts(binds="admission"), "tables"),
    "manifest that claims an output edit": (facts(tables=["pixel", "output"]), "tables"),
    "manifest with a wrong content hash": (facts(content_hash="0" * 64), "content"),
    "file missing": (lambda folder: (folder / "codebook.safetensors").unlink(), "file"),
    "file a folder": (put_a_folder_in_place_of_the_file, "file"),
    "file empty": (truncate("codebook.safetensors", 0), "sha256"),
    "file cut": (truncate("codebook.safetensors", 0.7), "sha256"),
    "file with a flipped bit": (flip_a_bit, "sha256"),
    "file garbage with a fitting hash": (garbage_with_a_fitting_hash, "file"),
    "tensor with another name": (lambda folder: rewrite(folder, {"pixels": torch.ones(16, 4)}), "tensors"),
    "tensor too many": (forge(extra=torch.ones(1)), "tensors"),
    "half an output edit": (forge(**{"output.basis": torch.ones(6, 2)}), "tensors"),
    "tensor of another shape": (forge(pixel=torch.ones(16, 5)), "shape"),
    "tensor of another dtype": (forge(pixel=torch.ones(16, 4, dtype=torch.bfloat16)), "dtype"),
    "tensor of integers": (forge(pixel=torch.ones(16, 4, dtype=torch.int32)), "dtype"),
    "tensor with NaN": (forge(pixel=torch.full((16, 4), math.nan)), "finite"),
    "tensor of zeros": (forge(pixel=torch.zeros(16, 4)), "zero_rows"),
    "tensor swapped for another": (forge(pixel=pixel_draft(2).pixel), "content"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_version_is_refused_by_name_and_the_old_one_stays(root: Path, name: str) -> None:
    damage, check = DAMAGES[name]
    store = open_store(root, versions=2)
    store.activate("v2", by="me")
    before = store.active()
    damage(root / "versions" / "v1")
    for refuse in (
        lambda: store.load("v1"),
        lambda: store.activate("v1", by="me"),
        lambda: store.rollback(by="me", to="v1"),
    ):
        with pytest.raises(BadCodebook) as refused:
            refuse()
        assert (refused.value.version, refused.value.check) == ("v1", check)
    assert store.active() == before
    assert [record["version"] for record in store.audit()] == ["v0", "v2"]
    assert_same(store.load("v2"), pixel_draft(2))


def test_a_damaged_manifest_hides_no_other_and_its_name_is_not_used_again(root: Path) -> None:
    store = open_store(root, versions=2)
    (root / "versions" / "v2" / "manifest.json").write_text("{")
    assert [manifest.version for manifest in store.versions()] == ["v0", "v1"]
    assert store.names() == ["v0", "v1", "v2"]
    assert publish(store, pixel_draft(3)).version == "v3"


def test_a_damaged_v0_stops_the_start(root: Path) -> None:
    open_store(root)
    flip_a_bit(root / "versions" / "v0")
    with pytest.raises(BadCodebook) as refused:
        open_store(root)
    assert (refused.value.version, refused.value.check) == ("v0", "sha256")


@pytest.mark.parametrize("name", ["model.json", "ACTIVE", "fences.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"x": "y"}', b'{"epoch": 1}\xff'])
def test_a_damaged_record_is_reported_and_nothing_is_overwritten(root: Path, name: str, data: bytes) -> None:
    store = open_store(root, versions=1)
    (root / name).write_bytes(data)
    with pytest.raises(BadCodebook, match="damaged"):
        publish_active(store, pixel_draft(3), round=9)
    assert (root / name).read_bytes() == data


def test_a_store_of_a_later_format_is_refused_and_one_of_format_1_has_no_number(root: Path) -> None:
    open_store(root)
    record = json.loads((root / "model.json").read_text())
    assert "format" not in record  # releases without the field read it
    (root / "model.json").write_text(json.dumps({**record, "format": FORMAT + 1, "more": "than this release knows"}))
    both = f"model.json is of format {FORMAT + 1}, and this release reads formats up to {FORMAT}"
    with pytest.raises(BadCodebook, match=both) as refused:
        open_store(root)
    assert (refused.value.version, refused.value.check) == ("store", "format")


# The active alias


def test_a_move_gives_old_and_new_and_is_in_the_audit_log(root: Path) -> None:
    store = open_store(root, versions=2)
    start = store.active()
    old, new = store.activate("v1", by="alice", expected_epoch=0)
    assert old == start
    assert (new.version, new.epoch, new.previous, new.moved_by, new.move) == ("v1", 1, "v0", "alice", "activate")
    assert new == store.active()
    back = store.rollback(by="bob", expected_epoch=1)
    assert (back[0], back[1].version, back[1].epoch, back[1].move) == (new, "v0", 2, "rollback")
    assert [(move["version"], move["epoch"], move["moved_by"]) for move in store.audit()] == [
        ("v0", 0, "initialise"),
        ("v1", 1, "alice"),
        ("v0", 2, "bob"),
    ]


def test_a_stale_epoch_moves_nothing(root: Path) -> None:
    store = open_store(root, versions=2)
    store.activate("v1", by="me")
    for epoch in (0, 2, -1):
        with pytest.raises(Conflict, match="epoch 1"):
            store.activate("v2", by="me", expected_epoch=epoch)
        with pytest.raises(Conflict, match="epoch 1"):
            store.rollback(by="me", expected_epoch=epoch)
    assert store.active().version == "v1"


def test_activating_the_active_version_is_no_move(root: Path) -> None:
    store = open_store(root, versions=1)
    store.activate("v1", by="me")
    old, new = store.activate("v1", by="me")
    assert old == new == store.active()
    assert len(store.audit()) == 2


def test_rollbacks_go_back_and_back_and_never_forward(root: Path) -> None:
    store = open_store(root, versions=3)
    for version in ("v1", "v3", "v0", "v2"):
        store.activate(version, by="me")
    gone_back = [store.rollback(by="me")[1].version for _ in range(4)]
    assert gone_back == ["v0", "v3", "v1", "v0"]
    with pytest.raises(Conflict, match="nothing to roll back to"):
        store.rollback(by="me")
    assert store.active().epoch == 8


def test_a_rollback_to_a_name_goes_there(root: Path) -> None:
    store = open_store(root, versions=3)
    for version in ("v1", "v2", "v3"):
        store.activate(version, by="me")
    assert store.rollback(by="me", to="v1")[1].version == "v1"
    assert store.rollback(by="me")[1].version == "v0"
    assert store.rollback(by="me", to="v3")[1].version == "v3"  # even where it was left before
    assert store.rollback(by="me")[1].version == "v0"


def test_with_no_history_there_is_nothing_to_roll_back_to(root: Path) -> None:
    with pytest.raises(Conflict, match="nothing to roll back to"):
        open_store(root, versions=1).rollback(by="me")


def test_a_rollback_to_a_damaged_version_is_refused_and_another_can_be_named(root: Path) -> None:
    store = open_store(root, versions=2)
    store.activate("v1", by="me")
    store.activate("v2", by="me")
    flip_a_bit(root / "versions" / "v1")
    with pytest.raises(BadCodebook, match="v1"):
        store.rollback(by="me")
    assert store.active().version == "v2"
    assert store.rollback(by="me", to="v0")[1].version == "v0"


# Crashes


def test_what_a_crash_left_of_a_publish_is_never_seen_and_in_nobodys_way(root: Path) -> None:
    store = open_store(root)
    half = root / "versions" / ".v1.tmp"
    half.mkdir()
    (half / "codebook.safetensors").write_bytes(b"half")
    (half / "leftover.png").write_bytes(b"half")
    assert store.names() == ["v0"]
    with pytest.raises(NotFound):
        store.load("v1")
    publish(store, pixel_draft(1))
    assert_same(store.load("v1"), pixel_draft(1))
    assert not half.exists()
    assert not (root / "versions" / "v1" / "leftover.png").exists()


def test_a_move_whose_audit_line_a_crash_prevented_is_not_lost(root: Path) -> None:
    store = open_store(root, versions=2)
    store.activate("v1", by="me")
    log = root / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[1][:20])  # torn
    assert [move["version"] for move in store.audit()] == ["v0", "v1"]
    store.activate("v2", by="me")
    assert [move["version"] for move in store.audit()] == ["v0", "v1", "v2"]
    assert len(log.read_bytes().splitlines()) == 3


def test_a_lost_active_record_comes_back_from_the_audit_log(root: Path) -> None:
    store = open_store(root, versions=1)
    store.activate("v1", by="me")
    lost = store.active()
    (root / "ACTIVE").unlink()
    with pytest.raises(NotFound):
        store.active()
    open_store(root)
    assert store.active() == lost


def test_a_damaged_audit_log_is_reported_and_does_not_stop_a_named_move(root: Path) -> None:
    store = open_store(root, versions=2)
    store.activate("v2", by="me")
    log = root / "audit.jsonl"
    log.write_bytes(b"garbage\n" + log.read_bytes())
    with pytest.raises(BadCodebook, match="line 1"):
        store.audit()
    with pytest.raises(BadCodebook, match="line 1"):
        store.rollback(by="me")
    assert store.rollback(by="me", to="v1")[1].version == "v1"


def _publish_for_ever(root: Path, first: int) -> None:
    store = CodebookStore(root)
    for n in range(first, sys.maxsize):
        publish_active(store, pixel_draft(n), round=n)


@pytest.mark.slow
def test_a_killed_publisher_leaves_whole_versions_only(root: Path) -> None:
    store = open_store(root)
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        count = len(store.names())
        victim = context.Process(target=_publish_for_ever, args=(root, count))
        victim.start()
        while len(store.names()) < count + 5:
            assert victim.is_alive()
        victim.kill()
        victim.join()
        for name in store.names()[1:]:
            assert_same(store.load(name), pixel_draft(store.manifest(name).round or 0))
        moves = store.audit()
        assert [move["epoch"] for move in moves] == list(range(len(moves)))
        assert store.active().version in store.names()[-2:]


# Races


def _activate(root: Path, version: str, epoch: int) -> str:
    return CodebookStore(root).activate(version, by=version, expected_epoch=epoch)[1].version


def _activate_often(root: Path, who: int) -> int:
    store, won = CodebookStore(root), 0
    for _ in range(15):
        epoch = store.active().epoch
        try:
            old, new = store.activate(f"v{epoch % 2 + 1}", by=f"p{who}", expected_epoch=epoch)
        except Conflict:
            continue
        won += new.epoch - old.epoch
    return won


def _publish(root: Path, seed: int, changes: dict[str, Any]) -> str:
    return publish(CodebookStore(root), pixel_draft(seed), **changes).version


def _read_while_others_write(root: Path, role: str) -> None:
    store = CodebookStore(root)
    for n in range(15):
        if role == "write":
            publish_active(store, pixel_draft(n), round=n)
        else:
            for name in store.names():
                store.load(name)
            epoch, version = store.active().epoch, store.active().version
            assert store.active().epoch >= epoch
            store.load(version)


@pytest.mark.slow
def test_of_many_compare_and_sets_one_wins(root: Path) -> None:
    store = open_store(root, versions=4)
    results = race(_activate, [(root, f"v{n}", 0) for n in range(1, 5)])
    winner = [result for result in results if result != "Conflict"]
    assert len(winner) == 1
    assert (store.active().version, store.active().epoch) == (winner[0], 1)


@pytest.mark.slow
def test_no_move_is_lost_or_made_twice(root: Path) -> None:
    store = open_store(root, versions=2)
    won = race(_activate_often, [(root, who) for who in range(3)])
    moves = store.audit()
    assert store.active().epoch == sum(won) == len(moves) - 1
    assert [move["epoch"] for move in moves] == list(range(len(moves)))
    assert all(move["previous"] == before["version"] for before, move in pairwise(moves))


@pytest.mark.slow
def test_one_round_is_published_once_by_racing_processes(root: Path) -> None:
    store = open_store(root)
    results = race(_publish, [(root, 1, {})] * 4)
    assert results == ["v1"] * 4
    assert store.names() == ["v0", "v1"]


@pytest.mark.slow
def test_different_rounds_of_racing_processes_all_get_their_own_version(root: Path) -> None:
    store = open_store(root)
    results = race(_publish, [(root, n, {"round": n, "job": f"j{n}"}) for n in range(1, 5)])
    assert sorted(results) == store.names()[1:] == ["v1", "v2", "v3", "v4"]
    for version in store.names()[1:]:
        assert_same(store.load(version), pixel_draft(store.manifest(version).round or 0))


@pytest.mark.slow
def test_stale_attempts_lose_every_race(root: Path) -> None:
    store = open_store(root)
    publish(store, pixel_draft(1), fence=2)
    results = race(_publish, [(root, n, {"round": n, "fence": fence}) for n, fence in ((1, 1), (2, 1), (3, 2))])
    assert sorted(results) == ["Conflict", "Conflict", "v2"]
    assert store.manifest("v2").round == 3


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(root: Path) -> None:
    open_store(root)
    assert race(_read_while_others_write, [(root, role) for role in ("write", "read", "read")]) == [None] * 3
