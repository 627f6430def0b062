"""Which plain layers can a checkpoint rebuild without running code from the file, and from which settings?"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from l0runtime.errors import ModelFileError, UnsupportedModelError
from l0runtime.gates.attached import AttachedGates
from l0runtime.gates.gate import Gate
from l0runtime.gates.layers import GatedConv2d, GatedLinear

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_GATE = ("drop_rate", "per_example")  # constants and rule travel in the state dict
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")

# Class -> the constructor's keyword arguments to store; each is an attribute of the layer, or of its gate.
LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    GatedLinear: ("in_features", "out_features", "bias", "side", "gate_bias", *_GATE),
    GatedConv2d: (*_CONV, "side", "gate_bias", *_GATE),
    Gate: ("size", *_GATE),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv1d: (*_CONV, "padding_mode"),
    nn.Conv2d: (*_CONV, "padding_mode"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.MaxPool2d: (*_POOL, "dilation"),
    nn.AvgPool2d: (*_POOL, "count_include_pad"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Dropout: ("p",),
    nn.Dropout2d: ("p",),
    nn.Identity: (),
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softmax: ("dim",),
}
_BY_NAME = {cls.__name__: cls for cls in LAYERS}


def describe_layers(sequence: nn.Sequential, where: str = "") -> list[dict[str, object]]:
    """One JSON-able entry {"kind": ..., "config": {...}} per layer of a (nested) Sequential.

    Raises:
        UnsupportedModelError: a layer is not in the table; the message names it and its place.
    """
    entries: list[dict[str, object]] = []
    for name, layer in sequence.named_children():
        place = f"{where}{name}"
        kind = type_before_parametrizations(layer)  # attached gates parametrise a layer, which makes a class of its own
        if kind is AttachedGates:
            continue
        if kind is nn.Sequential:
            assert isinstance(layer, nn.Sequential)
            entries.append({"kind": "Sequential", "name": name, "layers": describe_layers(layer, f"{place}.")})
        elif kind in LAYERS:
            settings = {key: _setting_of(layer, key) for key in LAYERS[kind]}
            entries.append({"kind": kind.__name__, "name": name, "config": settings})
        else:
            raise UnsupportedModelError(
                f"layer {place} is a {kind.__qualname__}, which a checkpoint cannot describe; "
                f"known are Sequential, {', '.join(sorted(_BY_NAME))}. Write the model as a class with a config and "
                "register it (register_architecture)."
            )
    return entries


def build_layers(entries: object, where: str = "") -> nn.Sequential:
    """The Sequential that `describe_layers` described, freshly initialised.

    Raises:
        ModelFileError: an entry is malformed or names a layer that is not in the table.
    """
    if not isinstance(entries, list):
        raise ModelFileError(f"the description of the layers is a {type(entries).__name__}; expected a list.")
    sequence = nn.Sequential()
    for position, entry in enumerate(entries):
        kind, name = (entry.get("kind"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(entry, dict) or not isinstance(name, str) or not isinstance(kind, str):
            raise ModelFileError(f"layer {where}{position} of the description is malformed: {str(entry)[:80]}.")
        if kind == "Sequential":
            sequence.add_module(name, build_layers(entry.get("layers"), f"{where}{name}."))
            continue
        config = entry.get("config")
        if kind not in _BY_NAME or not isinstance(config, dict):
            raise ModelFileError(f"layer {where}{name} is of the unknown kind {kind!r}; a newer version may know it.")
        cls = _BY_NAME[kind]
        if set(config) != set(LAYERS[cls]):
            raise ModelFileError(
                f"layer {where}{name} ({kind}) has the settings {sorted(config)}; expected {sorted(LAYERS[cls])}."
            )
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        try:
            sequence.add_module(name, cls(**arguments))
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise ModelFileError(f"layer {where}{name} ({kind}) cannot be built from its settings: {error}") from error
    return sequence


def _setting_of(layer: nn.Module, key: str) -> object:
    if key == "bias":
        return layer.bias is not None
    if key in _GATE and not isinstance(layer, Gate):
        return getattr(layer.gate, key)
    value = getattr(layer, key)
    return list(value) if isinstance(value, tuple) else value
