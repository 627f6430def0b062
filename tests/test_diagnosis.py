"""The doctor finds what is broken, and says how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

import l0runtime
from l0runtime import diagnosis
from l0runtime.diagnosis import DoctorReport, Finding, check_device, check_onnxruntime_distributions


def test_two_onnxruntime_distributions_are_broken_and_the_fix_keeps_the_gpu_build() -> None:
    (finding,) = check_onnxruntime_distributions(["numpy", "onnxruntime", "onnxruntime-gpu"])
    assert finding == Finding(
        "onnxruntime installs",
        "broken",
        "onnxruntime and onnxruntime-gpu overwrite each other's files",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    )


def test_one_distribution_is_sound_and_none_is_broken() -> None:
    assert check_onnxruntime_distributions(["onnxruntime"])[0].status == "ok"
    (finding,) = check_onnxruntime_distributions(["numpy"])
    assert (finding.status, finding.fix) == ("broken", "pip install onnxruntime-gpu")


def test_a_second_distribution_on_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # whichever of the two is really installed, both are present now
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-0.0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = l0runtime.doctor()
    assert not report.is_sound
    assert [finding.name for finding in report.findings if finding.status == "broken"][-1] == "onnxruntime installs"


def test_the_cpu_runs_a_model_whose_result_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu", has_gpu=False) == Finding("device cpu", "ok", "CPUExecutionProvider ran a test model")
    # a model that computes something else must be noticed
    wrong = diagnosis._small_model().replace(b"Relu", b"Tanh")
    monkeypatch.setattr(diagnosis, "_small_model", lambda: wrong)
    finding = check_device("cpu", has_gpu=False)
    assert finding.status == "broken"
    assert finding.found.endswith("instead of [[0, 10]]")


def test_a_gpu_provider_without_its_libraries_is_absent_or_broken_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from l0runtime.session import devices

    monkeypatch.setattr(devices, "library_problem", lambda device: "libcublasLt.so.13: cannot open")
    monkeypatch.setattr(devices, "preload_gpu_libraries", lambda: None)
    assert check_device("cuda", has_gpu=False) == Finding("device cuda", "absent", "libcublasLt.so.13: cannot open")
    assert check_device("cuda", has_gpu=True) == Finding(
        "device cuda", "broken", "libcublasLt.so.13: cannot open", "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_an_outdated_dependency_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=999", "no-such-package>=1", "colorama; sys_platform == 'none'", "pytest; extra == 'test'"]
    monkeypatch.setattr(diagnosis.importlib.metadata, "requires", lambda name: declared)
    found = {finding.name: finding for finding in diagnosis.check_versions()}
    assert set(found) == {"l0runtime", "numpy", "no-such-package"}
    assert found["numpy"].status == "broken"
    assert found["numpy"].fix == "pip install 'numpy>=999'"
    assert found["no-such-package"].found == "not installed, needs >=1"


def test_a_report_is_sound_until_something_is_broken() -> None:
    fine, bad = Finding("a", "warning", "x"), Finding("b", "broken", "y", "do z")
    assert DoctorReport((fine,)).is_sound
    assert DoctorReport((fine, bad)).to_dict() == {
        "is_sound": False,
        "findings": [
            {"name": "a", "status": "warning", "found": "x", "fix": None},
            {"name": "b", "status": "broken", "found": "y", "fix": "do z"},
        ],
    }


def test_importing_the_module_does_not_hide_the_function() -> None:
    import l0runtime.diagnosis

    assert callable(l0runtime.doctor)
