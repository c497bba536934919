"""Result files of a benchmark: JSON with everything, a Markdown page and a plot, all of one name."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent.parent / "docs" / "results"


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Return the environment of a measurement on a device; `load` is the load average at its start."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write(name: str, results: Mapping[str, Any], page: Sequence[str], picture: Figure | None = None) -> None:
    """Write NAME.json, NAME.md and, if there is a plot, NAME.png into docs/results."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (FOLDER / f"{name}.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    if picture is not None:
        picture.savefig(FOLDER / f"{name}.png", dpi=100)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table; numbers have three digits."""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(_cell(row[head]) for head in heads)} |" for row in rows]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
