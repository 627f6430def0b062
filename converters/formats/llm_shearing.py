"""How does a checkpoint of LLM-Shearing's pruning stage (Xia et al. 2024) become a gated model?

A Composer checkpoint {"state": {"model": state dict, ...}}, or that state dict alone: a LLaMA under
model.transformer.*, its gates under model.l0_module.masks.<kind>.z_loga:

    hidden [d]                          head [layers, heads]                intermediate [layers, d_ff]
    head_layer, mlp or layer [layers]   (layer gates attention and MLP alike)

Rule: top-k, temperature 2/3, per row: the smallest are 0, the rest sigmoid(0.8 log_alpha / T). How many are 0: where
the run had a target architecture (l0_module.lambdas.lambda_1_<kind> exists), size - target, and the file does not hold
the target: options target_hidden, target_heads, target_intermediate, target_layers. Without one, round(n - E[L0]).

RMSNorm takes its mean over the live hidden dimensions; its output and that of every sub-layer are multiplied by
hidden_z. The embeddings are not: with the gates inside the model, its forward multiplies them only where the caller
hands gates in. (prune_params also multiplies the embeddings and the output matrix by hidden_z, "a bug that does not
incur too much issue" in its own words; what was trained and evaluated is read here.) A closed layer adds nothing.

The number of heads is the head gates', or the option heads; rotary base 10000; rms_norm_eps 1e-6 unless the option
eps says otherwise (1e-5 for LLaMA-2). Composer's own checkpoints hold pickled objects beside the model and are refused
with the way to save the state dict alone. qk_head_dim and vo_head_dim gates are refused.

Source: llmshearing/models/l0_module.py and composer_llama.py of princeton-nlp/LLM-Shearing. Not checked on a file of
the authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.formats.folding import check_finite, gate_values, group_of, scale, take_options
from converters.formats.parameters import find_state, model_from_parameters, names_in
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

_MASK = re.compile(r"(?P<prefix>.*)l0_module\.masks\.(?P<kind>\w+)\.z_loga")
# kind: the option that names its target
_TARGETS = {
    "hidden": "target_hidden",
    "head": "target_heads",
    "intermediate": "target_intermediate",
    "head_layer": "target_layers",
    "mlp": "target_layers",
    "layer": "target_layers",
}
_BLOCK = "transformer.blocks."
_TEMPERATURE = 2 / 3
_SLOPE = 0.8
_EPSILON = 1e-6
_ROTARY = "rotary_emb.inv_freq"


class LlmShearing:
    """A LLaMA with gates on heads, neurons, hidden dimensions and layers."""

    name = "llm-shearing"
    description = "state dict of LLM-Shearing's pruning stage (a LLaMA with l0_module.masks)"

    def recognise(self, file: Candidate) -> bool:
        return any(_MASK.fullmatch(str(name)) for name in names_in(file) or _find_model(file.torch_content) or ())

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        number = (int, "a whole number")
        known: dict[str, Any] = dict.fromkeys(("heads", *_TARGETS.values()), number) | {"eps": (float, "a number")}
        extra = take_options(file, options, self.name, known)
        if options.model is not None:
            raise OptionError(f"{file.path}: the parameters' shapes say which network it is; leave out the model.")
        state = _read(file)
        gates = _read_gates(state, extra, file)
        from converters.formats.llama import Llama, LlamaShape, example_inputs

        table = state.get("transformer.wte.weight")
        layers = 1 + max(
            (int(name.removeprefix(_BLOCK).split(".")[0]) for name in state if re.match(_BLOCK + r"\d+\.", name)),
            default=-1,
        )
        if table is None or table.dim() != 2 or not layers:
            raise ModelFileError(f"{file.path}: holds gates, but no transformer.wte.weight and blocks of a LLaMA.")
        heads = gates["head"].shape[1] if "head" in gates else extra.get("heads")
        if heads is None:
            raise OptionError(f"{file.path}: without gates on the heads, their number is not known: --set heads=N.")
        hidden = table.shape[1]
        if heads < 1 or hidden % (2 * heads):
            raise ModelFileError(f"{file.path}: {hidden} hidden dimensions do not split into {heads} heads.")
        skipped = _fold(state, gates, layers, hidden, heads, file)
        inner = state.get(f"{_BLOCK}0.mlp.up_proj.weight")
        shape = LlamaShape(
            vocabulary=table.shape[0],
            hidden=state["transformer.wte.weight"].shape[1],
            layers=layers,
            heads=heads,
            head_width=hidden // heads,
            intermediate=_intermediate(state, layers) if inner is None else inner.shape[0],
            epsilon=extra.get("eps", _EPSILON),
            skipped=frozenset(skipped),
        )
        notes = [f"rms_norm_eps {shape.epsilon:g}; the file does not say it, see the option eps"]
        if skipped:
            notes.append(f"closed and skipped: {', '.join(skipped)}")
        if shape.hidden < hidden:
            notes.append(
                f"{hidden - shape.hidden} of {hidden} hidden dimensions are removed on reading: RMSNorm is taken over "
                "the others alone"
            )
        return model_from_parameters(
            file,
            options,
            state,
            format=self.name,
            built=(Llama(shape), example_inputs(shape)),
            gates=_groups(gates),
            notes=notes,
        )


SOURCE = LlmShearing()


def _find_model(content: object) -> Mapping[str, Any] | None:
    """The model's state dict in a Composer checkpoint."""
    state = content.get("state") if isinstance(content, Mapping) else None
    model = state.get("model") if isinstance(state, Mapping) else None
    return model if find_state(model) is model else None


