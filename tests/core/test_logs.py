"""Logs: one JSON object a line, with the ids of what it is about, errors and all; nothing that a caller wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.support.serving import tiny_model

SCRIPT = """
import logging
from core import logs
logs.configure({form!r})
log = logging.getLogger("some.part")
logs.about(request_id="r-1", job_id="j-2")
log.info("%d images of %s", 3, "v1", extra={{"status": 200}})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke")
log.debug("not this")
"""


def written(form: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT.format(form=form)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()


def test_json_lines_name_what_they_are_about() -> None:
    first, second = (json.loads(line) for line in written("json"))
    assert (first["message"], first["level"], first["logger"]) == ("3 images of v1", "info", "some.part")
    assert (first["request_id"], first["job_id"], first["status"]) == ("r-1", "j-2", 200)
    assert first["timestamp"].endswith("Z")
    assert second["message"] == "it broke" and "ZeroDivisionError" in second["exception"]


def test_text_lines_stay_as_they_were() -> None:
    lines = written("text")
    assert lines[0].endswith(" some.part 3 images of v1") and "not this" not in lines


def test_a_servers_log_has_requests_and_no_prompt(tmp_path: Path) -> None:
    settings = {"SAFECB_HOME": str(tmp_path / "home"), "SAFECB_MODEL": str(tiny_model(tmp_path / "model"))}
    settings |= {"SAFECB_PORT": "0", "SAFECB_SECOND_JUDGE": "hf:owner/harm#harm", "SAFECB_LOG": "json"}
    command = [sys.executable, "-m", "app.server"]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=file, text=True) as server,
    ):
        assert server.stdout is not None
        url = server.stdout.readline().split()[4]
        body = {"prompt": "a very secret apple"}
        headers = {"X-Request-Id": "my-id", "Authorization": "Bearer my-key"}
        assert httpx2.post(f"{url}/generate?secret=1", json=body, headers=headers, timeout=60).status_code == 200
        assert httpx2.post(f"{url}/generate", json=body | {"n": 0}).status_code == 422
        server.terminate()
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    own = [line for line in lines if line.get("request_id") == "my-id"]
    assert [(line["method"], line["path"], line["status"]) for line in own] == [("POST", "/generate", 200)]
    assert own[0]["seconds"] > 0 and any(line.get("status") == 422 for line in lines)
    for secret in ("secret", "apple", "my-key"):
        assert secret not in text
