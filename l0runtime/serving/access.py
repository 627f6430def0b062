"""Who may ask? An optional bearer token, and TLS."""

from __future__ import annotations

import hmac
from pathlib import Path

from l0runtime.errors import OptionError
from l0runtime.serving.failures import RequestError
from l0runtime.serving.options import ServeOptions


class TokenCheck:
    """Compares the token that clients send, in a time that does not tell how much of it is right."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()

    @property
    def is_open(self) -> bool:
        """Whether everybody may ask."""
        return self._expected is None

    def check(self, authorization: bytes | None) -> None:
        """Refuse a request without the right token.

        Args:
            authorization: the value of that header.
        Raises:
            RequestError: 401.
        """
        if self._expected is None:
            return
        if authorization is None:
            raise RequestError(401, "a token is needed: send the header 'Authorization: Bearer <token>'.")
        if not hmac.compare_digest(authorization, self._expected):
            raise RequestError(401, "the token is wrong.")


def read_token(path: Path) -> str:
    """The token in a file, without the newline at its end.

    Raises:
        OptionError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: the token cannot be read ({error}).") from error


def check_tls_files(options: ServeOptions) -> tuple[bytes, bytes] | None:
    """The contents of key and certificate, None without TLS.

    Raises:
        OptionError: a file cannot be read, or key and certificate do not belong together.
    """
    if options.tls_certificate is None or options.tls_key is None:
        return None
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(options.tls_certificate, options.tls_key)
        return options.tls_key.read_bytes(), options.tls_certificate.read_bytes()
    except OSError as error:  # ssl.SSLError is one
        raise OptionError(
            f"TLS: {options.tls_certificate} and {options.tls_key} cannot be used ({error}). Expected a certificate "
            "and its key without a password, both in PEM."
        ) from error