def _read(file: Candidate) -> dict[str, Tensor]:
    """Parameters by the names below `model.`, the gates among them."""
    from converters.formats.parameters import read_state
    from converters.torch_files import tensors_of

    nested = _find_model(file.torch_content)
    state = read_state(file) if nested is None else tensors_of(nested, file.path)
    match = next((match for name in state if (match := _MASK.fullmatch(name))), None)
    if match is None:
        raise ModelFileError(f"{file.path}: holds no gates (l0_module.masks.*.z_loga).")
    prefix = match["prefix"]
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if not name.endswith(_ROTARY)}


def _read_gates(state: dict[str, Tensor], extra: Mapping[str, Any], file: Candidate) -> dict[str, Tensor]:
    """Final values per kind, [layers, units] or [units]; takes everything of the gates out of the state."""
    gates = {}
    has_target = {name for name in state if name.startswith("l0_module.lambdas.lambda_1_")}
    for name in [name for name in state if name.startswith("l0_module.")]:
        log_alpha = state.pop(name)
        match = _MASK.fullmatch(name)
        if match is None:
            continue
        kind = match["kind"]
        if kind not in _TARGETS:
            raise UnsupportedModelError(
                f"{file.path}: gates of the kind {kind!r}, which this reader does not know; known are "
                f"{', '.join(_TARGETS)}. Prune with LLM-Shearing (post_pruning_processing.py) and convert the result."
            )
        # the original clamps before every evaluation
        check_finite(log_alpha, name, file.path)
        log_alpha = log_alpha.float().clamp(-4.605170185988091, 4.605170185988091)
        option = _TARGETS[kind]
        if f"l0_module.lambdas.lambda_1_{kind}" not in has_target:
            gates[kind] = gate_values(log_alpha, "top-k", _TEMPERATURE, name, file.path)
        elif option in extra:
            gates[kind] = _keep(log_alpha, extra[option], option, file)
        else:
            raise OptionError(
                f"{file.path}: its run had a target architecture, which decides how many gates close and is not in "
                f"the file. Add --set {option}=N (of {log_alpha.shape[-1]})."
            )
    return gates


