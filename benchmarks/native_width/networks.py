"""Which networks, which of their units are gated, and how is the same network built with fewer of them?

A `Unit` names the layers around one gated width. To gate it, the closed channels get zero filters, biases and norms.
To build it natively, the same layers are made anew, narrower, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Unit:
    """One gated width.

    Attributes:
        writers: layers whose outputs it is (several read the same input: query, key and value).
        inside: layers between, one channel for each of its own: norms and depthwise convolutions.
        readers: layers whose inputs it is.
        size: channels that open and close together (64 in an attention head).
        positions: inputs of a reader for each channel (16 behind a flattened 4 x 4 image).
    """

    writers: tuple[str, ...]
    inside: tuple[str, ...]
    readers: tuple[str, ...]
    size: int = 1
    positions: int = 1


@dataclass(frozen=True)
class Network:
    """A network, its example inputs without the batch, and what is gated in it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    units: Callable[[nn.Module], list[Unit]]


def survivors(layer: nn.Module, unit: Unit, open_share: float) -> int:
    """Channels that stay; at least one."""
    groups = width_of(layer) // unit.size
    return max(1, round(groups * open_share)) * unit.size


def width_of(layer: nn.Module) -> int:
    """Outputs of a convolution or linear layer."""
    return int(layer.weight.shape[0])  # type: ignore[union-attr,index,arg-type]


@torch.no_grad()
def close(model: nn.Module, units: list[Unit], open_share: float, seed: int) -> None:
    """Close channels of every unit, in place: zero filters, zero biases, zero norms."""
    generator = torch.Generator().manual_seed(seed)
    for unit in units:
        layers = [model.get_submodule(name) for name in (*unit.writers, *unit.inside)]
        width = width_of(layers[0])
        kept = survivors(layers[0], unit, open_share)
        order = torch.randperm(width // unit.size, generator=generator)[kept // unit.size :]
        closed = (order[:, None] * unit.size + torch.arange(unit.size)).flatten()
        for layer in layers:
            for parameter in (layer.weight, layer.bias):
                if isinstance(parameter, Tensor):
                    parameter[closed] = 0


@torch.no_grad()
def narrow(model: nn.Module, units: list[Unit], open_share: float) -> None:
    """Build every unit's layers anew at the surviving width, in place."""
    plans = [(unit, survivors(model.get_submodule(unit.writers[0]), unit, open_share)) for unit in units]
    for unit, kept in plans:
        for name in (*unit.writers, *unit.inside):
            _replace(model, name, outputs=kept)
        for name in unit.readers:
            _replace(model, name, inputs=kept * unit.positions)


def _replace(model: nn.Module, name: str, *, inputs: int | None = None, outputs: int | None = None) -> None:
    layer = model.get_submodule(name)
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = nn.Linear(inputs or layer.in_features, outputs or layer.out_features, layer.bias is not None)
    elif isinstance(layer, nn.BatchNorm2d):
        assert outputs is not None
        made = nn.BatchNorm2d(outputs, layer.eps)
    elif isinstance(layer, nn.Conv2d):
        depthwise = layer.groups > 1
        made = nn.Conv2d(
            (outputs if depthwise else inputs) or layer.in_channels,
            outputs or layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            (outputs or 1) if depthwise else 1,
            layer.bias is not None,
        )
    else:
        raise TypeError(f"{name}: {type(layer).__name__} cannot be built narrower")
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, made)


@torch.no_grad()
def disturb_norms(model: nn.Module, seed: int) -> None:
    """Give every BatchNorm statistics and weights as if it had been trained, so that it is no identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.1)


# --- the networks ---------------------------------------------------------------------------------------------------


def _images(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape),)


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _lenet_units(model: nn.Module) -> list[Unit]:
    return [Unit(("0",), (), ("3",)), Unit(("3",), (), ("7",), positions=16), Unit(("7",), (), ("9",))]


class _Block(nn.Module):
    """Pre-activation block: BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3, and a shortcut around them."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width_in), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width_in, width, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        stream = x if self.shortcut is None else self.shortcut(active)
        return stream + self.conv2(torch.relu(self.bn2(self.conv1(active))))  # type: ignore[no-any-return]


