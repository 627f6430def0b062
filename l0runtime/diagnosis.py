"""Is this installation sound: versions, execution providers that really work, conflicting onnxruntime installs?

`onnxruntime.get_available_providers()` lists what was compiled in, not what works, so each provider runs a small
model here and its result is compared. (The module is not named after its function `doctor`: importing it would
otherwise replace the function on the package.)
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from l0runtime.errors import L0RuntimeError
from l0runtime.machine import installed_version, nvidia_gpus, processor_name, usable_cores

Status = Literal["ok", "absent", "warning", "broken"]

# all of them install the same `onnxruntime` folder
_ONNXRUNTIME_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)
_EXTRAS = {"matplotlib": "plot", "prometheus-client": "metrics"}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    name: str
    status: Status
    found: str
    fix: str | None = None  # what to do, where something should be done


@dataclass(frozen=True)
class DoctorReport:
    """All findings; `is_sound` unless something is broken."""

    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        return all(finding.status != "broken" for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"is_sound": self.is_sound, "findings": [asdict(finding) for finding in self.findings]}


def doctor() -> DoctorReport:
    """Check the installation; never raises for what it finds."""
    findings = [
        Finding("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        Finding("processor", "ok", f"{processor_name()}, {usable_cores()} usable cores"),
    ]
    gpus = nvidia_gpus()
    findings.append(Finding("NVIDIA GPU", "ok", ", ".join(gpus)) if gpus else Finding("NVIDIA GPU", "absent", "none"))
    findings += check_versions()
    findings += check_onnxruntime_distributions(name for name, _ in _installed())
    findings += check_torch_build()
    findings += [check_device(device, has_gpu=bool(gpus)) for device in ("cpu", "cuda", "tensorrt")]
    for distribution, extra in _EXTRAS.items():
        version = installed_version(distribution)
        fix = f"pip install 'l0runtime[{extra}]' if you want it"
        findings.append(
            Finding(f"extra {extra}", "ok", f"{distribution} {version}")
            if version
            else Finding(f"extra {extra}", "absent", f"{distribution} is not installed", fix)
        )
    return DoctorReport(tuple(findings))


def check_versions() -> list[Finding]:
    """Installed dependencies against what l0runtime declares."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("l0runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("l0runtime", "warning", "runs from a source folder; requirements unknown", "pip install -e .")]
    findings = [Finding("l0runtime", "ok", installed_version("l0runtime") or "unknown")]
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        if version is None:
            findings.append(Finding(requirement.name, "broken", f"not installed, needs {requirement.specifier}", fix))
        elif not requirement.specifier.contains(version, prereleases=True):
            findings.append(Finding(requirement.name, "broken", f"{version}, needs {requirement.specifier}", fix))
        else:
            findings.append(Finding(requirement.name, "ok", version))
    return findings


def check_onnxruntime_distributions(installed: Iterable[str]) -> list[Finding]:
    """Refuse several distributions that overwrite each other's files: the last one installed wins in silence."""
    present = sorted(set(installed) & set(_ONNXRUNTIME_DISTRIBUTIONS))
    if len(present) == 1:
        return [Finding("onnxruntime installs", "ok", f"only {present[0]}")]
    wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in present or not present else present[0]
    if not present:
        return [
            Finding("onnxruntime installs", "broken", "none", f"pip install {wanted}"),
        ]
    return [
        Finding(
            "onnxruntime installs",
            "broken",
            f"{' and '.join(present)} overwrite each other's files",
            f"pip uninstall -y {' '.join(present)} && pip install {wanted}",
        )
    ]


def check_torch_build() -> list[Finding]:
    """A CUDA build of torch for another CUDA major version than onnxruntime's cannot supply its libraries."""
    import onnxruntime

    version = installed_version("torch") or ""
    theirs = getattr(onnxruntime, "cuda_version", "") or ""
    if "+cu" not in version or not theirs:
        return []
    ours, wanted = version.split("+cu")[1][:2], theirs.split(".")[0]
    if ours == wanted:
        return [Finding("torch CUDA build", "ok", f"torch {version}, onnxruntime for CUDA {theirs}")]
    return [
        Finding(
            "torch CUDA build",
            "warning",
            f"torch {version} has CUDA {ours}, onnxruntime needs CUDA {wanted}",
            f"install a torch build for CUDA {wanted}, or pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    ]


def check_device(device: str, *, has_gpu: bool) -> Finding:
    """Run a small model on a device and compare its result with one computed by hand.

    Args:
        device: as `l0runtime.load` takes it.
        has_gpu: a GPU that cannot be used is broken where there is one, else merely absent.
    """
    import numpy as np

    from l0runtime.session import load
    from l0runtime.session.devices import library_problem, parse_device, preload_gpu_libraries

    where = parse_device(device)
    name = f"device {device}"
    fixes = {
        "cuda": "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        "tensorrt": "pip install 'tensorrt-cu13>=10.13,<11' if you want TensorRT",
    }
    bad: Status = "broken" if device == "cpu" or (has_gpu and device == "cuda") else "absent"
    if where.kind != "cpu":
        preload_gpu_libraries()
        problem = library_problem(where)
        if problem is not None:
            return Finding(name, bad, problem, fixes[device] if has_gpu else None)
    try:
        result = load(_small_model(), device=device)(np.array([[1.0, -2.0]], np.float32))
    except L0RuntimeError as error:
        return Finding(name, bad, str(error), fixes.get(device) if has_gpu or device == "cpu" else None)
    # [1, -2] [[1, 2], [3, -4]] = [-5, 10], then Relu
    if result.tolist() != [[0.0, 10.0]]:
        return Finding(name, "broken", f"computes {result.tolist()} instead of [[0, 10]]", fixes.get(device))
    return Finding(name, "ok", f"{where.provider} ran a test model")


def _small_model() -> bytes:
    from onnx import parser

    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        doctor (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, -4}> {
            product = MatMul (x, w)
            y = Relu (product)
        }"""
    )
    return bytes(model.SerializeToString())


def _installed() -> list[tuple[str, str]]:
    """Name, in pip's normal form, and version of every installed distribution."""
    return [
        (name.lower().replace("_", "-"), distribution.version)
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"])
    ]
