"""Let nn_pruning 0.1.2 patch a transformers BERT, and write the checkpoint folder that its trainer writes.

    pip install nn_pruning==0.1.2 transformers
    python benchmarks/sources/library/nn_pruning_masks.py OUT

One folder per setting, with expected.pth: inputs and the patched model's own logits. Scores and weights are random.
On Python 3.11 and later the package does not import; two dataclass fields of nn_pruning/modules/masked_nn.py
(`InitDirective()`) need `field(default_factory=InitDirective)`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from nn_pruning.patch_coordinator import ModelPatchingCoordinator, SparseTrainingArguments
from transformers import BertConfig, BertForSequenceClassification

SETTINGS = {
    "topk-blocks": {
        "dense_pruning_method": "topK",
        "attention_pruning_method": "topK",
        "dense_block_rows": 4,
        "dense_block_cols": 2,
        "attention_block_rows": 3,
        "attention_block_cols": 6,
        "final_threshold": 0.4,
        "bias_mask": True,
    },
    "sigmoid-1d-alt": {
        "dense_pruning_method": "sigmoied_threshold:1d_alt",
        "attention_pruning_method": "sigmoied_threshold",
        "attention_block_rows": 3,
        "attention_block_cols": 12,
        "final_threshold": 0.5,
        "bias_mask": True,
        "gelu_patch": True,
    },
    "l0-and-1d": {
        "dense_pruning_method": "threshold:1d",
        "attention_pruning_method": "l0",
        "attention_block_rows": 6,
        "attention_block_cols": 3,
        "final_threshold": 0.1,
        "bias_mask": False,
        "attention_output_with_dense": False,
    },
}


def main(folder: Path) -> None:
    """A BERT of one layer, 12 wide, with 2 heads and 24 neurons, per setting."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        num_labels=3,
        architectures=["BertForSequenceClassification"],
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 30, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    types = (torch.arange(11) > 5).long().expand_as(ids).contiguous()
    for name, setting in SETTINGS.items():
        torch.manual_seed(0)
        net = BertForSequenceClassification(config)
        arguments = SparseTrainingArguments(**setting)
        coordinator = ModelPatchingCoordinator(arguments, "cpu", None, ["logits"], None)
        coordinator.patch_model(net)
        for key, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape) * (0.4 if parameter.dim() > 1 else 0.2)
            parameter.data = noise + ("LayerNorm.weight" in key)
        net.eval()
        coordinator.schedule_threshold(training=False)
        with torch.no_grad():
            logits = net(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), target / "pytorch_model.bin")
        config.save_pretrained(target)
        (target / "sparse_args.json").write_text(json.dumps(dataclasses.asdict(arguments)))
        torch.save((ids, mask, types, logits), target / "expected.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
