"""What would a native model of the surviving widths cost?

Independent of the compaction engine: the gated torch model is run and differentiated once. A channel of a contraction
survives if it varies with the input and the output depends on it; a native model has exactly the surviving channels on
both sides of every contraction. Rectifiers are replaced by leaky ones meanwhile, so that a unit that merely happens to
be off on this batch counts as alive.
"""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from benchmarks.zoo.places import Places, channel_axis, composite_projections, contractions, is_composite

# of the tensor's scale; sums of equal terms may differ in the last bits between samples
_VARIES = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass(frozen=True)
class NativeCost:
    """Size of the native model."""

    parameters: int
    macs: int  # of the contractions with weights, for one sample
    heads_alive: float  # share of attention inputs to output projections that survive
    products: float | None  # of the surviving heads' scores and sums, for one sample; None where they cannot be seen


class _Watched(TorchFunctionMode):
    """Counts products without weights; rectifiers that are zero for a half-line become leaky: 0 at 0 stays.

    Attributes:
        products: multiply-accumulates since it was last set to 0.
    """

    products = 0

    # by name: the Python function, its C implementation, the method and the in-place forms all pass here
    _RECTIFIERS = frozenset({"relu", "relu6", "hardtanh", "leaky_relu", "threshold", "clamp_min"})
    _SMOOTH: ClassVar = {"hardswish": F.silu, "hardsigmoid": torch.sigmoid}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")
        if name in self._RECTIFIERS:
            x = args[0]
            return torch.where(x > 0, x, 0.3 * x)
        if name in self._SMOOTH:
            return self._SMOOTH[name](args[0])
        result = func(*args, **(kwargs or {}))
        if name in ("matmul", "__matmul", "bmm"):
            self.products += result.numel() * args[0].shape[-1]
        elif name == "scaled_dot_product_attention":
            query, key, value = (args + tuple((kwargs or {}).values()))[:3]
            self.products += query.numel() * key.shape[-2] + result.numel() * value.shape[-2]
        return result


