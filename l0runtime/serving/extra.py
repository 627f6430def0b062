"""Are the packages that a server needs installed?"""

from __future__ import annotations

import importlib.util

from l0runtime.errors import MissingDependencyError

# the modules of the extra `serve`; uvloop is left out, since the server runs without it where there is no build of it
_MODULES = ("starlette", "uvicorn", "httptools", "orjson", "grpc", "google.protobuf", "prometheus_client")


def check_serve_extra() -> None:
    """Refuse before anything else happens.

    Raises:
        MissingDependencyError: names what is missing and the command that installs it.
    """
    missing = [module for module in _MODULES if not _is_installed(module)]
    if missing:
        raise MissingDependencyError(
            f"serving needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Run: pip install 'l0runtime[serve]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is missing
        return False
