"""How does a module take parameters of other shapes, in place, so that it still knows its own sizes?

The parameters stay the same objects (an optimizer and whoever else holds them need not be told); the sizes that a
layer keeps in attributes (`out_channels`, `num_features`, the number of gates) follow its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from l0runtime.errors import ModelFileError, UnsupportedModelError
from l0runtime.gates.gate import Gate

# layers of torch whose sizes follow from their tensors; any other layer of torch that owns parameters keeps its widths
RESIZABLE: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd, _NormBase, nn.Embedding, nn.PReLU)


def is_resizable(module: nn.Module) -> bool:
    """Whether a module's own parameters may get other widths: a layer listed above, or a class that is not torch's."""
    return isinstance(module, RESIZABLE) or not type(module).__module__.startswith("torch.")


@torch.no_grad()
def resize(module: nn.Module, tensors: Mapping[str, Tensor], groups: Mapping[str, int] | None = None) -> None:
    """Put new values, perhaps of other shapes, in place of parameters and buffers.

    Args:
        tensors: by qualified name; a name that a layer has no parameter for (the bias of a layer without) is added.
        groups: new number of groups of a grouped convolution, by the layer's name.
    Raises:
        UnsupportedModelError: a layer whose own sizes do not follow from its tensors.
    """
    touched: dict[str, None] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        layer = module.get_submodule(owner)
        old = layer._parameters.get(key)
        if old is None and key in layer._buffers:
            buffer = layer._buffers[key]
            assert buffer is not None
            buffer.data = laid_out_like(tensor.to(buffer), buffer)
        elif old is None:
            like = next(layer.parameters(recurse=False))
            layer.register_parameter(key, nn.Parameter(tensor.to(like).contiguous()))
        else:
            if old.shape != tensor.shape and not is_resizable(layer):
                raise UnsupportedModelError(f"{owner}: {type(layer).__name__} cannot get other widths.")
            old.data = laid_out_like(tensor.to(old), old)
            old.grad = None
        touched[owner] = None
    for owner in [*touched, *(groups or {})]:
        layer = module.get_submodule(owner)
        if groups is not None and owner in groups:
            assert isinstance(layer, _ConvNd)
            layer.groups = groups[owner]
        update_sizes(layer)


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor with its axes in memory as another's of the same rank: channels last, or in order.

    A fused optimizer takes a parameter and its state in the order of their memory, so both must keep one layout.
    """
    # one input channel makes a weight contiguous in both ways; its stride tells which was meant
    is_last = other.dim() == 4 and other.stride(1) == 1 and other.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def update_sizes(layer: nn.Module) -> None:
    """Write the sizes of a layer's tensors into its attributes."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd):
        first, second = layer.weight.shape[:2]
        if isinstance(layer, _ConvTransposeNd):
            layer.in_channels, layer.out_channels = first, second * layer.groups
        else:
            layer.out_channels, layer.in_channels = first, second * layer.groups
    elif isinstance(layer, _NormBase):
        for tensor in (layer.weight, layer.running_mean):
            if tensor is not None:
                layer.num_features = len(tensor)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif isinstance(layer, Gate):
        layer.size = len(layer.log_alpha)


def shrink_to_fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the shapes of stored tensors of the same names, where these are narrower.

    Afterwards `load_state_dict(tensors)` fits. Widths that do not agree between layers are found when the model runs.

    Raises:
        ModelFileError: a stored tensor is wider, has another number of axes, or belongs to a layer of fixed widths.
    """
    narrower: dict[str, Tensor] = {}
    groups: dict[str, int] = {}
    for name, own in _tensors_of(module):
        stored = tensors.get(name)
        if stored is None or stored.shape == own.shape:
            continue
        fits = stored.dim() == own.dim() and all(
            0 < new <= old for new, old in zip(stored.shape, own.shape, strict=True)
        )
        if not fits or not is_resizable(module.get_submodule(name.rpartition(".")[0])):
            raise ModelFileError(
                f"{name} has shape {list(stored.shape)}; its architecture has {list(own.shape)}, of which only a part "
                "can have been removed. The file is damaged, or of another network."
            )
        narrower[name] = own.new_zeros(stored.shape)
        owner, _, key = name.rpartition(".")
        layer = module.get_submodule(owner)
        if isinstance(layer, _ConvNd) and key == "weight" and layer.groups == own.shape[0] > 1:
            groups[owner] = stored.shape[0]  # depthwise: every channel is a group
    resize(module, narrower, groups)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