class _Recorder:
    def __init__(self, model: nn.Module, watched: _Watched) -> None:
        self.model = model
        self.watched = watched
        self.products: dict[str, int] = {}  # before each contraction, since the one before
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.norms: dict[str, Tensor] = {}

    def attach(self, stack: ExitStack) -> None:
        names = contractions(self.model)
        for name, module in self.model.named_modules():
            depthwise = isinstance(module, _ConvNd) and name not in names
            if name in names or depthwise:
                before = module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
                after = module.register_forward_hook(self._leave(name), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.products[name] = self.products.get(name, 0) + self.watched.products
            self.watched.products = 0
            swaps: dict[int, Tensor] = {}

            def own(value: Any) -> Any:
                # one fresh view per distinct tensor: its gradient is what this module alone passes back
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    return value
                if id(value) not in swaps:
                    x = value if value.requires_grad else value.detach().requires_grad_()
                    fresh = x.clone()
                    fresh.retain_grad()
                    swaps[id(value)] = fresh
                return swaps[id(value)]

            args = tuple(own(a) for a in args)
            kwargs = {k: own(v) for k, v in kwargs.items()}
            module._zoo_input = next(iter(swaps.values()))  # type: ignore[assignment]
            return args, kwargs

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            first.retain_grad()
            x = module._zoo_input
            del module._zoo_input
            self.calls[name].append((x, first))  # type: ignore[arg-type]
            fresh = first.clone()  # an in-place activation may follow
            return (fresh, *output[1:]) if isinstance(output, tuple) else fresh

        return hook


def _alive(value: Tensor, axis: int, batch: int) -> Tensor:
    """Channels that vary with the sample and have a gradient, shape [C], bool."""
    channels = value.shape[axis]
    flat = value.detach().movedim(axis, -1)
    samples = flat.reshape(batch, -1, channels) if flat.shape[0] % batch == 0 else flat.reshape(1, -1, channels)
    if samples.shape[0] > 1:
        spread = (samples - samples[:1]).abs().amax(dim=(0, 1))
    else:  # the batch is folded away: variation over positions must do
        spread = (samples - samples[:, :1]).abs().amax(dim=(0, 1))
    varies = spread > _VARIES[value.dtype] * float(value.detach().abs().max())
    if value.grad is None:
        return torch.zeros(channels, dtype=torch.bool)
    gradient = value.grad.movedim(axis, -1).reshape(-1, channels).abs().amax(dim=0)
    return varies & (gradient > 0)


def native_cost(model: nn.Module, places: Places, inputs: tuple[Tensor, ...]) -> NativeCost:
    """Cost of a native model of the surviving widths; `inputs` hold at least two different samples.

    Run in float64, where a small but real dependence on the input cannot be taken for rounding; in float32 for a model
    that insists on it.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        return _native_cost(model.double(), places, wide)
    except RuntimeError:
        return _native_cost(model.float(), places, inputs)
    finally:
        model.float()


def _native_cost(model: nn.Module, places: Places, inputs: tuple[Tensor, ...]) -> NativeCost:
    model.zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    batch = inputs[0].shape[0]
    watched = _Watched()
    recorder = _Recorder(model, watched)
    with ExitStack() as stack:
        recorder.attach(stack)
        with torch.enable_grad(), watched:
            output = model(*inputs)
        outputs = [t for t in (output if isinstance(output, tuple | list) else [output]) if isinstance(t, Tensor)]
        sum((t * torch.randn_like(t)).sum() for t in outputs if t.requires_grad).backward()  # type: ignore[union-attr]

    parameters = macs = 0
    counted: set[int] = set()
    heads: list[tuple[int, int, float]] = []  # products, columns of the output projection, share of them that is alive
    outputs_of_heads = {attention.output for attention in places.attentions}
    live = {name: _live(model.get_submodule(name), calls, batch) for name, calls in recorder.calls.items()}
    widths = _evened_widths(model, places, live)
    for name, calls in recorder.calls.items():
        module = model.get_submodule(name)
        axis = channel_axis(module)
        live_in, live_out = live[name]
        if is_composite(module):
            fused, projection = (model.get_parameter(n) for n in composite_projections(name, module))
            # a row of the fused projection survives if its gradient and its weights are not zero
            rows = (fused.grad.abs().amax(1) > 0) & (fused.abs().amax(1) > 0)  # type: ignore[union-attr]
            inner = (projection.grad.abs().amax(0) > 0) & (projection.abs().amax(0) > 0)  # type: ignore[union-attr]
            weight_elements = int(rows.sum() * live_in.sum() + inner.sum() * live_out.sum())
            biases = int(rows.sum() + live_out.sum())
            positions = sum(y.numel() // y.shape[-1] // batch for _, y in calls)
            call_macs = weight_elements * positions
            heads.append((0, inner.numel(), float(inner.double().mean())))
            counted.update(id(p) for p in module.parameters())
        else:
            weight_elements = _weight_elements(module, live_in, live_out, widths.get(name, (0, 0)))
            biases = int(live_out.sum()) if getattr(module, "bias", None) is not None else 0
            positions = sum(y.numel() // y.shape[axis] // max(1, _samples(y, batch)) for _, y in calls)
            if isinstance(module, _ConvNd) and module.transposed:
                positions = sum(x.numel() // x.shape[1] // max(1, _samples(x, batch)) for x, _ in calls)
            call_macs = weight_elements * positions
            counted.update(id(p) for p in module.parameters(recurse=False))
            if name in outputs_of_heads:
                heads.append((recorder.products[name], live_in.numel(), float(live_in.double().mean())))
        if not live_out.any():
            weight_elements = biases = call_macs = 0
        parameters += weight_elements + biases
        macs += call_macs
    parameters += _other_parameters(model, counted)
    columns = sum(width for _, width, _ in heads)
    alive = sum(width * share for _, width, share in heads) / columns if columns else 1.0
    products = sum(count * share for count, _, share in heads) / batch if all(count for count, _, _ in heads) else None
    return NativeCost(parameters, macs, alive, products)


def _samples(value: Tensor, batch: int) -> int:
    """Samples that the leading axis holds; windows and heads may be folded into it."""
    return batch if value.shape[0] % batch == 0 else 1


def _live(module: nn.Module, calls: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
    """Channels that survive in front of and behind a contraction."""
    axis = channel_axis(module)
    live_in = torch.stack([_alive(x, axis, batch) for x, _ in calls]).any(dim=0)
    live_out = torch.stack([_alive(y, axis, batch) for _, y in calls]).any(dim=0)
    return live_in, live_out


def _weight_elements(module: nn.Module, live_in: Tensor, live_out: Tensor, least: tuple[int, int]) -> int:
    if not isinstance(module, _ConvNd) or module.groups == 1:
        kernel = math.prod(module.kernel_size) if isinstance(module, _ConvNd) else 1
        if not live_in.any() or not live_out.any():
            return 0
        return max(int(live_in.sum()), least[0]) * max(int(live_out.sum()), least[1]) * kernel
    groups, inputs, outputs = _native_groups(module, live_in, live_out)
    return groups * inputs * outputs * math.prod(module.kernel_size)


def _native_groups(module: _ConvNd, live_in: Tensor, live_out: Tensor) -> tuple[int, int, int]:
    """Surviving groups, inputs and outputs of each: a native grouped convolution has equally many in every group."""
    per_group_in = live_in.reshape(module.groups, -1).sum(dim=1)
    per_group_out = live_out.reshape(module.groups, -1).sum(dim=1)
    groups = (per_group_in > 0) & (per_group_out > 0)
    return int(groups.sum()), int(per_group_in.max()), int(per_group_out.max())


def _evened_widths(
    model: nn.Module, places: Places, live: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[int, int]]:
    """Least input and output widths of the dense neighbours of grouped convolutions.

    Where groups keep equally many channels, whatever writes and reads these channels has as many.
    """
    least: dict[str, tuple[int, int]] = {}
    for group in places.groups:
        width = 0
        readers = [reader.module for reader in group.readers if reader.offset == 0 and reader.factor == 1]
        # a grouped convolution reads all channels of its source, in their order
        modules = [(reader.module, model.get_submodule(reader.module)) for reader in group.readers]
        whole = [name for name, module in modules if getattr(module, "in_channels", 0) == group.width]
        for position, names in ((0, whole), (1, group.writers)):
            for name in names:
                module = model.get_submodule(name)
                if name in live and isinstance(module, _ConvNd) and 1 < module.groups < module.in_channels:
                    counts = _native_groups(module, *live[name])
                    width = max(width, counts[0] * counts[1 + position])
        for name in readers:
            least[name] = (max(width, least.get(name, (0, 0))[0]), least.get(name, (0, 0))[1])
        for name in group.writers:
            least[name] = (least.get(name, (0, 0))[0], max(width, least.get(name, (0, 0))[1]))
    return least


def _other_parameters(model: nn.Module, counted: set[int]) -> int:
    """Norms, embeddings, positions: elements in the slices, along every axis, that have a gradient."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in counted:
            counted.add(id(module.weight))
            gradient = module.weight.grad
            # which rows are read depends on the batch, so only the width counts
            alive = (
                0 if gradient is None else int(((gradient.abs().amax(0) > 0) & (module.weight.abs().amax(0) > 0)).sum())
            )
            total += module.num_embeddings * alive
    for parameter in model.parameters():
        if id(parameter) in counted or parameter.numel() == 1:
            continue
        counted.add(id(parameter))
        if parameter.grad is not None:
            total += int(((parameter.grad != 0) & (parameter != 0)).sum())
    return total
