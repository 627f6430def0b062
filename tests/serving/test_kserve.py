"""The InferenceService names the repository, the runtime and the sizes, as Kubernetes reads it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from l0runtime.errors import OptionError
from l0runtime.serving.kserve import ServiceOptions, inference_service

URI = "s3://bucket/repository"


def test_the_service_hands_the_repository_to_triton() -> None:
    text = inference_service(ServiceOptions("digits", URI, min_replicas=0, max_replicas=9, memory="4Gi", gpus=1))
    assert text == (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: digits\nspec:\n"
        "  predictor:\n    minReplicas: 0\n    maxReplicas: 9\n    scaleMetric: concurrency\n    scaleTarget: 32\n"
        "    model:\n      modelFormat:\n        name: triton\n      runtime: kserve-tritonserver\n"
        "      runtimeVersion: '25.03-py3'\n      protocolVersion: v2\n"
        "      storageUri: 's3://bucket/repository'\n      resources:\n"
        "        requests:\n          cpu: '1'\n          memory: '4Gi'\n          nvidia.com/gpu: '1'\n"
        "        limits:\n          cpu: '1'\n          memory: '4Gi'\n          nvidia.com/gpu: '1'\n"
    )


def test_it_is_yaml() -> None:
    yaml: Any = pytest.importorskip("yaml", reason="PyYAML is not installed")
    found = yaml.safe_load(inference_service(ServiceOptions("digits", URI)))
    model = found["spec"]["predictor"]["model"]
    assert model["storageUri"] == URI
    assert model["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Digits"}, "service name 'Digits': expected up to 63 of a-z, 0-9 and '-', no '-' at the ends."),
        ({"name": "-a"}, "service name '-a': expected up to 63 of a-z, 0-9 and '-', no '-' at the ends."),
        ({"name": "a\n"}, "service name 'a\n': expected up to 63 of a-z, 0-9 and '-', no '-' at the ends."),
        (
            {"storage_uri": "/models"},
            "storage URI '/models': expected one that the cluster can read, such as s3://bucket/repository or "
            "pvc://claim/repository.",
        ),
        ({"storage_uri": "s3://a'\nb: c"}, "storage URI 's3://a'\nb: c': expected one that the cluster can read, such"),
        ({"min_replicas": 3}, "replicas from 3 to 1: expected 0 <= minimum <= maximum >= 1."),
        ({"concurrency": 0}, "concurrency 0, gpus 0: expected at least 1 and 0."),
        ({"triton": "25.03 py3"}, "Triton '25.03 py3': expected the tag of an image, such as 25.03-py3."),
        ({"memory": "2 GB"}, "memory '2 GB': expected a quantity such as 500m, 2 or 4Gi."),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}"):
        ServiceOptions(**({"name": "digits", "storage_uri": URI} | changes))
