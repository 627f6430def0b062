"""Is the gated Wide ResNet the authors' network?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l0runtime.errors import GateParameterError
from l0runtime.gates import WideResNet, gated_layers


def test_wrn_28_10_has_its_known_size() -> None:
    with torch.device("meta"):
        model = WideResNet()
    parameters = sum(p.numel() for name, p in model.named_parameters() if "gate" not in name)
    assert parameters == 36_479_194  # Zagoruyko & Komodakis 2016 print 36.5 M
    assert len(gated_layers(model)) == 12
    assert [layer.gate.size for layer in gated_layers(model).values()] == [160] * 4 + [320] * 4 + [640] * 4


def test_forward_follows_the_authors_order_of_operations() -> None:
    """Written out as in their BasicBlock: bn1, relu, conv1, gate, bn2, relu, conv2 with the stride, shortcut."""
    torch.manual_seed(0)
    model = WideResNet(depth=10, widen=1, classes=4).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
        for layer in gated_layers(model).values():
            layer.gate.log_alpha.normal_(0, 3)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = F.conv2d(x, model.conv1.weight, padding=1)
    for block, stride in zip(model.blocks, (1, 2, 2), strict=True):
        activated = F.relu(block.bn1(out))
        z = torch.clamp(torch.sigmoid(block.conv1.gate.log_alpha) * 1.2 - 0.1, 0, 1)
        hidden = F.conv2d(activated, block.conv1.weight, padding=1) * z.view(1, -1, 1, 1)
        hidden = F.conv2d(F.relu(block.bn2(hidden)), block.conv2.weight, stride=stride, padding=1)
        if block.shortcut is None:
            out = hidden + out
        else:
            out = hidden + F.conv2d(activated, block.shortcut.weight, stride=stride)
    out = F.avg_pool2d(F.relu(model.bn(out)), 8).flatten(1)
    expected = F.linear(out, model.fc.weight, model.fc.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_other_image_sizes_work() -> None:
    assert WideResNet(depth=10, widen=1).eval()(torch.randn(1, 3, 20, 24)).shape == (1, 10)


@pytest.mark.parametrize(("depth", "widen"), [(4, 1), (27, 10), (28, 0)])
def test_impossible_depths_and_widths_are_refused(depth: int, widen: int) -> None:
    with pytest.raises(GateParameterError) as caught:
        WideResNet(depth, widen)
    assert str(caught.value) == (
        f"WideResNet: depth is {depth} and widen is {widen}; "
        "expected a depth of 4 plus a positive multiple of 6 (such as 28), and widen >= 1."
    )
