"""Are these the paper's MNIST networks? The authors' own trained files give the authors' own errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l0runtime.gates import LeNet5, LeNet300, error_rate, kept_units

SHARED = Path(__file__).parents[3] / "shared"


def test_lenet_300_100_has_the_papers_shape() -> None:
    model = LeNet300()
    assert [total for _, total in kept_units(model).values()] == [784, 300, 100]
    weights = sum(p.numel() for name, p in model.named_parameters() if "gate" not in name)
    assert weights == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_lenet_5_has_the_papers_shape() -> None:
    model = LeNet5()
    assert [total for _, total in kept_units(model).values()] == [20, 50, 800, 500]
    weights = sum(p.numel() for name, p in model.named_parameters() if "gate" not in name)
    assert weights == 25 * 20 + 20 + 20 * 25 * 50 + 50 + 800 * 500 + 500 + 500 * 10 + 10
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_initial_gates_have_the_papers_drop_rates() -> None:
    # log 4 is the logit of 1 - 0.2; 0 that of 0.5
    means = [layer.gate.log_alpha.mean().item() for layer in LeNet300().layers if hasattr(layer, "gate")]
    assert means == pytest.approx([1.386, 0, 0], abs=0.01)
    assert LeNet5().conv1.gate.log_alpha.mean().item() == pytest.approx(0, abs=0.02)


def read_test_set() -> tuple[Tensor, Tensor]:
    folder = SHARED / "data" / "mnist"
    images, labels = folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    if not images.exists() or not labels.exists():
        pytest.skip(f"MNIST is not in {folder}")
    x = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    y = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    return torch.from_numpy(x.copy()).float() / 255, torch.from_numpy(y.copy()).long()


def read_authors_file(name: str) -> dict[str, object]:
    path = SHARED / "checkpoints" / "amlab" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    scalars = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType]
    with torch.serialization.safe_globals(scalars):
        loaded: dict[str, object] = torch.load(path, weights_only=True)
    return loaded


def adopt(model: nn.Module, pairs: dict[str, str], state: dict[str, Tensor]) -> nn.Module:
    """Copy the authors' layers into ours; their dense weights are [in, out], transposed against torch's."""
    with torch.no_grad():
        for ours, theirs in pairs.items():
            layer = model.get_submodule(ours)
            weight = state[f"{theirs}.weights"]
            layer.weight.copy_(weight.T if weight.dim() == 2 else weight)
            layer.bias.copy_(state[f"{theirs}.bias"])
            layer.gate.log_alpha.copy_(state[f"{theirs}.qz_loga"])
    return model.eval()


def test_the_authors_lenet_5_makes_the_errors_that_it_made_in_their_code() -> None:
    state = read_authors_file("lenet5.pth.tar")["state_dict"]
    pairs = {"conv1": "convs.0", "conv2": "convs.3", "fc1": "fcs.0", "fc2": "fcs.2"}
    model = adopt(LeNet5(), pairs, state)  # type: ignore[arg-type]
    assert [kept for kept, _ in kept_units(model).values()] == [11, 27, 106, 25]
    inputs, labels = read_test_set()
    assert round(error_rate(model, inputs, labels) * 10_000) == 89


def test_the_authors_lenet_300_100_makes_the_errors_that_it_made_in_their_code() -> None:
    state = read_authors_file("mlp_300_100_ema.pth.tar")["state_dict"]
    pairs = {"layers.1": "output.0", "layers.3": "output.2", "layers.5": "output.4"}
    model = adopt(LeNet300(), pairs, state)  # type: ignore[arg-type]
    assert [kept for kept, _ in kept_units(model).values()] == [408, 298, 100]
    inputs, labels = read_test_set()
    assert round(error_rate(model, inputs, labels) * 10_000) == 147
