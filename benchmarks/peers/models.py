"""Which models and zero filters does every tool get?"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

# model -> positions: A filter zero, live BatchNorm or bias behind it; B everything zero; C consumer's columns; D stream
CASES: dict[str, tuple[str, ...]] = {
    "resnet18": ("interior.A", "interior.B", "interior.C", "residual.D"),
    "resnet50": ("interior.A", "interior.B"),
    "mobilenet_v2": ("interior.A", "interior.B"),
    "densenet121": ("interior.A", "interior.B"),
    "googlenet": ("interior.A", "interior.B"),
    "efficientnet_b0": ("interior.B",),
    "vgg11_bn": ("interior.A",),
    "vit_6_layers": ("interior.B",),
    "convnext_tiny": ("interior.B",),
}


def build(name: str) -> nn.Module:
    """A torchvision model with random weights; `vit_6_layers` is its VisionTransformer in a small size."""
    from torchvision import models

    factories: dict[str, Callable[[], nn.Module]] = {
        "vit_6_layers": lambda: models.VisionTransformer(224, 16, 6, 6, 384, 1536),
        "googlenet": lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False),
    }
    return factories.get(name, lambda: models.get_model(name, weights=None))()
