"""How does Kubernetes run the same model? The InferenceService that hands its Triton repository to KServe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from l0runtime.errors import OptionError

# RFC 1123, as Kubernetes wants names that become part of a host's
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_URI = re.compile(r"(s3|gs|pvc|hdfs|webhdfs|https?|hf|oci)://[^\s'\"]+")


@dataclass(frozen=True)
class ServiceOptions:
    """How KServe runs a repository.

    Attributes:
        name: of the service.
        storage_uri: of the repository that `export triton` wrote, where the cluster can read it.
        min_replicas, max_replicas: 0 at least lets it sleep without requests.
        concurrency: requests in work for each replica at which another is started.
        cpu, memory: for each replica, in Kubernetes' units.
        gpus: for each replica.
        triton: tag of the Triton image. KServe's own default (23.05) has onnxruntime 1.15, which reads no more than
            opset 19 and IR 9, less than torch exports today; 25.03 has 1.20.
    """

    name: str
    storage_uri: str
    min_replicas: int = 1
    max_replicas: int = 1
    concurrency: int = 32
    cpu: str = "1"
    memory: str = "2Gi"
    gpus: int = 0
    triton: str = "25.03-py3"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(f"service name '{self.name}': expected up to 63 of a-z, 0-9 and '-', no '-' at the ends.")
        if not _URI.fullmatch(self.storage_uri):
            raise OptionError(
                f"storage URI '{self.storage_uri}': expected one that the cluster can read, such as "
                "s3://bucket/repository or pvc://claim/repository."
            )
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise OptionError(
                f"replicas from {self.min_replicas} to {self.max_replicas}: expected 0 <= minimum <= maximum >= 1."
            )
        if self.concurrency < 1 or self.gpus < 0:
            raise OptionError(f"concurrency {self.concurrency}, gpus {self.gpus}: expected at least 1 and 0.")
        if not _TAG.fullmatch(self.triton):
            raise OptionError(f"Triton '{self.triton}': expected the tag of an image, such as 25.03-py3.")
        for kind, quantity in (("cpu", self.cpu), ("memory", self.memory)):
            if not _QUANTITY.fullmatch(quantity):
                raise OptionError(f"{kind} '{quantity}': expected a quantity such as 500m, 2 or 4Gi.")


def inference_service(options: ServiceOptions) -> str:
    """The InferenceService as YAML, for `kubectl apply -f`."""
    gpu = f"\n          nvidia.com/gpu: '{options.gpus}'" if options.gpus else ""
    resources = f"cpu: '{options.cpu}'\n          memory: '{options.memory}'{gpu}"
    return f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {options.name}
spec:
  predictor:
    minReplicas: {options.min_replicas}
    maxReplicas: {options.max_replicas}
    scaleMetric: concurrency
    scaleTarget: {options.concurrency}
    model:
      modelFormat:
        name: triton
      runtime: kserve-tritonserver
      runtimeVersion: '{options.triton}'
      protocolVersion: v2
      storageUri: '{options.storage_uri}'
      resources:
        requests:
          {resources}
        limits:
          {resources}
"""
