"""How is a gated model written to a file, and rebuilt from it without running code from the file?

One safetensors file. Its tensors are the state dict, the gates' constants and rules included; its metadata holds, under
the key "l0runtime", a JSON header:

    {"version": 1, "architecture": "lenet-5", "config": {...}}           a registered class, called with config
    {"version": 1, "architecture": "sequential", "layers": [{...}, ...]}   an nn.Sequential of the layers in layer_table

Gates that `attach` put in stand in the header of the bare model, which then has version 2:

    {"version": 2, ..., "gates": {"spec": {...}, "places": [...], "costs": {...}, "refused": {...}}}

A network from which closed gates were removed while it was trained is narrower than its config says; its header has
version 3, and the tensors say how wide it is:

    {"version": 3, ..., "narrowed": true}

The header is checked against the tensors on torch's meta device before any memory is claimed for the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from l0runtime.errors import GateParameterError, L0RuntimeError, ModelFileError, UnsupportedModelError
from l0runtime.gates.attached import gates_in
from l0runtime.gates.gate_header import attach_described, describe_gates
from l0runtime.gates.layer_table import build_layers, describe_layers
from l0runtime.gates.registry import architecture, architecture_name
from l0runtime.gates.resizing import shrink_to_fit

_METADATA_KEY = "l0runtime"
_VERSION = 3
_EXTRA_STATE = "_extra_state"


def save(model: nn.Module, path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None) -> None:
    """Write a model of a registered architecture, or an nn.Sequential of known layers; atomically.

    Args:
        model: its parameters and buffers must be finite.
        path: the file to write, usually *.safetensors; replaced if it exists.
        input_shape: sizes of one example without the batch, e.g. (3, 20, 20), kept in the header under "input_shape"
            so that a conversion need not be told.
    Raises:
        UnsupportedModelError: the model cannot be described in a header, or holds NaN or Inf.
        ModelFileError: the file cannot be written.
    """
    gates = gates_in(model)
    header = {"version": 1, **_describe(model)}
    if gates is not None:
        header |= {"version": 2, "gates": describe_gates(gates)}
    elif _is_narrowed(model, header):
        header |= {"version": 3, "narrowed": True}
    # cloned, because safetensors refuses tensors that share memory (tied weights)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    bad = _non_finite(tensors)
    if bad:
        raise UnsupportedModelError(f"{bad} contains NaN or Inf; the model is not saved. Look for a diverged training.")
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(tensors, temporary, metadata={_METADATA_KEY: _written(header, input_shape)})
        temporary.replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{target}: cannot be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _written(header: dict[str, object], input_shape: Sequence[int] | None) -> str:
    """The header as JSON, with the shape of an example where one is given."""
    if input_shape is None:
        return json.dumps(header)
    if not input_shape or any(type(size) is not int or size < 1 for size in input_shape):
        raise UnsupportedModelError(
            f"input_shape is {tuple(input_shape)}; expected whole numbers of at least 1, without the batch."
        )
    return json.dumps({**header, "input_shape": list(input_shape)})


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild the model that `save` wrote, in eval() mode, on the CPU, in the dtypes it was saved in.

    Raises:
        ModelFileError: the file is missing, truncated, of another format or from a newer version, its tensors do not
            fit its header, or one contains NaN or Inf.
        UnsupportedModelError: its architecture is not registered.
    """
    header, tensors = _read(Path(path))
    try:
        with torch.device("meta"):
            expected = _build(header, tensors).state_dict()
        _check_tensors(tensors, expected)
        with torch.random.fork_rng(devices=[]):  # initial values that are overwritten below must not cost randomness
            model = _build(header, tensors)
        _adopt_dtypes(model, tensors)
        model.load_state_dict(tensors)
    except (ModelFileError, GateParameterError) as error:
        raise ModelFileError(f"{os.fspath(path)}: {error}") from error
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{os.fspath(path)}: {error}") from error
    return model.eval()


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a safetensors file with an l0runtime header; False for anything else, also unreadable."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return _METADATA_KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def _describe(model: nn.Module) -> dict[str, object]:
    name = architecture_name(model)
    if name is not None:
        config = getattr(model, "config", None)
        if not isinstance(config, dict):
            raise UnsupportedModelError(
                f"architecture {name!r}: expected an attribute config, a dict; found {config!r}."
            )
        try:
            json.dumps(config)
        except (TypeError, ValueError) as error:
            raise UnsupportedModelError(f"architecture {name!r}: its config is not JSON-able ({error}).") from error
        return {"architecture": name, "config": config}
    if type_before_parametrizations(model) is nn.Sequential:
        assert isinstance(model, nn.Sequential)
        return {"architecture": "sequential", "layers": describe_layers(model)}
    kind = type_before_parametrizations(model)
    raise UnsupportedModelError(
        f"{kind.__qualname__} is neither a registered architecture nor an nn.Sequential; "
        "register the class (register_architecture) and give it a config."
    )


