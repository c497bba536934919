"""Every command of README and docs is run as it stands, or stands in ELSEWHERE with the reason why not here.

All run in one folder against one `safecb serve` with the embedded model; an address, a port and ids are put in.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from codebook.store import CodebookStore
from tests.support.serving import publish, publish_routed, wait_for
from tests.support.supervised import ROOT, Supervised

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}(?:make|curl|safecb|python|\.venv/bin|export|pip|openssl) ", re.MULTILINE)
CI = "CI runs `make test` on a fresh machine, which sets up and checks; `make serve` sets up alike"
GPU = "needs a GPU or an hour; tests/test_benchmarks.py runs the benchmark small"
JANUS = "needs the checkpoint of a hub; tests/cli/test_check.py and test_improve.py run the command on tiny models"
ELSEWHERE = {  # beginnings of commands
    "make ": CI,
    ".venv/bin/python -m pytest": "is a part of `make test`",
    ".venv/bin/safecb serve": "is what all other commands here run against",
    "SAFECB_ROOT_PATH=": "tests/app/http/test_root_path.py serves behind nginx",
    "OTEL_SERVICE_NAME=": "tests/app/metrics/test_tracing.py serves with a collector",
    "pip install": "installs from an index; CI installs every extra but nudenet's",
    "export SAFECB_MODEL": JANUS,
    ".venv/bin/safecb verify": "tests/cli/test_verify.py runs it on a tiny model of every family",
    ".venv/bin/safecb check --policy open": JANUS,
    ".venv/bin/safecb improve --policy open": JANUS,
    ".venv/bin/safecb evaluate": JANUS,
    ".venv/bin/safecb improve": "takes a quarter of an hour; tests/cli/test_improve.py runs it against a played worker",
    "python -m benchmarks.serving --model random:": GPU,
    "python -m benchmarks.geometries --device cuda": GPU,
    "docker ": "needs a container engine; deploy/build_image.sh builds and tries the image",
    "deploy/build_image.sh": "builds an image, for minutes",
    "helm install": "needs a cluster; tests/deploy/test_helm.py renders the chart with several values",
    "kubectl ": "needs a cluster",
    "python evalscripts/": "is a script of another project",
    "safecb evaluate --prompts i2p.csv --judges 'self,any(": "needs a judge's folder; see test_named_judges.py",
    "prometheus --config.file": "serves for ever; tests/app/metrics/test_metrics.py checks the file with promtool",
}
PROMPTS = "prompt,category\na red apple,\na dog covered in blood,gore\n"


def commands(page: str) -> Iterator[str]:
    """The shell commands of a page, one a line, without comments; a snippet of Python is one command."""
    for block in BLOCK.finditer((ROOT / page).read_text()):
        kind, text = block.groups()
        if kind == "python":
            yield f"{sys.executable} - <<'END'\n{text}END"
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = re.split(r"\s+#\s", line)[0].strip()
            if command:
                yield command


def is_elsewhere(command: str) -> bool:
    return command.startswith(tuple(ELSEWHERE))


RUN = [(page, command) for page in PAGES for command in commands(page) if not is_elsewhere(command)]


class World:
    """A folder, a server on which v1 is active, and what commands need beside them."""

    def __init__(self, folder: Path, http: httpx2.Client) -> None:
        self.folder, self.http = folder, http
        self._subjects = iter(("a fox", "a red kite", "a teapot", "a whale"))  # each is another image

    def prepare(self) -> None:
        """v1 active, no job, a flag that waits."""
        self.http.post("/codebooks/v1/activate", json={}).raise_for_status()
        for job in self.http.get("/jobs").json():
            if job["status"] in ("queued", "running"):
                self.http.delete(f"/jobs/{job['id']}")
                wait_for("the job ends", lambda: self.http.get(f"/jobs/{job['id']}").json()["ended"])  # noqa: B023
        if not self.flags():
            drawn = self.http.post("/generate", json={"prompt": next(self._subjects)}).json()["images"][0]
            self.http.post("/flags", json={"image_id": drawn["id"], "category": "odd"}).raise_for_status()

    def flags(self) -> list[str]:
        return [flag["id"] for flag in self.http.get("/flags?state=review").json()]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the docs; its exit code is that of its pipe's first part that fails."""
        address = str(self.http.base_url).removeprefix("http://").rstrip("/")
        text = re.sub(r"(?:localhost|127\.0\.0\.1):8000", address, command)
        text = text.replace("/ID/", f"/{self.flags()[0]}/") if "/ID/" in text else text
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CURL_HOME": str(self.folder)}
        own |= {"SAFECB_HOME": str(self.folder / "home"), "SAFECB_PORT": address.rpartition(":")[2]}
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            cwd=self.folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    for name in ("i2p.csv", "my-prompts.csv"):
        (folder / name).write_text(PROMPTS)
    supervised = Supervised(folder / "home", ROOT / "checkpoints" / "embedded", SAFECB_SECOND_JUDGE="beside")
    try:
        with supervised.wait_ready() as http:
            store = CodebookStore(folder / "home" / "store")
            assert [publish_routed(store), publish(store, 2).version] == ["v1", "v2"]
            yield World(folder, http)
    finally:
        supervised.end(signal.SIGTERM)


def test_every_command_stands_in_a_block_that_this_file_reads() -> None:
    for page in PAGES:
        rest = BLOCK.sub("", (ROOT / page).read_text())
        assert not INDENTED.search(rest), page


def test_what_stands_elsewhere_is_in_the_docs() -> None:
    everything = [command for page in PAGES for command in commands(page)]
    unused = [start for start in ELSEWHERE if not any(command.startswith(start) for command in everything)]
    assert unused == []


@pytest.mark.parametrize(("page", "command"), RUN, ids=[f"{page}: {command[:60]}" for page, command in RUN])
def test_the_command_works(world: World, page: str, command: str) -> None:
    world.prepare()
    done = world.run(command)
    assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
