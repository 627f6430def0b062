"""Can architectures be registered by name, once?"""

from __future__ import annotations

import pytest
from torch import nn

from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.gates import LeNet5, register_architecture
from l0runtime.gates.registry import architecture, architecture_name


def test_the_papers_networks_are_registered() -> None:
    for name in ("lenet-300-100", "lenet-5", "vgg", "wide-resnet"):
        assert architecture(name).__module__.startswith("l0runtime.gates.")
    assert architecture("lenet-5") is LeNet5
    assert architecture_name(LeNet5()) == "lenet-5"


def test_a_subclass_is_not_its_parent() -> None:
    class Changed(LeNet5):
        pass

    assert architecture_name(Changed()) is None


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        register_architecture("lenet-5")(nn.Linear)
    assert str(caught.value) == "architecture 'lenet-5' is already LeNet5; choose another name."


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^architecture 'alexnet' is unknown; known are .*lenet-5, .*vgg"):
        architecture("alexnet")
