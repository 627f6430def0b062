"""The paper's own code (AMLab L0_regularization): its three networks as they compute in evaluation.

L0Dense: y = (z * x) W + b with W stored [in, out]; L0Conv2d: z times the output, after the bias; z = hardtanh(
sigmoid(qz_loga) * 1.2 - 0.1, 0, 1). Where the file holds a moving average, avg / (1 - beta^steps) is evaluated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made
from converters.torch_files import read_torch_file


class Amlab(nn.Module):
    """Computes straight from the state dict of the authors' file."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        state = {name.removeprefix("module."): tensor for name, tensor in content["state_dict"].items()}
        if content.get("beta_ema", 0) > 0:
            names = [
                name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            ]
            correction = 1 - content["beta_ema"] ** content["steps_ema"]
            for name, average in zip(names, content["avg_params"], strict=True):
                state[name] = average / correction
        self.state = state

    def gates(self, layer: str) -> Tensor:
        return F.hardtanh(torch.sigmoid(self.state[f"{layer}.qz_loga"]) * 1.2 - 0.1, 0, 1)

    def dense(self, layer: str, x: Tensor) -> Tensor:
        return (x * self.gates(layer)) @ self.state[f"{layer}.weights"] + self.state[f"{layer}.bias"]

    def convolve(self, layer: str, x: Tensor, padding: int = 0) -> Tensor:
        x = F.conv2d(x, self.state[f"{layer}.weights"], self.state.get(f"{layer}.bias"), padding=padding)
        return x * self.gates(layer).view(1, -1, 1, 1)

    def batch_norm(self, layer: str, x: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{layer}.{key}"] for key in keys))

    def forward(self, x: Tensor) -> Tensor:
        if "convs.0.weights" in self.state:
            return self.lenet5(x)
        return self.wide_resnet(x) if "conv1.weight" in self.state else self.mlp(x)

    def mlp(self, x: Tensor) -> Tensor:
        x = self.dense("output.0", x.flatten(1))
        return self.dense("output.4", self.dense("output.2", x.relu()).relu())

    def lenet5(self, x: Tensor) -> Tensor:
        for layer in ("convs.0", "convs.3"):
            x = F.max_pool2d(self.convolve(layer, x).relu(), 2)
        return self.dense("fcs.2", self.dense("fcs.0", x.flatten(1)).relu())

    def wide_resnet(self, x: Tensor) -> Tensor:
        blocks = 1 + max(int(name.split(".")[2]) for name in self.state if name.startswith("block1."))
        x = F.conv2d(x, self.state["conv1.weight"], padding=1)
        for group in (1, 2, 3):
            for index in range(blocks):
                prefix, stride = f"block{group}.layer.{index}", 2 if group > 1 and index == 0 else 1
                active = self.batch_norm(f"{prefix}.bn1", x).relu()
                out = self.batch_norm(f"{prefix}.bn2", self.convolve(f"{prefix}.conv1", active, padding=1)).relu()
                out = F.conv2d(out, self.state[f"{prefix}.conv2.weight"], None, stride, 1)
                shortcut = self.state.get(f"{prefix}.convShortcut.weight")
                x = out + (x if shortcut is None else F.conv2d(active, shortcut, None, stride))
        pooled = F.avg_pool2d(self.batch_norm("bn", x).relu(), 8).flatten(1)
        return pooled @ self.state["fcout.weight"] + self.state["fcout.bias"]


def read(path: Path) -> Made:
    """A file that the authors' code wrote."""
    net = Amlab(read_torch_file(path)).eval()
    shape = (32, 1, 28, 28) if "convs.0.weights" in net.state else (32, 784)
    return Made(path, net, (torch.rand(*shape),), origin="written by the authors' code, trained on MNIST")


def make_wide_resnet(folder: Path, blocks: int = 2, widen: int = 4) -> Made:
    """checkpoint.pth.tar of L0WideResNet, by hand: trained-looking statistics, half of the gates closed."""
    generator = torch.Generator().manual_seed(6)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state: OrderedDict[str, Tensor] = OrderedDict()

    def filters(name: str, out: int, inputs: int, size: int) -> None:
        state[name] = draw(out, inputs, size, size) * (2 / (inputs * size * size)) ** 0.5

    def batch_norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.2 * draw(width), 0.3 * draw(width)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = 0.2 * draw(width), draw(width).abs() + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    filters("conv1.weight", 16, 3, 3)
    width_in = 16
    for group, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        for index in range(blocks):
            prefix = f"block{group}.layer.{index}"
            batch_norm(f"{prefix}.bn1", width_in)
            filters(f"{prefix}.conv1.weights", width, width_in, 3)
            state[f"{prefix}.conv1.qz_loga"] = draw(width) * 3 - 2.4
            batch_norm(f"{prefix}.bn2", width)
            filters(f"{prefix}.conv2.weight", width, width, 3)
            if width_in != width:
                filters(f"{prefix}.convShortcut.weight", width, width_in, 1)
            width_in = width
    batch_norm("bn", width_in)
    state["fcout.weight"], state["fcout.bias"] = draw(width_in, 10) / 16, draw(10)
    content = {"epoch": 1, "state_dict": state, "beta_ema": 0}
    path = folder / "checkpoint.pth.tar"
    torch.save(content, path)
    return Made(path, Amlab(content).eval(), (torch.rand(4, 3, 32, 32, generator=generator),))
