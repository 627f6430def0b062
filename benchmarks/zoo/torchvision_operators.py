"""How can torchvision be imported beside a torch build that its compiled operators do not fit?

torchvision registers shape functions for its detection operators at import and fails where the compiled library could
not be loaded. No classification model calls them, so declaring their names is enough. Import this file first.
Where torch or torchvision is not installed (the environments of some peers) it does nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_BOXES = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
_POOLED = "Tensor grad, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
_SIZE = "int batch_size, int channels, int height, int width"
_DEFORM = (
    "Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
    "SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_POOLED}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align({_BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_POOLED}, Tensor mapping, int sampling_ratio, {_SIZE}) -> Tensor",
    f"roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_POOLED}, Tensor argmax, {_SIZE}) -> Tensor",
    f"ps_roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_POOLED}, Tensor mapping, {_SIZE}) -> Tensor",
    f"deform_conv2d(Tensor input, {_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, Tensor input, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _compiled_operators_fit() -> bool:
    """Whether torchvision's own library loads into this torch; it then declares the operators itself."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations
    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:  # built for another torch
            continue
        return True
    return False


def _declare() -> Any:
    """The library object; its declarations end with it, so it must outlive the import."""
    installed = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
    if not installed or _compiled_operators_fit():
        return None
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


_LIBRARY = _declare()
