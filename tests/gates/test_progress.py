"""Is progress shown on stderr, and never on stdout?"""

from __future__ import annotations

import pytest

from l0runtime.gates import progress_bar


def test_the_bar_writes_to_stderr_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("Training") as progress:
        progress(3, 4, "epoch 2")
        during = capsys.readouterr()
    after = capsys.readouterr()
    assert during.out == after.out == ""
    assert "Training" in during.err + after.err
