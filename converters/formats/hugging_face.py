"""What is in a folder that Hugging Face's save_pretrained wrote: the configuration and the parameters?

config.json, and model.safetensors or pytorch_model.bin, or several of them that an index.json lists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.formats.parameters import read_state
from converters.sources import Candidate
from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LARGEST_JSON_BYTES = 10_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelFileError: missing, too large for a configuration, or no JSON object.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file. Expected a configuration beside the checkpoint.")
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        raise ModelFileError(f"{path}: {path.stat().st_size} bytes; expected a configuration of at most 10 MB.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: no JSON ({str(error)[:200]}). The file is damaged.") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: a JSON {type(content).__name__}; expected an object.")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The parameters of a folder, by name.

    Raises:
        ModelFileError: there are none, or a file is damaged, or the index leads out of the folder.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_state(Candidate(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_parts(folder, index)
    raise ModelFileError(f"{folder}: holds neither {' nor '.join(WEIGHTS)}. Expected a folder of save_pretrained.")


def whole_number(config: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """A positive whole number of a configuration.

    Raises:
        ModelFileError: missing without a default, or something else.
    """
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise ModelFileError(f"{path}: {key} is {value!r}; expected a whole number of at least 1.")
    return value


def _read_parts(folder: Path, index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ModelFileError(f"{index}: holds no weight_map of file names. The file is damaged.")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ModelFileError(f"{index}: names {name!r}, outside of the folder. Only files beside it are read.")
        state |= read_state(Candidate(folder / name))
    return state
