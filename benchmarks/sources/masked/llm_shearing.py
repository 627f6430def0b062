"""LLM-Shearing: a LLaMA with gates on heads, neurons, hidden dimensions and layers, RMSNorm over the live ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise


class MaskedRmsNorm(nn.Module):
    """weight * x / sqrt(mean over live of x^2 + eps) * hidden_z."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, hidden_z: Tensor, live: Tensor) -> Tensor:
        variance = x.index_select(-1, live).float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)) * hidden_z


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class MaskedLlama(nn.Module):
    """ComposerMosaicLlama with its l0_module inside: gates are evaluated once, in eval mode."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        hidden, inner, layers = sizes["hidden"], sizes["intermediate"], sizes["layers"]
        self.heads, self.sizes = sizes["heads"], sizes
        self.model = nn.Module()
        blocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.ln_1, block.ln_2 = MaskedRmsNorm(hidden), MaskedRmsNorm(hidden)
            block.attn, block.mlp = nn.Module(), nn.Module()
            for name in ("wq", "wk", "wv", "out_proj"):
                block.attn.add_module(name, nn.Linear(hidden, hidden, bias=False))
            block.attn.rotary_emb = nn.Module()
            frequencies = 1.0 / (10000 ** (torch.arange(0, hidden // self.heads, 2).float() / (hidden // self.heads)))
            block.attn.rotary_emb.register_buffer("inv_freq", frequencies)
            block.mlp.gate_proj, block.mlp.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
            block.mlp.down_proj = nn.Linear(inner, hidden, bias=False)
            blocks.append(block)
        self.model.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(sizes["vocabulary"], hidden),
                "blocks": blocks,
                "ln_f": MaskedRmsNorm(hidden),
                "output": nn.Linear(hidden, sizes["vocabulary"], bias=False),
            }
        )
        self.model.l0_module = nn.Module()
        masks = nn.ModuleDict()
        shapes = {
            "hidden": (hidden,),
            "head": (layers, self.heads),
            "intermediate": (layers, inner),
            "layer": (layers,),
        }
        for kind, shape in shapes.items():
            masks[kind] = nn.Module()
            masks[kind].z_loga = nn.Parameter(torch.zeros(shape))
        self.model.l0_module.masks = masks
        self.model.l0_module.lambdas = nn.ParameterDict()
        self.zs: dict[str, Tensor] = {}

    def evaluate(self, targets: dict[str, int] | None) -> None:
        """deterministic_z: rows of the last axis; with a target architecture, exactly size - target are closed."""
        for kind, mask in self.model.l0_module.masks.items():
            log_alpha = mask.z_loga.detach().clamp(math.log(1e-2), math.log(1e2))
            rows = []
            for row in log_alpha.reshape(-1, log_alpha.shape[-1]):
                if targets is None:
                    scores = torch.sigmoid(row - 2 / 3 * math.log(0.1 / 1.1)).clamp(1e-6, 1 - 1e-6)
                    zeros = round(row.numel() - scores.sum().item())
                else:
                    zeros = row.numel() - targets[kind]
                soft = torch.sigmoid(row / (2.0 / 3.0) * 0.8)
                _, smallest = torch.topk(soft, k=zeros, largest=False)
                soft[smallest] = 0.0
                rows.append(soft)
            self.zs[kind] = torch.stack(rows).reshape(log_alpha.shape)
        self.live = torch.where(~self.zs["hidden"].eq(0))[0]

    def forward(self, input_ids: Tensor) -> Tensor:
        network, hidden_z = self.model.transformer, self.zs["hidden"]
        x = network["wte"](input_ids)
        for index, block in enumerate(network["blocks"]):
            x = x + self.attend(block.attn, block.ln_1(x, hidden_z, self.live), index)
            m = block.ln_2(x, hidden_z, self.live)
            up = block.mlp.up_proj(m) * self.zs["intermediate"][index]
            down = block.mlp.down_proj(F.silu(block.mlp.gate_proj(m)) * up)
            x = x + down * self.zs["layer"][index] * hidden_z
        output: Tensor = network["output"](network["ln_f"](x, hidden_z, self.live))
        return output

    def attend(self, attention: nn.Module, x: Tensor, index: int) -> Tensor:
        batch, length, hidden = x.shape
        width = hidden // self.heads

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width).transpose(1, 2)

        angles = torch.einsum("i,j->ij", torch.arange(length).float(), attention.rotary_emb.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        query, key = heads(attention.wq(x)), heads(attention.wk(x))
        query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
        future = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(width) + future, -1)
        context = (weights @ heads(attention.wv(x))) * self.zs["head"][index].view(1, -1, 1, 1)
        out = attention.out_proj(context.transpose(1, 2).reshape(batch, length, hidden))
        return out * self.zs["layer"][index] * self.zs["hidden"]


def make(folder: Path, small: bool = False, network: str = "") -> Made:
    """The model's state dict in a Composer checkpoint without other objects; network "target" has a target size."""
    sizes = {
        "vocabulary": 90 if small else 2000,
        "hidden": 24 if small else 512,
        "heads": 3 if small else 8,
        "intermediate": 40 if small else 1376,
        "layers": 3 if small else 4,
    }
    net = MaskedLlama(sizes)
    randomise(net, 11)
    for block in net.model.transformer["blocks"]:
        width = sizes["hidden"] // sizes["heads"]
        block.attn.rotary_emb.inv_freq.copy_(1.0 / (10000 ** (torch.arange(0, width, 2).float() / width)))
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for kind, mask in net.model.l0_module.masks.items():
            mask.z_loga.copy_(
                torch.randn(mask.z_loga.shape, generator=generator) * 2.5 - (0.5 if kind != "layer" else 1)
            )
        net.model.l0_module.masks["layer"].z_loga[0] = 4.0
    options: dict[str, str] = {}
    targets = None
    if network == "target":
        targets = {"hidden": sizes["hidden"] // 2, "head": sizes["heads"] // 2 + 1, "layer": sizes["layers"] - 1}
        targets["intermediate"] = sizes["intermediate"] // 2
        names = {"hidden": "target_hidden", "head": "target_heads", "layer": "target_layers"}
        names["intermediate"] = "target_intermediate"
        options = {names[kind]: str(value) for kind, value in targets.items()}
        for kind in targets:
            net.model.l0_module.lambdas[f"lambda_1_{kind}"] = nn.Parameter(torch.tensor(0.0))
            net.model.l0_module.lambdas[f"lambda_2_{kind}"] = nn.Parameter(torch.tensor(0.0))
    net.evaluate(targets)
    path = folder / "latest-rank0.pt"
    torch.save({"state": {"model": net.state_dict(), "run_name": "prune"}, "rng": []}, path)
    ids = torch.randint(0, sizes["vocabulary"], (2, 9) if small else (2, 64), generator=generator)
    return Made(path, net.eval(), (ids,), {"options": options} if options else {})