def _wide_resnet(depth: int = 16, widen: int = 8) -> nn.Module:
    widths = [16, 16 * widen, 32 * widen, 64 * widen]
    blocks: list[nn.Module] = []
    for group in range(3):
        for index in range((depth - 4) // 6):
            width_in = widths[group] if index == 0 else widths[group + 1]
            blocks.append(_Block(width_in, widths[group + 1], 2 if group and not index else 1))
    head = [nn.BatchNorm2d(widths[3]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), *blocks, *head)


def _wide_resnet_units(model: nn.Module) -> list[Unit]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, _Block)]
    return [Unit((f"{name}.conv1",), (f"{name}.bn2",), (f"{name}.conv2",)) for name in blocks]


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    return resnet50()  # type: ignore[no-any-return]


def _resnet50_units(model: nn.Module) -> list[Unit]:
    units = []
    for name, module in model.named_modules():
        if type(module).__name__ == "Bottleneck":
            units += [Unit((f"{name}.conv{i}",), (f"{name}.bn{i}",), (f"{name}.conv{i + 1}",)) for i in (1, 2)]
    return units


def _mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_large

    return mobilenet_v3_large()  # type: ignore[no-any-return]


def _mobilenet_units(model: nn.Module) -> list[Unit]:
    """Expanded channels with their depthwise convolutions, and the channels of squeeze-and-excitation."""
    units = []
    for name, module in model.named_modules():
        if type(module).__name__ != "InvertedResidual":
            continue
        parts = list(module.get_submodule("block"))
        squeeze = next((i for i, part in enumerate(parts) if type(part).__name__ == "SElayer"), None)
        squeeze = next((i for i, part in enumerate(parts) if hasattr(part, "fc1")), squeeze)
        block = f"{name}.block"
        if squeeze is not None:
            units.append(Unit((f"{block}.{squeeze}.fc1",), (), (f"{block}.{squeeze}.fc2",)))
        if parts[0][0].groups == 1:  # type: ignore[index]
            excited = () if squeeze is None else (f"{block}.{squeeze}.fc2",)
            squeezed = () if squeeze is None else (f"{block}.{squeeze}.fc1",)
            inside = (f"{block}.0.1", f"{block}.1.0", f"{block}.1.1", *excited)
            units.append(Unit((f"{block}.0.0",), inside, (f"{block}.{len(parts) - 1}.0", *squeezed)))
    return units


class _FirstOutput(nn.Module):
    """A transformer's last hidden state [batch, length, width], as a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]  # type: ignore[no-any-return]


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return _FirstOutput(ViTModel(ViTConfig(), add_pooling_layer=False))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return _FirstOutput(BertModel(BertConfig(), add_pooling_layer=False))


def _transformer_units(model: nn.Module) -> list[Unit]:
    """Attention heads and hidden units of every layer; q_proj and fc1 in ViT, query and intermediate in BERT."""
    return list(_heads_and_hidden([name for name, module in model.named_modules() if isinstance(module, nn.Linear)]))


def _heads_and_hidden(names: list[str]) -> Iterator[Unit]:
    for name in names:
        if name.endswith(".q_proj"):
            base = name.removesuffix("q_proj")
            yield Unit((name, f"{base}k_proj", f"{base}v_proj"), (), (f"{base}o_proj",), size=64)
        elif name.endswith(".self.query"):
            base, outer = name.removesuffix("query"), name.removesuffix("self.query")
            yield Unit((name, f"{base}key", f"{base}value"), (), (f"{outer}output.dense",), size=64)
        elif name.endswith(".fc1"):
            yield Unit((name,), (), (name.removesuffix("1") + "2",))
        elif name.endswith(".intermediate.dense"):
            yield Unit((name,), (), (name.removesuffix("intermediate.dense") + "output.dense",))


def _tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 30522, (batch, 128)),)


def _lenet300() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def _lenet300_units(model: nn.Module) -> list[Unit]:
    return [Unit(("1",), (), ("3",)), Unit(("3",), (), ("5",))]


NETWORKS: dict[str, Network] = {
    "LeNet-300-100": Network(_lenet300, _images(1, 28, 28), _lenet300_units),
    "LeNet-5": Network(_lenet, _images(1, 28, 28), _lenet_units),
    "WRN-16-8": Network(_wide_resnet, _images(3, 32, 32), _wide_resnet_units),
    "WRN-28-10": Network(lambda: _wide_resnet(28, 10), _images(3, 32, 32), _wide_resnet_units),
    "ResNet-50": Network(_resnet50, _images(3, 224, 224), _resnet50_units),
    "MobileNetV3": Network(_mobilenet, _images(3, 224, 224), _mobilenet_units),
    "ViT-B": Network(_vit, _images(3, 224, 224), _transformer_units),
    "BERT-base": Network(_bert, _tokens, _transformer_units),
}
