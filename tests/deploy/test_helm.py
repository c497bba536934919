"""The Helm chart: linted, rendered with several sets of values, validated, and read by what it starts.

No API server is at hand: nothing here says that a cluster runs what is rendered.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # of transformers
from rq import Queue
from rq.registry import StartedJobRegistry

from cli.main import COMMANDS
from core.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "safecb"
KUBERNETES = "1.37"
CUSTOM = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"}  # have no schema here
STORE = "s3://pictures/team"
KEDA = {
    "store": {"url": f"{STORE}/"},
    "autoscaling": {
        "server": {"enabled": True, "prometheus": "http://prometheus:9090"},
        "worker": {"enabled": True, "redisAddress": "redis:6379", "passwordSecret": "safecb-redis"},
    },
    "metrics": {"serviceMonitor": {"enabled": True, "keySecret": "scraper"}, "prometheusRule": {"enabled": True}},
}
INGRESS = {
    "ingress": {"enabled": True, "className": "nginx", "host": "a.example", "path": "/pictures", "tlsSecret": "tls"},
    "settings": {"SAFECB_ROOT_PATH": "/pictures", "SAFECB_TRUSTED_PROXIES": "10.0.0.0/8", "SAFECB_DRAIN_S": "90"},
}
CLAIMS = {
    "model": {"existingClaim": "models"},
    "settings": {"SAFECB_MODEL": "/models/janus", "SAFECB_KEEP_IMAGES": 9000000, "SAFECB_CORES": 3},
    "keys": {"existingSecret": "own-keys", "key": "own.toml"},
    "signing": {"existingSecret": "signing"},
    "publicKeys": {"existingSecret": "public"},
    "store": {"endpoint": "http://ceph:7480", "existingSecret": ""},
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "pictures"}],
    "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["registry"]},
}
SETS: dict[str, Any] = {  # values, or the name of a file of the chart
    "default": {},
    "laptop": "values-laptop.yaml",
    "gpu": "values-gpu.yaml",
    "ingress": INGRESS,
    "keda": KEDA,
    "claims and keys": CLAIMS,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown value": ({"replicas": 3}, "additional properties 'replicas' not allowed"),
    "an unknown setting": ({"settings": {"SAFECB_TYPO": "1"}}, "additional properties 'SAFECB_TYPO' not allowed"),
    "a setting of the chart": ({"extraEnv": [{"name": "SAFECB_STORE", "value": "x"}]}, "/extraEnv/0/name"),
    "a switch without quotes": ({"settings": {"SAFECB_OPEN": True}}, "must be one of 'on', 'off'"),
    "a host's path": ({"extraVolumes": [{"name": "a", "hostPath": {"path": "/"}}]}, "/extraVolumes/0"),
    "a folder as the store": ({"store": {"url": "/data/store"}}, "/store/url"),
    "no keys": ({"keys": {"existingSecret": ""}}, "SAFECB_OPEN"),
    "workers without Redis": ({"redis": {"existingSecret": ""}}, "redis.existingSecret is empty"),
    "a shared home": ({"home": {"existingClaim": "home"}}, "home.existingClaim is for standalone"),
    "two pods on their own": ({"standalone": True}, "standalone is one pod"),
    "two prefixes": ({"ingress": {"enabled": True, "path": "/a"}}, "name different prefixes"),
    "a scaler without Redis": ({"autoscaling": {"worker": {"enabled": True}}}, "autoscaling.worker.redisAddress"),
}


def helm(command: str, *arguments: str, values: object = None) -> subprocess.CompletedProcess[str]:
    """Run a command of helm on the chart, with a file of values of the chart's or with these."""
    executable = shutil.which("helm")
    if executable is None:
        pytest.skip("needs helm")
    file = str(CHART / values) if isinstance(values, str) else "-"
    return subprocess.run(
        [executable, command, *arguments, str(CHART), "--values", file],
        input=yaml.safe_dump({} if isinstance(values, str) else values),
        capture_output=True,
        text=True,
    )


