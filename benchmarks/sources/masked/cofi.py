"""CoFiPruning: a BERT with gates on heads, neurons, hidden dimensions and sub-layers, LayerNorm over the survivors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise


class CofiLayerNorm(nn.LayerNorm):
    """Normalises the dimensions with hidden_z != 0; the others pass as they are."""

    def forward(self, input: Tensor, hidden_z: Tensor | None = None) -> Tensor:
        assert hidden_z is not None
        live = self.live
        normed = F.layer_norm(input[..., live], [len(live)], self.weight[live], self.bias[live], self.eps)
        output = input.clone()
        output[..., live] = normed
        return output

    live: Tensor


class CofiBert(nn.Module):
    """A sequence classifier with Hugging Face's parameter names; the gates are buffers beside them."""

    def __init__(self, sizes: dict[str, int], zs: dict[str, Tensor]) -> None:
        super().__init__()
        hidden, layers, inner = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["intermediate_size"]
        self.heads = sizes["num_attention_heads"]
        live = torch.where(~zs["hidden_z"].eq(0))[0]

        def norm() -> CofiLayerNorm:
            made = CofiLayerNorm(hidden, 1e-12)
            made.register_buffer("live", live, persistent=False)
            return made

        def dense_and_norm(width: int) -> nn.Module:
            block = nn.Module()
            block.dense, block.LayerNorm = nn.Linear(width, hidden), norm()
            return block

        self.bert = nn.Module()
        self.bert.embeddings = nn.Module()
        self.bert.embeddings.word_embeddings = nn.Embedding(sizes["vocab_size"], hidden)
        self.bert.embeddings.position_embeddings = nn.Embedding(sizes["max_position_embeddings"], hidden)
        self.bert.embeddings.token_type_embeddings = nn.Embedding(2, hidden)
        self.bert.embeddings.LayerNorm = norm()
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.attention, layer.intermediate = nn.Module(), nn.Module()
            layer.attention.self = nn.Module()
            for name in ("query", "key", "value"):
                layer.attention.self.add_module(name, nn.Linear(hidden, hidden))
            layer.attention.output = dense_and_norm(hidden)
            layer.intermediate.dense = nn.Linear(hidden, inner)
            layer.output = dense_and_norm(inner)
            self.bert.encoder.layer.append(layer)
        self.bert.pooler = nn.Module()
        self.bert.pooler.dense = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, 3)
        for kind, z in zs.items():
            self.register_buffer(kind, z.clone(), persistent=False)
        self.is_zero: dict[str, bool] = {}  # found on the first run, so that an export need not branch on values

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        tables = self.bert.embeddings
        hidden_z = self.hidden_z
        x = tables.word_embeddings(input_ids) + tables.position_embeddings.weight[: input_ids.shape[1]]
        x = (x + tables.token_type_embeddings(token_type_ids)).mul(hidden_z)
        x = tables.LayerNorm(x, hidden_z).mul(hidden_z)
        bias = (1.0 - attention_mask.float())[:, None, None, :] * -10000.0
        for index, layer in enumerate(self.bert.encoder.layer):
            x = self.attend(layer.attention, x, bias, index)
            inner = F.gelu(layer.intermediate.dense(x)).mul(self.intermediate_z[index])
            x = self.add(layer.output, layer.output.dense(inner) * self.mlp_z[index], x, f"{index}.mlp")
        pooled = torch.tanh(self.bert.pooler.dense(x[:, 0]))
        output: Tensor = self.classifier(pooled)
        return output

    def attend(self, layer: nn.Module, x: Tensor, bias: Tensor, index: int) -> Tensor:
        batch, length, hidden = x.shape
        width = hidden // self.heads

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width).permute(0, 2, 1, 3)

        scores = heads(layer.self.query(x)) @ heads(layer.self.key(x)).transpose(-1, -2) / math.sqrt(width)
        context = torch.softmax(scores + bias, -1) @ heads(layer.self.value(x))
        context = context * self.head_z[index]
        context = context.permute(0, 2, 1, 3).reshape(batch, length, hidden)
        out = layer.output.dense(context).mul(self.head_layer_z[index])
        return self.add(layer.output, out, x, f"{index}.attention")

    def add(self, block: nn.Module, out: Tensor, x: Tensor, name: str) -> Tensor:
        """The residual, and LayerNorm unless the sub-layer gave nothing but zeros."""
        if not torch.compiler.is_exporting():
            self.is_zero[name] = bool(out.sum().eq(0).item())
        if self.is_zero[name]:
            return out + x
        output: Tensor = block.LayerNorm(out.mul(self.hidden_z) + x, self.hidden_z).mul(self.hidden_z)
        return output


