"""`l0runtime doctor` prints what was found and exits 1 only if something is broken."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from l0runtime import diagnosis
from l0runtime.cli import main
from l0runtime.diagnosis import DoctorReport, Finding


def test_the_table_names_the_fix_and_the_exit_code_says_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    report = DoctorReport((Finding("x", "broken", "found it", "mend [it]"),))
    monkeypatch.setattr(diagnosis, "doctor", lambda: report)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "mend [it]" in result.stdout
    assert result.stderr == "error: something is broken; see the fixes above.\n"


def test_json_is_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    report = DoctorReport((Finding("x", "ok", "1.0"),))
    monkeypatch.setattr(diagnosis, "doctor", lambda: report)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == report.to_dict()
