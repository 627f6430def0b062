"""The command group: errors become exit codes, and nothing but the message reaches the user."""

from __future__ import annotations

import sys
import types

import click
import pytest
from click.testing import CliRunner

from l0runtime import cli
from l0runtime.errors import L0RuntimeError, ModelFileError, OptionError


@pytest.mark.parametrize(("error", "code"), [(ModelFileError("a.onnx: gone"), 1), (OptionError("--x: unknown"), 2)])
def test_an_error_of_ours_becomes_its_message_and_its_exit_code(
    error: L0RuntimeError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def command() -> None:
        raise error

    module = types.ModuleType("stand_in")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", ("stand_in", "fails"))
    result = CliRunner().invoke(cli.main, ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {error}\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.main, ["konvert"])
    assert result.exit_code == 2
    assert "No such command 'konvert'" in result.stderr


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in cli.COMMANDS)
