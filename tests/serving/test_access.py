"""Who may ask: a token, and TLS."""

from __future__ import annotations

import datetime
import json
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from running_server import RunningServer, options, write_model

from l0runtime.errors import OptionError
from l0runtime.serving.access import TokenCheck, read_token
from l0runtime.serving.failures import RequestError
from l0runtime.serving.grpc_messages import SERVICE, message_classes

Start = Callable[..., RunningServer]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}).encode()


def test_everything_but_the_probes_asks_for_the_token(start: Start) -> None:
    server = start({"linear": "linear"}, token="s3cret")
    for path in ("/v2", "/metrics", "/openapi.json", "/v2/models/linear", "/v2/models/linear/ready", "/nothing"):
        answer = server.request("GET", path)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json == {"error": "a token is needed: send the header 'Authorization: Bearer <token>'."}
    for path in ("/v2/models/linear/infer", "/v2/models/absent/infer", "/v2/models/linear/versions/1/infer"):
        assert server.request("POST", path, BODY).status == 401
        answer = server.request("POST", path, BODY, {"Authorization": "Bearer wrong"})
        assert (answer.status, answer.json) == (401, {"error": "the token is wrong."})
    assert server.request("GET", "/v2/health/live").status == 200
    assert server.request("GET", "/v2/health/ready").status == 200
    good = {"Authorization": "Bearer s3cret"}
    assert server.request("GET", "/v2/models/linear", headers=good).status == 200
    assert server.infer("linear", BODY, good).json["outputs"][0]["data"] == [11, 14]


@pytest.mark.parametrize("sent", [b"s3cret", b"bearer s3cret", b"Bearer s3cret ", b"Bearer s3cre", b"Bearer \xff", b""])
def test_only_the_very_token_passes(sent: bytes) -> None:
    with pytest.raises(RequestError, match=r"^the token is wrong\.$"):
        TokenCheck("s3cret").check(sent)
    TokenCheck("s3cret").check(b"Bearer s3cret")
    TokenCheck(None).check(None)


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert read_token(tmp_path / "token") == "abc"
    with pytest.raises(OptionError, match=r"nothing: the token cannot be read"):
        read_token(tmp_path / "nothing")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so that there is no certificate to test with")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_rest_and_grpc_speak_tls(start: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = start({"linear": "linear"}, tls_certificate=certificate, tls_key=key)
    assert server.server.rest_address.startswith("https://")
    trusted = ssl.create_default_context(cafile=certificate)
    request = urllib.request.Request(f"{server.server.rest_address}/v2/models/linear/infer", BODY)
    with urllib.request.urlopen(request, context=trusted, timeout=20) as answer:
        assert json.load(answer)["outputs"][0]["data"] == [11, 14]
    with grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(certificate.read_bytes())) as channel:
        content = channel.unary_unary(f"/{SERVICE}/ServerReady")(b"", timeout=20)
    assert message_classes()["ServerReadyResponse"].FromString(content).ready


def test_a_certificate_of_another_key_stops_the_start(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, key = make_certificate(tmp_path / "other")
    with pytest.raises(OptionError, match=r"Expected a certificate and its key without a password, both in PEM\.$"):
        RunningServer(
            {"linear": write_model(tmp_path / "m.onnx", "linear")}, options(tls_certificate=certificate, tls_key=key)
        )


def test_times_in_the_log_are_utc(start: Start) -> None:
    server = start({"linear": "linear"})
    moment = datetime.datetime.fromisoformat(server.events()[0]["time"])
    assert moment.utcoffset() == datetime.timedelta(0)