def deterministic_z(log_alpha: Tensor) -> Tensor:
    """L0Module._deterministic_z for one row (or one scalar): temperature 2/3, magical number 0.8."""
    expected = torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1)).clamp(1e-6, 1 - 1e-6).sum()
    zeros = round(log_alpha.numel() - expected.item())
    soft = torch.sigmoid(log_alpha / (2 / 3) * 0.8)
    if zeros > 0:
        if soft.ndim == 0:
            return torch.tensor(0.0)
        _, smallest = torch.topk(soft, k=zeros, largest=False)
        soft[smallest] = 0.0
    return soft


def draw_gates(sizes: dict[str, int], seed: int, open_hidden: bool = False) -> dict[str, Tensor]:
    """Gates of a trained model: about half of everything, one attention and one MLP closed."""
    generator = torch.Generator().manual_seed(seed)
    layers, heads = sizes["num_hidden_layers"], sizes["num_attention_heads"]
    inner, hidden = sizes["intermediate_size"], sizes["hidden_size"]

    def rows(count: int, shape: list[int]) -> Tensor:
        drawn = [deterministic_z(torch.randn(count, generator=generator) * 3 - 1.5) for _ in range(layers)]
        return torch.stack([row.reshape(shape) for row in drawn])

    def of_layers(closed: int) -> Tensor:
        log_alpha = torch.full((layers,), 3.0) + torch.rand(layers, generator=generator)
        log_alpha[closed] = -4.0
        return torch.stack([deterministic_z(value) for value in log_alpha])

    hidden_z = deterministic_z(torch.randn(hidden, generator=generator) * 3 + (4 if open_hidden else 0.5))
    return {
        "hidden_z": hidden_z,
        "head_z": rows(heads, [1, heads, 1, 1]),
        "head_layer_z": of_layers(layers - 1),
        "intermediate_z": rows(inner, [1, 1, inner]),
        "mlp_z": of_layers(0),
    }


def make(folder: Path, small: bool = False) -> Made:
    """The folder of the best model: config.json, pytorch_model.bin and zs.pt."""
    sizes = {
        "vocab_size": 100 if small else 3000,
        "hidden_size": 24 if small else 768,
        "num_hidden_layers": 3 if small else 4,
        "num_attention_heads": 4 if small else 12,
        "intermediate_size": 48 if small else 3072,
        "max_position_embeddings": 64 if small else 512,
        "type_vocab_size": 2,
    }
    zs = draw_gates(sizes, 7)
    net = CofiBert(sizes, zs)
    randomise(net, 8)
    for kind, z in zs.items():
        net.get_buffer(kind).copy_(z)
    generator = torch.Generator().manual_seed(9)
    shape = (2, 11) if small else (4, 64)
    ids = torch.randint(0, sizes["vocab_size"], shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[1, shape[1] * 2 // 3 :] = 0
    types = (torch.arange(shape[1]) > shape[1] // 2).long().expand_as(ids).contiguous()
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_act": "gelu", **sizes}
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    extra = {"layer_transformation.weight": torch.eye(sizes["hidden_size"])}  # of distillation
    extra["bert.embeddings.position_ids"] = torch.arange(sizes["max_position_embeddings"])[None]
    torch.save(net.state_dict() | extra, folder / "pytorch_model.bin")
    torch.save(zs, folder / "zs.pt")
    return Made(folder, net.eval(), (ids, mask, types))