def render(values: object = None) -> list[dict[str, Any]]:
    """Return the documents of a rendering."""
    done = helm("template", "safecb", values={} if values is None else values)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def deployments(rendered: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the Deployments by component."""
    pairs = [(document["metadata"]["labels"], document) for document in rendered if document["kind"] == "Deployment"]
    return {labels["app.kubernetes.io/component"]: document for labels, document in pairs}


def environ(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container; those of Secrets have a plausible value."""
    secret = {"SAFECB_REDIS_URL": "rediss://user:word@redis:6380/1"}
    return {entry["name"]: entry.get("value") or secret.get(entry["name"], "secret") for entry in container["env"]}


def keys_of(node: object) -> Iterator[str]:
    """Yield every key of a document, at any depth."""
    if isinstance(node, dict):
        yield from node
        for value in node.values():
            yield from keys_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from keys_of(value)


@pytest.fixture(params=list(SETS.values()), ids=list(SETS))
def rendered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The documents of one set of values."""
    return render(request.param)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_the_chart_has_no_fault_for_helm_lint(values: object) -> None:
    done = helm("lint", "--strict", values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_documents_are_valid(rendered: list[dict[str, Any]]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for document in rendered:
        if document["kind"] not in CUSTOM:
            validator.validate(document, KUBERNETES, strict=True)


def test_a_planted_fault_is_not_valid() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    server = deployments(render())["server"]
    container = server["spec"]["template"]["spec"]["containers"][0]
    container["prots"] = container.pop("ports")
    with pytest.raises(validator.ValidationError, match="prots"):
        validator.validate(server, KUBERNETES, strict=True)


def test_containers_have_settings_and_commands_that_exist(rendered: list[dict[str, Any]]) -> None:
    for component, deployment in deployments(rendered).items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        settings = Settings.from_environ(environ(container))
        (command,) = container["args"]
        assert command in COMMANDS and command in {component, "serve"}
        assert settings.port == 8000 and str(settings.home) == "/data"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/data", "/tmp"} <= mounts.keys() and set(mounts.values()) == {v["name"] for v in pod["volumes"]}
        files = [settings.signing_key, settings.public_keys, settings.keys]
        assert all(str(file.parent) in mounts for file in files if file is not None)
        if component == "server":
            assert settings.keys or settings.open  # or it refuses to listen
            assert pod["terminationGracePeriodSeconds"] >= settings.drain_s + 5 + 10  # preStop, and docs/reference


def test_pods_are_restricted(rendered: list[dict[str, Any]]) -> None:
    for deployment in deployments(rendered).values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
        assert container["resources"]


def test_nothing_is_of_a_node_or_provisioned(rendered: list[dict[str, Any]]) -> None:
    assert "hostPath" not in set(keys_of(rendered)) and "storageClassName" not in set(keys_of(rendered))
    assert {"Secret", "PersistentVolumeClaim"}.isdisjoint(document["kind"] for document in rendered)


def test_selectors_name_pods(rendered: list[dict[str, Any]]) -> None:
    pods = deployments(rendered)
    labels = {part: pod["spec"]["template"]["metadata"]["labels"] for part, pod in pods.items()}
    for part, pod in pods.items():
        assert pod["spec"]["selector"]["matchLabels"].items() <= labels[part].items()
    selectors = [document["spec"]["selector"] for document in rendered if document["kind"] == "Service"]
    budgets = [document for document in rendered if document["kind"] == "PodDisruptionBudget"]
    for selector in [*selectors, *(budget["spec"]["selector"]["matchLabels"] for budget in budgets)]:
        assert [part for part in labels if selector.items() <= labels[part].items()] == ["server"]


def test_scalers_read_the_queue_of_the_store() -> None:
    rendered = render(KEDA)
    scalers = {document["metadata"]["name"]: document["spec"] for document in rendered if "Scaled" in document["kind"]}
    triggers = [trigger["metadata"]["listName"] for trigger in scalers["safecb-worker"]["triggers"]]
    queue = f"improve-{hashlib.sha256(STORE.encode()).hexdigest()[:8]}"
    prefix, running = Queue.redis_queue_namespace_prefix, StartedJobRegistry.key_template
    assert triggers == [f"{prefix}{queue}", running.format(queue)]
    assert (
        environ(deployments(rendered)["worker"]["spec"]["template"]["spec"]["containers"][0])["SAFECB_STORE"] == STORE
    )
    for deployment in deployments(rendered).values():
        name = deployment["metadata"]["name"]
        assert scalers[name]["scaleTargetRef"]["name"] == name and "replicas" not in deployment["spec"]
    (query,) = [trigger["metadata"]["query"] for trigger in scalers["safecb-server"]["triggers"]]
    assert re.findall(r"safecb_\w+", query)[0] == "safecb_waiting_images"


def test_the_alerts_are_those_of_the_repository() -> None:
    (rule,) = [document for document in render(KEDA) if document["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())


@pytest.mark.parametrize(("values", "reason"), REFUSED.values(), ids=REFUSED)
def test_values_are_refused(values: dict[str, Any], reason: str) -> None:
    done = helm("template", "safecb", values=values)
    assert done.returncode != 0 and reason in done.stderr


def test_every_setting_is_a_value_or_the_charts_own() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    own = {f"SAFECB_{name}" for name in ("HOME", "PORT", "STORE", "REDIS_URL", "KEYS", "SIGNING_KEY", "PUBLIC_KEYS")}
    elsewhere = {f"SAFECB_{name}" for name in ("API_KEYS", "OPERATOR_KEYS", "SERVER", "SERVER_KEY")}  # no secret here
    rows = (ROOT / "docs" / "reference" / "settings.md").read_text().splitlines()
    documented = {
        name for row in rows if row.startswith("| `SAFECB_") for name in re.findall("`(SAFECB_[A-Z_]+)`", row)
    }
    assert set(schema["properties"]["settings"]["properties"]) == documented - own - elsewhere


def test_the_manifest_is_the_default_rendering() -> None:
    assert documents((ROOT / "deploy" / "kubernetes.yaml").read_text()) == render()


def test_the_chart_is_of_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"] and chart["description"] == project["description"]


def test_the_service_of_kserve_has_settings_and_a_command_that_exist() -> None:
    (service,) = documents((ROOT / "deploy" / "kserve" / "inferenceservice.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    image = {"SAFECB_HOME": "/data", "SAFECB_HOST": "0.0.0.0"}  # the Dockerfile's
    settings = Settings.from_environ(image | environ(container))
    assert settings.keys is not None and container["args"][0] in COMMANDS
    assert "hostPath" not in set(keys_of(service))
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] >= settings.drain_s + 5 + 10
