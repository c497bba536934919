"""The OpenAPI document: every operation has a summary, every parameter and field a description."""

from __future__ import annotations

from pathlib import Path

from app.factory import create_app
from core.settings import Settings

SCHEMAS_OF_FASTAPI = {"HTTPValidationError", "ValidationError"}


def test_every_operation_and_field_is_described(tmp_path: Path) -> None:
    document = create_app(Settings.from_environ({"SAFECB_HOME": str(tmp_path)})).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert " " in operation["summary"], where
            assert operation["description"], where
            headers = [p for p in operation.get("parameters", []) if p["in"] == "header" and p["name"] != "accept"]
            assert all("description" in parameter for parameter in headers), where
    for name, schema in document["components"]["schemas"].items():
        if name not in SCHEMAS_OF_FASTAPI:
            assert schema["description"], name
            assert all("description" in field for field in schema.get("properties", {}).values()), name
