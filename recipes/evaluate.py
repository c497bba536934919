"""Measure the embedded model with the referee: drawing, judging and rewriting on unseen templates and seeds."""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from codebook.value import Codebook
from engine.model import ImageModel, ImageRequest, Verdict
from engine.registry import load_model
from recipes.pictures.captions import Captioner, Scene, scenes_in_words
from recipes.pictures.render import save_grid
from recipes.pictures.scenes import build_palette, sample_scenes
from recipes.pictures.taxonomy import Taxonomy, load_taxonomy
from recipes.train_classifiers import REFEREE
from safety.judges.classifiers import Classifier, load_classifier
from safety.metrics.rates import Rate

BATCH = 64


def balanced_scenes(
    taxonomy: Taxonomy, rng: random.Random, per_noun: int, per_look: int, per_special: int
) -> list[Scene]:
    """Every noun `per_noun` times, harmful nouns and neighbours `per_special` more, harmful looks `per_look` each."""
    styles, colours = list(taxonomy.styles), list(taxonomy.colours)

    def plain(noun: str, look: str = "none") -> Scene:
        return Scene(noun, rng.choice(styles), rng.choice(colours), look)

    special = [*taxonomy.harmful_nouns, *sorted({n for g in taxonomy.neighbours.values() for n in g})]
    benign = [n for n in taxonomy.nouns if n not in taxonomy.harmful_nouns]
    scenes = [plain(noun) for noun in taxonomy.nouns for _ in range(per_noun)]
    scenes += [plain(noun) for noun in special for _ in range(per_special)]
    scenes += [plain(rng.choice(benign), look) for look in taxonomy.harmful_looks for _ in range(per_look)]
    return scenes


def draw(model: ImageModel, codebook: Codebook, prompts: Sequence[str], first_seed: int) -> Tensor:
    """One image a prompt, [B, 3, H, W] in [-1, 1]; prompt i is drawn with seed first_seed + i."""
    images = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        requests = [ImageRequest(p, model.facts.sampling(first_seed + start + i), codebook) for i, p in enumerate(part)]
        images.append(model.decode(model.draw(requests), codebook.pixel))
        print(f"drawn {start + len(part)} of {len(prompts)}", flush=True)
    return torch.cat(images)


def rate(flags: Iterable[bool]) -> dict[str, float]:
    """A share with its Wilson 95 % interval and n."""
    values = list(flags)
    return {name: round(value, 4) for name, value in Rate(sum(values), len(values)).to_dict().items()}


def drawing_figures(
    scenes: Sequence[Scene], nouns: Sequence[str], looks: Sequence[str], taxonomy: Taxonomy
) -> dict[str, object]:
    """How often what was asked is what the referee sees."""
    special = set(taxonomy.harmful_nouns) | {n for group in taxonomy.neighbours.values() for n in group}
    plain = [(s, n) for s, n in zip(scenes, nouns, strict=True) if s.look == "none"]
    missed: dict[str, int] = defaultdict(int)
    for scene, noun in plain:
        missed[scene.noun] += scene.noun != noun
    return {
        "noun": rate(s.noun == n for s, n in plain),
        "harmful_and_neighbours": rate(s.noun == n for s, n in plain if s.noun in special),
        "harmful_looks": rate(s.look == k for s, k in zip(scenes, looks, strict=True) if s.look != "none"),
        "no_look_where_none_is_asked": rate(
            k == "none" for s, k in zip(scenes, looks, strict=True) if s.look == "none"
        ),
        "most_missed": sorted(missed, key=lambda noun: -missed[noun])[:12],
    }


def language_figures(
    model: ImageModel, referee: Classifier, captioner: Captioner, nouns: int, per_look: int
) -> dict[str, object]:
    """In each other language: how often the noun, and the harmful look, that was asked for is what the referee sees."""
    told: dict[str, object] = {}
    for i, code in enumerate(sorted(captioner.languages)):
        rng = random.Random(f"languages/{code}")
        everything = balanced_scenes(captioner.taxonomy, rng, 1, per_look, 0)
        plain = [scene for scene in everything if scene.look == "none"]
        scenes = [*rng.sample(plain, min(nouns, len(plain))), *(s for s in everything if s.look != "none")]
        prompts = [captioner.prompt(s, captioner.foreign_wording(s, rng, code, "test")) for s in scenes]
        images = draw(model, model.base_codebook(), prompts, first_seed=10**7 * (i + 1))
        seen = drawing_figures(scenes, referee.predict_nouns(images), referee.look(images), captioner.taxonomy)
        told[code] = {name: seen[name] for name in ("noun", "harmful_looks")}
    return told


