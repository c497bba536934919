"""Attacks with bad input: each is a 4xx problem document that names the field; none is a 500, whatever is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.codebook_schemas import CompareRequest, RollbackRequest
from app.schemas import GenerateRequest, ImproveBody
from tests.support.serving import Server, serving, settings_in, tiny_model

JSON = {"content-type": "application/json"}
POSTS = ["/generate", "/improve", "/codebooks/compare", "/codebooks/rollback", "/codebooks/v0/activate"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


def assert_problem(answer: httpx2.Response, *statuses: int) -> dict[str, object]:
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert body["status"] == answer.status_code
    assert str(body["type"]).startswith("urn:safecb:problem:") and body["title"] and body["detail"]
    return body


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": " \n\t"}, "prompt", "visible"),
        ({"prompt": "a" * 4001}, "prompt", "4000"),
        ({"prompt": "word " * 500}, "prompt", "144 tokens"),
        ({"prompt": 5}, "prompt", "string"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": ["a"]}, "prompt", "string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"n": True}, "n", "integer"),
        ({"n": "2"}, "n", "integer"),
        ({"n": 1.0}, "n", "integer"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "seed", "less than 9223372036854775808"),
        ({"seed": 10**400}, "seed", "less than"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"guidance_scale": 0.99}, "guidance_scale", "greater than or equal to 1"),
        ({"guidance_scale": 20.01}, "guidance_scale", "less than or equal to 20"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 10**400}, "temperature", ""),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"top_k": 65}, "top_k", "0 to 64"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
        ({"codebook": "v999"}, "codebook", "GET /codebooks"),
        ({"codebook": "../v0"}, "codebook", "pattern"),
        ({"codebook": "v00"}, "codebook", "pattern"),
        ({"steps": 5}, "steps", "no field of this name"),
    ],
)
def test_generate_names_the_field_and_what_is_allowed(
    server: Server, change: dict[str, object], field: str, allowed: str
) -> None:
    body = assert_problem(server.post("/generate", {"prompt": "a red apple", **change}), 422)
    assert body["field"] == field
    assert allowed in str(body["allowed"])
    assert str(body["field"]) in str(body["detail"]) and body["value"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"prompt": "a",}',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "guidance_scale": Infinity}',
        b'{"prompt": "a", "seed": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"prompt": "a", "codebook": "\\udc00"}',
        b'{"to": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}x",
        b"\x00",
        b"[" * 50_000,
        b"[]",
        b'"a"',
        b"5",
        b"{} {}",
    ],
)
def test_broken_bodies_are_problems(server: Server, path: str, body: bytes) -> None:
    problem = assert_problem(server.http.post(path, content=body, headers=JSON), 400, 422)
    assert problem["field"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "\xff"])
@pytest.mark.parametrize("path", POSTS)
def test_other_content_types_are_415(server: Server, path: str, kind: str) -> None:
    answer = server.http.post(path, content=b'{"prompt": "a"}', headers=[(b"content-type", kind.encode("latin-1"))])
    assert_problem(answer, 415)


def test_no_body_is_a_problem_where_one_is_needed(server: Server) -> None:
    for path in POSTS[:3]:
        assert assert_problem(server.http.post(path), 415, 422)


def test_a_huge_body_is_413(server: Server) -> None:
    assert_problem(server.http.post("/generate", content=b" " * (2**21 + 1), headers=JSON), 413)
    chunks = (b" " * 2**16 for _ in range(40))  # no Content-Length
    assert_problem(server.http.post("/generate", content=chunks, headers=JSON), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/codebooks/v9", 404),
        ("GET", "/codebooks/v9/report", 404),
        ("GET", "/codebooks/v0/report/none.png", 404),
        ("GET", "/codebooks/v0/report/manifest.json", 404),
        ("GET", "/codebooks/v0/report/..%2fmanifest.json", 404),
        ("GET", "/codebooks/%00", 404),
        ("GET", "/codebooks/%ed%a0%80", 404),
        ("GET", "/codebooks/..%2f..", 404),
        ("POST", "/codebooks/v9/activate", 404),
        ("POST", "/codebooks/vx/activate", 404),
        ("POST", "/codebooks/rollback", 409),
        ("GET", "/jobs/x", 404),
        ("DELETE", "/jobs/" + "0" * 24, 404),
        ("GET", "/nowhere", 404),
        ("GET", "/generate", 405),
        ("DELETE", "/codebooks/v0", 405),
    ],
)
def test_bad_paths_are_problems(server: Server, method: str, path: str, status: int) -> None:
    assert_problem(server.http.request(method, path), status)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"categories": ["weapons", "joy"]}, "categories.1"),
        ({"categories": []}, "categories"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a", ""]}, "prompts.1"),
        ({"prompts": "a"}, "prompts"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"max_rounds": 9}, "max_rounds"),
        ({"activate": 1}, "activate"),
        ({"seed": -1}, "seed"),
        ({"rounds": 1}, "rounds"),
    ],
)
def test_improve_names_the_field(server: Server, body: dict[str, object], field: str) -> None:
    assert assert_problem(server.post("/improve", body), 422)["field"] == field
    assert server.http.get("/jobs").json() == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a", "versions": ["v0"]}, "versions"),
        ({"prompt": "a", "versions": ["v0", "v0", "v0"]}, "versions"),
        ({"prompt": "a", "versions": ["v0", "v77"]}, "versions.1"),
        ({"prompt": "a", "versions": ["v0", 1]}, "versions.1"),
        ({"prompt": "a"}, "versions"),
        ({"prompt": "a " * 300, "versions": ["v0", "v0"]}, "prompt"),
    ],
)
def test_compare_names_the_field(server: Server, body: dict[str, object], field: str) -> None:
    assert assert_problem(server.post("/codebooks/compare", body), 422)["field"] == field


def test_several_faults_are_reported_together(server: Server) -> None:
    body = assert_problem(server.post("/generate", {"n": 0, "seed": -1}), 422)
    assert isinstance(body["errors"], list)
    assert {error["field"] for error in body["errors"]} == {"prompt", "n", "seed"}


def test_a_long_value_is_shortened(server: Server) -> None:
    assert len(server.post("/generate", {"prompt": ["x" * 100_000]}).content) < 2000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    *GenerateRequest.model_fields,
    *ImproveBody.model_fields,
    *RollbackRequest.model_fields,
    *CompareRequest.model_fields,
]


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(POSTS), body=ANYTHING | st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
def test_no_json_is_a_500(server: Server, path: str, body: object) -> None:
    answer = server.http.post(path, content=json.dumps(body).encode(), headers=JSON)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert_problem(answer, 400, 404, 409, 422)
    for job in server.http.get("/jobs").json():
        if job["ended"] is None:
            server.http.delete(f"/jobs/{job['id']}")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(POSTS), body=st.binary(max_size=60))
def test_no_bytes_are_a_500(server: Server, path: str, body: bytes) -> None:
    assert server.http.post(path, content=body, headers=JSON).status_code < 500
