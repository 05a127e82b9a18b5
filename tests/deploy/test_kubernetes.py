"""The manifests, as kustomize builds them: valid to the letter, and at one with the image and the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.api.server import LAST_WORDS_S
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.deploy.tools import FETCHED, ROOT, output, program

FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
OVERLAYS = ("cpu", "gpu")
# The oldest release whose API has all that is used (preStop's sleep), and the newest that the schemas know.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
OF_AN_OPERATOR = {"ServiceMonitor"}

Manifest = dict[str, Any]
Find = Callable[[str, str], Manifest]


@pytest.fixture(scope="module")
def built() -> dict[str, list[Manifest]]:
    """Each overlay's manifests."""
    return {
        overlay: list(yaml.safe_load_all(output(program("kustomize"), "build", str(FOLDER / overlay))))
        for overlay in OVERLAYS
    }


@pytest.fixture
def find(built: dict[str, list[Manifest]]) -> Find:
    """Finds the one manifest of a kind in an overlay."""

    def one(overlay: str, kind: str) -> Manifest:
        (found,) = [manifest for manifest in built[overlay] if manifest["kind"] == kind]
        return found

    return one


def pod(deployment: Manifest) -> Manifest:
    """A deployment's pod."""
    found: Manifest = deployment["spec"]["template"]["spec"]
    return found


def container(deployment: Manifest) -> Manifest:
    """A deployment's only container."""
    (found,) = pod(deployment)["containers"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_manifest_is_valid_and_has_no_unknown_field(
    overlay: str, version: str, built: dict[str, list[Manifest]]
) -> None:
    example = yaml.safe_load((FOLDER / "secret.example.yaml").read_text())
    for manifest in [*built[overlay], example]:
        if manifest["kind"] not in OF_AN_OPERATOR:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_field_would_be_noticed(find: Find) -> None:
    deployment = find("cpu", "Deployment")
    container(deployment)["livenesProbe"] = container(deployment)["livenessProbe"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@pytest.mark.parametrize("kind", sorted(OF_AN_OPERATOR))
def test_the_operators_kinds_are_valid_and_have_no_unknown_field(kind: str, find: Find) -> None:
    modules = FETCHED / "node_modules"
    if not modules.is_dir():
        pytest.skip("the schemas of the Prometheus Operator are not there; `make deploy-check` fetches them")
    model = f"@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/{kind}"
    manifest = json.dumps(find("cpu", kind))
    # The schemas tell of wrong values, the types of names that do not exist.
    output(
        program("node"),
        "--input-type=module",
        "--eval",
        f"""
        import {{ {kind} }} from "{model}";
        new {kind}({manifest}).validate();
    """,
        cwd=FETCHED,
    )
    source = FETCHED / f"{kind}.ts"
    source.write_text(f'import {{ I{kind} }} from "{model}";\nexport const checked: I{kind} = {manifest};\n')
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
    output(str(modules / ".bin" / "tsc"), *options, str(source), cwd=FETCHED)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_environment_is_of_settings_that_there_are(overlay: str, find: Find) -> None:
    given = find(overlay, "ConfigMap")["data"] | {
        entry["name"]: None for entry in container(find(overlay, "Deployment"))["env"]
    }
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert given.keys() <= known
    # A Service's name would become variables of the pods, and ours would take them for settings.
    assert pod(find(overlay, "Deployment"))["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_take_longer_to_end_than_its_drain(overlay: str, find: Find) -> None:
    deployment = find(overlay, "Deployment")
    drain_s = float(find(overlay, "ConfigMap")["data"]["SERPENTINE_DRAIN_S"])
    sleep_s = container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(deployment)["terminationGracePeriodSeconds"] > sleep_s + drain_s + LAST_WORDS_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_routes_that_there_are(overlay: str, find: Find) -> None:
    served = container(find(overlay, "Deployment"))
    asked = {probe: served[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert {probe: get["path"] for probe, get in asked.items()} == {
        "startup": "/startupz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in asked.values()} == {"http"}
    ports = {port["name"]: port["containerPort"] for port in served["ports"]}
    assert f"EXPOSE {ports['http']}" in DOCKERFILE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_no_rights_that_it_does_not_need(overlay: str, find: Find) -> None:
    deployment = find(overlay, "Deployment")
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    security = pod(deployment)["securityContext"]
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert [security["runAsUser"], security["runAsGroup"]] == [int(user[1]), int(user[2])]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(deployment)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select_the_pods(overlay: str, find: Find) -> None:
    deployment = find(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        find(overlay, "Service")["spec"]["selector"],
        find(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod(deployment)["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    monitor = find(overlay, "ServiceMonitor")["spec"]
    service = find(overlay, "Service")
    assert monitor["selector"]["matchLabels"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_follows_a_metric_that_there_is(overlay: str, find: Find) -> None:
    scaler = find(overlay, "HorizontalPodAutoscaler")["spec"]
    deployment = find(overlay, "Deployment")
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {family.name for family in Metrics().registry.collect()}
    (rule,) = yaml.safe_load((FOLDER / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].startswith(name + "{")


def test_each_overlay_asks_for_its_backend(find: Find) -> None:
    backends = {overlay: find(overlay, "ConfigMap")["data"]["SERPENTINE_BACKEND"] for overlay in OVERLAYS}
    assert backends == {"cpu": "cpu", "gpu": "triton"}
    assert container(find("gpu", "Deployment"))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container(find("cpu", "Deployment"))["resources"]["limits"]
