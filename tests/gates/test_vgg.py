"""Is the gated VGG built as described?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l0runtime.errors import GateParameterError
from l0runtime.gates import GatedVGG, kept_units


def test_stages_give_the_gated_widths() -> None:
    model = GatedVGG(stages=((8, 16), (32,)), classes=5)
    assert [total for _, total in kept_units(model).values()] == [8, 16, 32, 32]
    assert model(torch.randn(2, 3, 12, 10)).shape == (2, 5)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model.features) == 1


def test_the_gate_comes_before_batch_norm() -> None:
    """So a closed filter leaves relu(bias - mean * weight / deviation) rather than zero."""
    model = GatedVGG(channels=1, stages=((2,),)).eval()
    norm = model.features[1]
    with torch.no_grad():
        model.features[0].gate.log_alpha[0] = -5
        norm.running_mean.copy_(torch.tensor([-3.0, 0.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    output = model.features(torch.randn(1, 1, 5, 5))
    torch.testing.assert_close(output[0, 0], torch.full((5, 5), 1.5), atol=1e-5, rtol=0)  # epsilon in the deviation


def test_without_batch_norm_a_closed_filter_is_zero() -> None:
    model = GatedVGG(channels=1, stages=((2,),), batch_norm=False).eval()
    with torch.no_grad():
        model.features[0].bias.fill_(7)
        model.features[0].gate.log_alpha[0] = -5
    assert (model.features(torch.randn(1, 1, 5, 5))[0, 0] == 0).all()


@pytest.mark.parametrize("stages", [(), ((8,), ())])
def test_an_empty_stage_is_refused(stages: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(GateParameterError) as caught:
        GatedVGG(stages=stages)
    assert str(caught.value) == f"GatedVGG: stages is {stages!r}; expected at least one filter count per stage."
