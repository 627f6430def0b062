"""Options without a meaning are refused before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from l0runtime.errors import MissingDependencyError, OptionError
from l0runtime.serving import extra
from l0runtime.serving.options import Limits, ServeOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70000}, "port = 70000: expected 0 to 65535."),
        ({"grpc_port": -1}, "grpc_port = -1: expected 0 to 65535."),
        ({"port": 8001}, "port = grpc_port = 8001: REST and gRPC need a port each."),
        ({"reload_s": -1}, "reload_s = -1: expected at least 0."),
        ({"tls_key": Path("k")}, "TLS needs both a certificate and a key; only one is given."),
        ({"token": ""}, "the token is empty, or holds spaces around it or characters outside ASCII."),
        ({"token": "a "}, "the token is empty, or holds spaces around it or characters outside ASCII."),
        ({"token": "é"}, "the token is empty, or holds spaces around it or characters outside ASCII."),
    ],
)
def test_a_server_s_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        ServeOptions(**changes)


@pytest.mark.parametrize("name", ["body_bytes", "head_bytes", "queue", "batch_rows", "deadline_s", "receive_s"])
def test_limits_are_above_0(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} = 0: expected more than 0\\.$"):
        Limits(**{name: 0})


def test_loopback_is_the_default() -> None:
    assert ServeOptions().host == "127.0.0.1"
    assert ServeOptions().token is None


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    extra.check_serve_extra()
    monkeypatch.setattr(extra, "_MODULES", ("starlette", "no_such_module"))
    with pytest.raises(MissingDependencyError) as caught:
        extra.check_serve_extra()
    assert str(caught.value) == (
        "serving needs no_such_module, which is not installed. Run: pip install 'l0runtime[serve]'"
    )
    monkeypatch.setattr(extra, "_MODULES", ("no_such_module", "no_such.module"))
    with pytest.raises(MissingDependencyError, match=r"^serving needs no_such_module, no_such\.module, which are not "):
        extra.check_serve_extra()
