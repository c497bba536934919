"""Judges by name; the grammar of the names is in grammar.py.

Knows how each kind is loaded. Knows nothing of what a judge is used for.
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.model import ImageModel
from safety.judges.combined import AnyJudge, AtThreshold
from safety.judges.contrastive import HarmTexts, load_zero_shot, read_texts
from safety.judges.grammar import ANY, GUARD, HF, JudgeName, items, read_name, read_second_judge
from safety.judges.guards import GuardQuestion, load_guard, read_question
from safety.judges.labels import load_label_judge
from safety.judges.registry import Judge, find_judges


def parse_judge(name: str, model: ImageModel, device: torch.device) -> Judge:
    """The judge called `name`, its weights on `device`, for images as `model` draws them.

    Raises BadInput for a name that the grammar (see the module) does not know and BadModel for a file of texts or a
    question that cannot be read, both before any weights are read; BadModel for a checkpoint that cannot serve.
    """
    return _load(read_name(name), model, device)


def parse_second_judge(name: str, model: ImageModel, device: torch.device) -> Judge:
    """The second judge of a run, as `parse_judge`; raises BadInput for the model itself and for the referee too."""
    return _load(read_second_judge(name), model, device)


def _load(name: JudgeName, model: ImageModel, device: torch.device) -> Judge:
    return _build(name, _read_files(name), model, device)


_Files = dict[str, HarmTexts | GuardQuestion]  # by the text of the name


def _read_files(name: JudgeName) -> _Files:
    files: _Files = {}
    for part in name.parts:
        files |= _read_files(part)
    if "texts" in name.options:
        files[name.text] = read_texts(Path(name.options["texts"]))
    if "ask" in name.options:
        files[name.text] = read_question(Path(name.options["ask"]))
    return files


def _build(name: JudgeName, files: _Files, model: ImageModel, device: torch.device) -> Judge:
    file, size = files.get(name.text), model.facts.image_size
    judge: Judge
    if name.kind == ANY:
        judge = AnyJudge(tuple(_build(part, files, model, device) for part in name.parts), name.text)
    elif name.kind == HF:
        judge = load_label_judge(name.text, name.source, name.label, name.covers, size, device)
    elif isinstance(file, HarmTexts):
        judge = load_zero_shot(name.text, name.source, file, size, device)
    elif name.kind == GUARD:
        policies = items(name.options["policies"]) if "policies" in name.options else []
        judge = load_guard(name.text, name.source, policies, file, name.covers, size, device)
    else:
        judge = find_judges([name.kind], model)[0]
    return judge if name.threshold is None else AtThreshold(judge, name.threshold)
