"""How is a file of torch.save read without executing anything in it?

`torch.load(weights_only=True)` with a short allow-list: NumPy scalars, which old training scripts leave among their
figures, and defaultdict(dict), in which torch.ao.pruning and NNI keep their masks. What needs more is refused, with
the safe way out. Archives that would unpack to more than they weigh, and tensors that claim more elements than they
store, are refused too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0runtime.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor


def read_torch_file(path: Path) -> Any:
    """The object that torch.save wrote: tensors, numbers, strings and containers of them.

    Raises:
        ModelFileError: truncated, damaged, compressed, or not a torch file.
        UnsupportedModelError: it holds objects of other classes, which reading would execute.
    """
    import torch

    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways inside torch
        unsafe = _unsafe_names(path)
        if unsafe:
            raise UnsupportedModelError(
                f"{path}: holds objects that are not data ({', '.join(unsafe)}); reading them would run code from the "
                "file. Where it was made, save the state dict alone: torch.save(model.state_dict(), path)."
            ) from error
        # torch's own advice, to load the file all the same, comes before its reason
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = text.splitlines()[0][:200] if text else type(error).__name__
        raise _damaged(path, reason) from error


def tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """A state dict, checked: names are strings, values are dense tensors that really hold their elements.

    Raises:
        ModelFileError: something else.
    """
    import torch

    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path}: found {type(content).__name__}, expected a state dict of tensors by name.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ModelFileError(f"{path}: {name!r} is {type(tensor).__name__}; expected tensors by name.")
        check_plain(tensor, name, path)
        tensors[name] = tensor
    return tensors


def check_plain(tensor: Tensor, name: str, path: Path) -> None:
    """A dense tensor of real numbers that holds its elements.

    Raises:
        ModelFileError: something else.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ModelFileError(f"{path}: {name} is a sparse, quantised or complex tensor; expected a plain one.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelFileError(
            f"{path}: {name} claims {tensor.numel()} elements, its storage holds fewer. The file is damaged."
        )


def _check_archive(path: Path) -> None:
    """torch.save stores without compression, so a compressed archive, or one larger inside than outside, is no such.

    Where torch would take the file for an archive, it must be one that can be checked.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged archive fails in many ways inside zipfile
        raise _damaged(path, str(error)[:200]) from error
    compressed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise ModelFileError(
            f"{path}: a compressed zip archive ({(compressed or ['all'])[0]}); torch.save writes uncompressed ones. "
            "Save the checkpoint again with torch.save."
        )


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: cannot be read as a torch checkpoint ({reason.rstrip('.')}). "
        "The file is truncated, damaged or of another format; write or download it again."
    )


def _harmless_types() -> list[Any]:
    import numpy as np

    try:
        from numpy._core.multiarray import scalar
    except ImportError:  # NumPy 1
        from numpy.core.multiarray import scalar  # type: ignore[no-redef]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if not name.startswith(("Object", "Void"))]
    # files written with NumPy 1 and 2 name the same function differently
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [
        np.dtype,
        *dtypes,
        *((scalar, name) for name in names),
        (_plain_dict, "collections.defaultdict"),
        (dict, "builtins.dict"),
    ]


def _plain_dict(factory: object = None) -> dict[Any, Any]:
    """What a defaultdict is read as: its factory, which the file names, is never called."""
    return {}


def _unsafe_names(path: Path) -> list[str]:
    """Classes and functions in the file that are on no allow-list; [] where the file is not readable at all."""
    import torch

    try:
        with torch.serialization.safe_globals(_harmless_types()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []
    return sorted(names)[:5]