def _keep(log_alpha: Tensor, target: int, option: str, file: Candidate) -> Tensor:
    """The `target` largest of each row stay, at sigmoid(0.8 log_alpha / T)."""
    import torch

    count = log_alpha.shape[-1]
    if not 0 <= target <= count:
        raise OptionError(f"{file.path}: option {option}={target}: expected at most {count}, the number of gates.")
    z = torch.sigmoid(log_alpha / _TEMPERATURE * _SLOPE)
    order = torch.argsort(log_alpha, dim=-1, stable=True)
    return z.scatter(-1, order[..., : count - target], 0.0).double()


def _fold(
    state: dict[str, Tensor], gates: Mapping[str, Tensor], layers: int, hidden: int, heads: int, file: Candidate
) -> list[str]:
    """Multiply the gates in and take dead hidden dimensions out, in place; gives the skipped sub-layers."""
    import torch

    one = torch.ones(layers, dtype=torch.float64)
    of_layer = {
        "attn": gates.get("head_layer", gates.get("layer", one)),
        "mlp": gates.get("mlp", gates.get("layer", one)),
    }
    intermediate = _intermediate(state, layers)
    units = {
        "attn": gates.get("head", torch.ones(layers, heads, dtype=torch.float64)).repeat_interleave(
            hidden // heads, -1
        ),
        "mlp": gates.get("intermediate", torch.ones(layers, intermediate, dtype=torch.float64)),
    }
    z = gates.get("hidden", torch.ones(hidden, dtype=torch.float64))
    expected = {"attn": (layers, hidden), "mlp": (layers, intermediate)}
    for kind, size in expected.items():
        if tuple(units[kind].shape) != size or tuple(of_layer[kind].shape) != (layers,) or tuple(z.shape) != (hidden,):
            raise ModelFileError(
                f"{file.path}: the gates do not fit the network of {layers} layers, {hidden} hidden dimensions and "
                f"{intermediate} neurons. The file is damaged, or its parts belong to different models."
            )
    live, skipped = z.nonzero()[:, 0], []

    def take(name: str, dim: int, gated: bool) -> None:
        tensor = state.get(name)
        if tensor is not None and tensor.dim() > dim and tensor.shape[dim] == hidden:
            state[name] = (scale(tensor, z, dim) if gated else tensor).index_select(dim, live).contiguous()

    for layer in range(layers):
        for kind, norm, output, inputs in (
            ("attn", "ln_1", "out_proj", ("wq", "wk", "wv")),
            ("mlp", "ln_2", "down_proj", ("gate_proj", "up_proj")),
        ):
            prefix = f"{_BLOCK}{layer}."
            if not bool(of_layer[kind][layer]):
                skipped.append(f"{layer}.{kind}")
                for name in [name for name in state if name.startswith((f"{prefix}{kind}.", f"{prefix}{norm}."))]:
                    del state[name]
                continue
            name = f"{prefix}{kind}.{output}.weight"
            factor = units[kind][layer] * of_layer[kind][layer]
            if name in state and state[name].dim() == 2 and state[name].shape[1] == factor.numel():
                state[name] = scale(state[name], factor, 1)
            take(name, 0, True)
            take(f"{prefix}{norm}.weight", 0, True)
            for weight in inputs:
                take(f"{prefix}{kind}.{weight}.weight", 1, False)
    take("transformer.wte.weight", 1, False)
    take("transformer.ln_f.weight", 0, True)
    take("transformer.output.weight", 1, False)
    return skipped


def _intermediate(state: Mapping[str, Tensor], layers: int) -> int:
    weights = [state.get(f"{_BLOCK}{layer}.mlp.up_proj.weight") for layer in range(layers)]
    return next((weight.shape[0] for weight in weights if weight is not None), 1)


def _groups(gates: Mapping[str, Tensor]) -> list[GateGroup]:
    found = []
    for kind, z in gates.items():
        rows = z.unbind() if z.dim() == 2 else [z]
        found += [
            group_of(kind if z.dim() == 1 else f"block.{index}.{kind}", row, "top-k") for index, row in enumerate(rows)
        ]
    return found
