"""`l0runtime serve` reads names and options, and refuses before it listens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from l0runtime.cli import main
from l0runtime.cli.serve import named_models
from l0runtime.errors import OptionError

for _module in ("starlette", "uvicorn", "httptools", "orjson", "grpc", "prometheus_client"):
    pytest.importorskip(_module, reason="the extra `serve` is not installed")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served."""
    import l0runtime.serving.server

    calls: list[Any] = []
    monkeypatch.setattr(l0runtime.serving.server, "run_server", lambda models, options: calls.append((models, options)))
    monkeypatch.delenv("L0RUNTIME_TOKEN", raising=False)
    return calls


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["serve", *arguments])
    return result.exit_code, result.stderr


def test_models_are_named_after_their_files_or_as_said() -> None:
    assert named_models(("a/b.onnx", "c=d.onnx")) == {"b": Path("a/b.onnx"), "c": Path("d.onnx")}
    message = "two models are named 'b': a/b.onnx and c/b.onnx. Write NAME=FILE."
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        named_models(("a/b.onnx", "c/b.onnx"))


def test_options_reach_the_server(served: list[Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert run(
        *("m=x.onnx", "--device", "cpu", "--port", "9000", "--no-grpc", "--token-file", str(tmp_path / "token")),
        *("--max-body", "1000", "--max-queue", "5", "--deadline", "2.5", "--reload", "0"),
        *("--idle-timeout", "90", "--max-connections", "7", "--drain", "0", "--receive-timeout", "3"),
    ) == (0, "")
    ((models, options),) = served
    assert models == {"m": Path("x.onnx")}
    assert (options.port, options.grpc_port, options.token, options.reload_s) == (9000, None, "abc", 0)
    limits = options.limits
    assert (limits.body_bytes, limits.queue, limits.deadline_s) == (1000, 5, 2.5)
    assert (limits.idle_s, limits.connections, options.drain_s, limits.receive_s) == (90, 7, 0, 3)


def test_the_token_may_come_from_the_environment(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L0RUNTIME_TOKEN", "xyz")
    assert run("m=x.onnx") == (0, "")
    assert served[0][1].token == "xyz"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("m.onnx", "--max-batch", "0"), 2, "error: batch_rows = 0: expected more than 0.\n"),
        (("m.onnx", "--tls-key", "k"), 2, "error: TLS needs both a certificate and a key; only one is given.\n"),
        ((), 2, "Usage: "),
    ],
)
def test_wrong_usage_ends_with_2(served: list[Any], arguments: tuple[str, ...], code: int, message: str) -> None:
    found, text = run(*arguments)
    assert found == code
    assert text.startswith(message)
    assert served == []


def test_a_model_that_is_not_there_ends_with_1() -> None:
    code, text = run("nothing.onnx", "--device", "cpu", "--port", "0", "--grpc-port", "0")
    assert code == 1
    assert text.endswith("error: nothing.onnx: no such file. Give the path of an .onnx file.\n")


def test_a_missing_extra_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from l0runtime.serving import extra

    monkeypatch.setattr(extra, "_MODULES", ("no_such_module",))
    assert run("m.onnx") == (
        1,
        "error: serving needs no_such_module, which is not installed. Run: pip install 'l0runtime[serve]'\n",
    )