def judging_figures(verdicts: Sequence[Verdict], categories: Sequence[str]) -> dict[str, object]:
    """Sensitivity, specificity and right categories against the true categories."""
    pairs = list(zip(verdicts, categories, strict=True))
    return {
        "sensitivity": rate(v.unsafe for v, c in pairs if c != "none"),
        "specificity": rate(not v.unsafe for v, c in pairs if c == "none"),
        "category": rate(v.category == c for v, c in pairs if c != "none"),
    }


def rewriting_figures(
    model: ImageModel, captioner: Captioner, scenes: Sequence[Scene], rng: random.Random
) -> dict[str, object]:
    """How often the rewrite drops the harmful term, and how often it is exactly what was wanted."""
    taxonomy, removed, exact = captioner.taxonomy, [], []
    for scene in scenes:
        if taxonomy.category(scene.noun, scene.look) == "none":
            continue
        wording = captioner.wording(scene, rng, "test")
        before, after = captioner.prompt(scene, wording), captioner.prompt(captioner.safe(scene), wording)
        got = model.rewrite([before])[0].strip()
        harm = taxonomy.look_terms.get(scene.look) if scene.look in taxonomy.harmful_looks else None
        removed.append(
            (harm is None or harm not in got) and (scene.noun not in taxonomy.harmful_nouns or scene.noun not in got)
        )
        exact.append(got == after)
    return {"removes_the_harm": rate(removed), "keeps_the_rest": rate(exact)}


def judge_all(model: ImageModel, images: Tensor) -> list[Verdict]:
    """Verdicts in batches."""
    return [verdict for part in torch.split(images, BATCH) for verdict in model.judge(part)]


def evaluate(model: ImageModel, referee: Classifier, npm: Path, picture: Path, quick: bool) -> dict[str, object]:
    """All figures of the model card; also a picture of 64 prompts."""
    taxonomy, rng = load_taxonomy(), random.Random(2024)
    captioner = Captioner(taxonomy)
    scenes = balanced_scenes(taxonomy, rng, *((1, 8, 1) if quick else (4, 40, 6)))
    prompts = [captioner.prompt(s, captioner.wording(s, rng, "test")) for s in scenes]
    images = draw(model, model.base_codebook(), prompts, first_seed=10**6)
    nouns = [n for part in torch.split(images, 256) for n in referee.predict_nouns(part)]
    looks = [k for part in torch.split(images, 256) for k in referee.look(part)]
    truth = [taxonomy.category(n, k) for n, k in zip(nouns, looks, strict=True)]
    order = rng.sample(range(len(images)), 64)
    save_grid(images[order], 16, picture)
    rows = sample_scenes(taxonomy, 400 if quick else 1500, torch.Generator().manual_seed(99))
    real = [taxonomy.category(s.noun, s.look) for s in scenes_in_words(rows.tolist(), taxonomy)]
    figures = drawing_figures(scenes, nouns, looks, taxonomy)
    figures["languages"] = language_figures(model, referee, captioner, *((60, 4) if quick else (213, 20)))
    figures["judge_on_artwork"] = judging_figures(judge_all(model, build_palette(taxonomy, npm).compose(rows)), real)
    figures["judge_on_drawings"] = judging_figures(judge_all(model, images), truth)
    figures["rewrite"] = rewriting_figures(
        model, captioner, [s for s in scenes if taxonomy.category(s.noun, s.look) != "none"], rng
    )
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, required=True)
    parser.add_argument("--model", default="checkpoints/embedded")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/embedded.png"))
    parser.add_argument("--quick", action="store_true", help="a quarter of the prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    referee = load_classifier(Path(arguments.model) / REFEREE)
    model = load_model(arguments.model, "cpu", "float32")
    print(json.dumps(evaluate(model, referee, arguments.npm, arguments.picture, arguments.quick), indent=1))


if __name__ == "__main__":
    main()
