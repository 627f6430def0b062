"""How does a checkpoint of FLOP (asappresearch/flop) become a gated model?

FLOP keeps rank-1 components of factorised layers, input units of plain ones, and dimensions of adaptive embeddings.
The factory builds the model as it was before make_hard_concrete; the table says where each tensor goes.

    HardConcreteProjectedLinear   weight [in, r], weight_proj [r, out], mask.log_alpha [r]
                                  -> linear1.weight = weight^T, linear2.weight = (z weight_proj)^T, linear2.bias
    HardConcreteLinear            weight [in, out], mask.log_alpha [in] -> weight = (z weight)^T, bias
    HardConcreteAdaptive{Embedding,LogSoftmax}
                                  {emb,out}_layers.i.weight [n, d], masks.i.log_alpha [d] -> weight = z weight

Rule: top-k, temperature 1. The round(n - E[L0]) smallest are 0, the rest sigmoid(0.8 log_alpha); the option
temperature=T is for models trained with another one.

Source: flop/hardconcrete.py, linear.py and embedding.py of the repository. Not checked on a file of the authors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from converters.formats.folding import check_length, gate_values, group_of, scale, take_options
from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

_GATE = ".mask.log_alpha"
_ADAPTIVE = re.compile(r"(?P<layer>.+\.|)masks\.(?P<index>\d+)\.log_alpha")
_ADAPTIVE_WEIGHTS = ("emb_layers", "out_layers")
# theirs: ours, for a factorised layer
_PROJECTED = {"weight": "linear1.weight", "weight_proj": "linear2.weight", "bias": "linear2.bias"}
_TEMPERATURE = 1.0


class Flop:
    """Gates on rank-1 components, input units and embedding dimensions."""

    name = "flop"
    description = "state dict of FLOP (hard-concrete linear layers and embeddings), with --model"

    def recognise(self, file: Candidate) -> bool:
        return any(name.endswith(_GATE) or _ADAPTIVE.fullmatch(name) for name in names_in(file))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        extra = take_options(file, options, self.name, {"temperature": (float, "a number above 0")})
        beta = extra.get("temperature", _TEMPERATURE)
        state, gates = read_state(file), []
        for name in [name for name in state if name.endswith(_GATE) or _ADAPTIVE.fullmatch(name)]:
            log_alpha = state.pop(name)
            if log_alpha.dim() != 1:
                raise ModelFileError(
                    f"{file.path}: {name} has shape {list(log_alpha.shape)}; expected one axis. The file is damaged."
                )
            z = gate_values(log_alpha, "top-k", beta, name, file.path)
            adaptive = _ADAPTIVE.fullmatch(name)
            if adaptive is None:
                gates.append(_fold_linear(state, name.removesuffix(_GATE), z, name, file))
            else:
                gates.append(_fold_embedding(state, adaptive["layer"], adaptive["index"], z, name, file))
        return model_from_parameters(file, options, state, format=self.name, gates=gates)


SOURCE = Flop()


def _fold_linear(state: dict[str, Tensor], layer: str, z: Tensor, name: str, file: Candidate) -> GateGroup:
    """Multiply the gates of one linear layer in, and give its tensors the names and orientation of nn.Linear."""
    weight = state.pop(f"{layer}.weight", None)
    if weight is None or weight.dim() != 2:
        raise ModelFileError(f"{file.path}: {name} has no matrix {layer}.weight beside it. The file is damaged.")
    projection = state.pop(f"{layer}.weight_proj", None)
    if projection is None:
        check_length(z, weight.shape[0], name, "input unit", file.path)
        state[f"{layer}.weight"] = scale(weight, z, 0).t().contiguous()
        return group_of(layer, z, "top-k")
    check_length(z, weight.shape[1], name, "rank-1 component", file.path)
    check_length(z, projection.shape[0], name, "rank-1 component", file.path)
    state[f"{layer}.{_PROJECTED['weight']}"] = weight.t().contiguous()
    state[f"{layer}.{_PROJECTED['weight_proj']}"] = scale(projection, z, 0).t().contiguous()
    bias = state.pop(f"{layer}.bias", None)
    if bias is not None:
        state[f"{layer}.{_PROJECTED['bias']}"] = bias
    return group_of(layer, z, "top-k")


def _fold_embedding(
    state: dict[str, Tensor], layer: str, index: str, z: Tensor, name: str, file: Candidate
) -> GateGroup:
    """Multiply the gates of one cluster of an adaptive embedding or softmax into its table."""
    for kind in _ADAPTIVE_WEIGHTS:
        table = f"{layer}{kind}.{index}.weight"
        if table in state and state[table].dim() == 2:
            check_length(z, state[table].shape[-1], name, "embedding dimension", file.path)
            state[table] = scale(state[table], z, 1)
            return group_of(f"{layer}{kind}.{index}", z, "top-k")
    raise ModelFileError(
        f"{file.path}: {name} has no matrix {layer}emb_layers.{index}.weight or {layer}out_layers.{index}.weight "
        "beside it. "
        "The file is damaged."
    )
