"""What does the torch module itself give, for inputs by ONNX name?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from l0runtime.errors import UnsupportedModelError

Array = np.ndarray[Any, Any]


class ModuleRunner:
    """Calls a module with arrays that are named as the inputs of its ONNX export.

    Args:
        module: in eval mode.
        args, kwargs: example inputs; what is no tensor in them is passed on unchanged.
        names: ONNX input names, in the order of the flattened tensors, which the exporter keeps.
    Raises:
        UnsupportedModelError: as many names as tensors are needed.
    """

    def __init__(
        self, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        self._module, self._names = module, list(names)
        self._leaves, self._tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self._positions = [n for n, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        if len(self._names) != len(self._positions):
            raise UnsupportedModelError(
                f"the exported graph has {len(self._names)} inputs ({', '.join(self._names)}), the example has "
                f"{len(self._positions)} tensors. Give tensors that forward reads, and no others."
            )

    def example_feed(self) -> dict[str, Array]:
        """The example inputs as arrays by name."""
        return {name: _to_array(self._leaves[n]) for name, n in zip(self._names, self._positions, strict=True)}

    def __call__(self, feed: Mapping[str, Array]) -> list[Array]:
        """All outputs that are tensors, flattened, in the order of the graph's outputs."""
        filled = list(self._leaves)
        for name, position in zip(self._names, self._positions, strict=True):
            filled[position] = _to_tensor(feed[name], self._leaves[position].dtype)
        args, kwargs = pytree.tree_unflatten(filled, self._tree)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = self._module(*args, **kwargs)
        return [_to_array(leaf) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

    def doubled(self) -> ModuleRunner:
        """The same with a copy of the module in float64, for judging where float32 cannot tell."""
        args, kwargs = pytree.tree_unflatten([_doubled(leaf) for leaf in self._leaves], self._tree)
        return ModuleRunner(copy.deepcopy(self._module).double(), args, kwargs, self._names)


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point else leaf


def _to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy itself has no bfloat16
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return torch.from_numpy(array.copy(order="C")).to(dtype)