def _read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected a checkpoint written by l0runtime.gates.save.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path}: truncated, or no safetensors file ({error}).") from error
    if text is None:
        raise ModelFileError(
            f"{path}: a safetensors file, but without the header of l0runtime.gates.save; it does not say which model "
            "it belongs to."
        )
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path}: its header is no JSON ({error}).") from error
    if not isinstance(header, dict) or type(header.get("version")) is not int:
        raise ModelFileError(f"{path}: its header has no version; expected an object with version and architecture.")
    if header["version"] > _VERSION:
        raise ModelFileError(
            f"{path}: written in format {header['version']}, this version reads up to {_VERSION}; upgrade l0runtime."
        )
    if header["version"] < 1:
        raise ModelFileError(
            f"{path}: written in format {header['version']}, which never existed; the file is damaged."
        )
    return header, tensors


def _build(header: dict[str, object], tensors: dict[str, Tensor]) -> nn.Module:
    model = _build_bare(header)
    if header["version"] == 2:
        attach_described(model, header.get("gates"))
    if header.get("narrowed") is True:
        shrink_to_fit(model, tensors)
    return model


def _is_narrowed(model: nn.Module, header: dict[str, object]) -> bool:
    """Whether the model is narrower than the one that its header describes."""
    with torch.device("meta"):
        full = _build_bare(header).state_dict()
    return any(
        name in full and tensor.shape != full[name].shape and not name.endswith(_EXTRA_STATE)
        for name, tensor in model.state_dict().items()
    )


def _build_bare(header: dict[str, object]) -> nn.Module:
    name = header.get("architecture")
    if name == "sequential":
        return build_layers(header.get("layers"))
    config = header.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ModelFileError("the header names no architecture with a config; expected both.")
    try:
        return architecture(name)(**config)
    except L0RuntimeError:
        raise
    except Exception as error:  # the config is a stranger's: the constructor may fail in any way
        raise ModelFileError(f"architecture {name!r} cannot be built from its config: {error}") from error


def _check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or left_over:
        raise ModelFileError(
            f"its tensors do not fit its architecture: missing {_some(missing)}; left over {_some(left_over)}."
        )
    for name, tensor in found.items():
        if not name.endswith(_EXTRA_STATE) and tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{name} has shape {list(tensor.shape)}; its architecture expects {list(expected[name].shape)}."
            )
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise ModelFileError(f"{name} is of {tensor.dtype}; expected a floating-point tensor.")
    bad = _non_finite(found)
    if bad:
        raise ModelFileError(f"{bad} contains NaN or Inf; the training that wrote it had diverged.")


def _non_finite(tensors: dict[str, Tensor]) -> str | None:
    return next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)


def _adopt_dtypes(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give parameters and buffers the stored dtypes, so that loading rounds nothing; tied weights stay tied."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors and tensors[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
