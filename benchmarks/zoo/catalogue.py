"""Which models are in the zoo, how are they built, and what do they read?

Three sources: every classification model of torchvision, timm (one or more of each family, `timm_models.txt`) and
Hugging Face transformers from small configurations. No weights are downloaded.
"""

from __future__ import annotations

# ruff: noqa: C408 (configurations read best as keyword arguments)
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# models that cannot run at 224 x 224 by construction; all others that accept it do
_FIXED_SIZES = {"inception_v3": 299}
# smaller images for what would take a core many minutes at the published size; the row states it
_SMALLER_IMAGES = {
    **dict.fromkeys(("efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_m"), 160),
    **dict.fromkeys(("resnet101", "resnet152", "regnet_x_8gf", "regnet_y_8gf", "swin_s", "swin_v2_s"), 128),
    **dict.fromkeys(("convnext_small", "wide_resnet50_2", "resnext101_32x8d", "resnext101_64x4d"), 128),
    **dict.fromkeys(("regnet_x_16gf", "regnet_y_16gf", "convnext_base", "swin_b", "swin_v2_b", "vit_l_32"), 128),
    **dict.fromkeys(("vit_b_16", "vit_l_16", "vit_h_14", "beit_base_patch16_224"), 112),
    "efficientnet_v2_l": 96,
    **dict.fromkeys(("convnext_large", "regnet_x_32gf", "regnet_y_32gf", "regnet_y_128gf", "wide_resnet101_2"), 64),
    **dict.fromkeys(("nasnetalarge", "pnasnet5large"), 160),
    **dict.fromkeys(("naflexvit_base_patch16_parfac_gap", "gemma4_vit_167m"), 192),
}
# attention over five dimensions, which torch.onnx.export takes only if it is spelled out
_UNFUSED_ATTENTION = ("nest_tiny", "twins_svt_small")


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str  # source/model
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]  # batch size -> inputs
    dynamic: tuple[dict[int, str], ...]  # per input: dynamic axis -> its name
    note: str = ""


def catalogue() -> dict[str, Callable[[], Entry]]:
    """All entries by name, each built lazily because the sources take seconds to import."""
    entries: dict[str, Callable[[], Entry]] = {}
    entries.update(_torchvision())
    entries.update(_timm())
    entries.update(_transformers())
    return entries


def _image(size: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, 3, size, size),)


def _torchvision() -> dict[str, Callable[[], Entry]]:
    from torchvision import models

    def entry(name: str) -> Entry:
        arguments: dict[str, Any] = {"weights": None}
        if name in ("googlenet", "inception_v3"):
            arguments |= {"aux_logits": False, "init_weights": False}
        size, note = _image_size(name, _FIXED_SIZES.get(name, 224))
        if name.startswith("vit_"):
            arguments["image_size"] = size
        return Entry(
            f"torchvision/{name}",
            lambda: models.get_model(name, **arguments),
            _image(size),
            ({0: "batch"},),
            note,
        )

    return {f"torchvision/{n}": (lambda n=n: entry(n)) for n in models.list_models(module=models)}


def _image_size(name: str, usual: int) -> tuple[int, str]:
    """(pixels, note) of a model of this name."""
    size = _SMALLER_IMAGES.get(name)
    return (usual, "") if size is None else (size, f"images of {size} x {size}")


def timm_models() -> dict[str, float]:
    """Model name -> parameters in millions, from `timm_models.txt`."""
    lines = (Path(__file__).parent / "timm_models.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {model: float(millions) for _, model, millions in rows}


def millions_of_parameters() -> dict[str, float]:
    """Approximate size of every entry, to run the zoo in order of increasing size."""
    from torchvision import models

    sizes = {f"timm/{name}": size for name, size in timm_models().items()}
    for name in models.list_models(module=models):
        sizes[f"torchvision/{name}"] = models.get_model_weights(name).DEFAULT.meta["num_params"] / 1e6  # type: ignore[attr-defined]
    return sizes | dict.fromkeys(_transformers(), 0.3)


def _timm() -> dict[str, Callable[[], Entry]]:
    def entry(name: str) -> Entry:
        import timm

        published = timm.get_pretrained_cfg(name)
        size, note = _image_size(name, published.input_size[-1] if published else 224)
        arguments = {"img_size": size} if name.startswith("beit_") else {}
        fused = name not in _UNFUSED_ATTENTION

        def build() -> nn.Module:
            before = timm.layers.use_fused_attn()
            timm.layers.set_fused_attn(fused)
            try:
                return timm.create_model(name, **arguments)
            finally:
                timm.layers.set_fused_attn(before)

        return Entry(f"timm/{name}", build, _image(size), ({0: "batch"},), note if fused else "attention spelled out")

    return {f"timm/{n}": (lambda n=n: entry(n)) for n in timm_models()}


class _Logits(nn.Module):
    """A transformers model with tensors in and one or more tensors out."""

    def __init__(self, model: nn.Module, arguments: tuple[str, ...], results: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.results = results

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.arguments, inputs, strict=True)))
        return tuple(getattr(output, name) for name in self.results)


def _tokens(batch: int, length: int = 16, vocabulary: int = 500) -> Tensor:
    return torch.randint(3, vocabulary, (batch, length))


def _mask(batch: int, length: int = 16) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return mask


def _transformers() -> dict[str, Callable[[], Entry]]:
    text = dict(vocab_size=500, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192)
    decoder = text | {"num_key_value_heads": 2, "use_cache": False, "max_position_embeddings": 128}
    sequence = {0: "batch", 1: "sequence"}
    batch = {0: "batch"}

    def encoder_inputs(n: int) -> tuple[Tensor, ...]:
        return _tokens(n), _mask(n)

    def table() -> dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...], Any, Any]]:
        """name: (class, configuration, arguments, results, inputs, dynamic axes)."""
        ids = ("input_ids", "attention_mask")
        both = (sequence, sequence)
        pixels = (lambda n: (torch.randn(n, 3, 32, 32),), (batch,))
        vision = dict(
            image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=192, num_labels=10,
        )  # fmt: skip
        rows: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...], Any, Any]] = {}
        for name, stem in (("bert", "Bert"), ("roberta", "Roberta"), ("electra", "Electra"), ("albert", "Albert")):
            extra = {"embedding_size": 64} if name in ("electra", "albert") else {}
            rows[name] = (
                f"{stem}ForSequenceClassification", text | extra | {"num_labels": 7, "max_position_embeddings": 128},
                ids, ("logits",), encoder_inputs, both,
            )  # fmt: skip
        rows["distilbert"] = (
            "DistilBertForSequenceClassification",
            dict(vocab_size=500, dim=64, n_layers=3, n_heads=4, hidden_dim=192, num_labels=7),
            ids, ("logits",), encoder_inputs, both,
        )  # fmt: skip
        rows["gpt2"] = (
            "GPT2LMHeadModel",
            dict(vocab_size=500, n_embd=64, n_layer=3, n_head=4, n_positions=128, use_cache=False),
            ids, ("logits",), encoder_inputs, both,
        )  # fmt: skip
        rows["opt"] = (
            "OPTForCausalLM",
            dict(vocab_size=500, hidden_size=64, num_hidden_layers=3, ffn_dim=192, num_attention_heads=4,
                 max_position_embeddings=128, word_embed_proj_dim=64, use_cache=False),
            ids, ("logits",), encoder_inputs, both,
        )  # fmt: skip
        rows["gpt_neox"] = (
            "GPTNeoXForCausalLM", text | {"use_cache": False, "max_position_embeddings": 128},
            ids, ("logits",), encoder_inputs, both,
        )  # fmt: skip
        for name, stem in (
            ("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("gemma", "Gemma"),
            ("phi3", "Phi3"),
        ):  # fmt: skip
            extra = {"head_dim": 16} if name in ("qwen3", "gemma", "mistral") else {}
            extra |= {"pad_token_id": 0} if name == "phi3" else {}
            rows[name] = (f"{stem}ForCausalLM", decoder | extra, ids, ("logits",), encoder_inputs, both)
        rows["mamba"] = (
            "MambaForCausalLM",
            dict(vocab_size=500, hidden_size=64, num_hidden_layers=2, state_size=8, use_cache=False),
            ("input_ids",), ("logits",), lambda n: (_tokens(n),), (batch,),
        )  # fmt: skip
        rows["t5"] = (
            "T5ForConditionalGeneration",
            # the width of T5-small: what separates its shared position bias costs more than it saves in a toy
            dict(vocab_size=500, d_model=512, d_kv=64, d_ff=2048, num_layers=2, num_heads=8, use_cache=False,
                 decoder_start_token_id=0),
            ("input_ids", "attention_mask", "decoder_input_ids"), ("logits",),
            lambda n: (_tokens(n), _mask(n), _tokens(n, 8)), (sequence, sequence, {0: "batch", 1: "target"}),
        )  # fmt: skip
        rows["vit"] = ("ViTForImageClassification", vision, ("pixel_values",), ("logits",), *pixels)
        rows["deit"] = ("DeiTForImageClassification", vision, ("pixel_values",), ("logits",), *pixels)
        rows["swin"] = (
            "SwinForImageClassification",
            dict(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4,
                 num_labels=10),
            ("pixel_values",), ("logits",), *pixels,
        )  # fmt: skip
        rows["convnext"] = (
            "ConvNextForImageClassification",
            dict(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], num_labels=10, image_size=64),
            ("pixel_values",), ("logits",), lambda n: (torch.randn(n, 3, 64, 64),), (batch,),
        )  # fmt: skip
        part = dict(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, projection_dim=32
        )
        rows["clip"] = (
            "CLIPModel",
            dict(
                text_config=part | {"vocab_size": 500, "max_position_embeddings": 32, "eos_token_id": 2},
                vision_config=part | {"image_size": 32, "patch_size": 8}, projection_dim=32,
            ),
            ("input_ids", "pixel_values"), ("logits_per_image",),
            lambda n: (_tokens(n), torch.randn(n, 3, 32, 32)), (batch, batch),
        )  # fmt: skip
        rows["whisper"] = (
            "WhisperForConditionalGeneration",
            dict(
                vocab_size=500, num_mel_bins=16, d_model=64, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192,
                max_source_positions=32, max_target_positions=32, use_cache=False, pad_token_id=0, bos_token_id=1,
                eos_token_id=2, decoder_start_token_id=1,
            ),
            ("input_features", "decoder_input_ids"), ("logits",),
            lambda n: (torch.randn(n, 16, 64), _tokens(n, 8)), (batch, batch),
        )  # fmt: skip
        rows["wav2vec2"] = (
            "Wav2Vec2ForCTC",
            dict(
                vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
                conv_dim=(32, 32, 32), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3), num_feat_extract_layers=3,
                num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, apply_spec_augment=False,
            ),
            ("input_values",), ("logits",), lambda n: (torch.randn(n, 800),), (batch,),
        )  # fmt: skip
        return rows

    def entry(name: str) -> Entry:
        import transformers

        class_name, configuration, arguments, results, inputs, dynamic = table()[name]
        model_class = getattr(transformers, class_name)

        def build() -> nn.Module:
            return _Logits(model_class(model_class.config_class(**configuration)), arguments, results)

        return Entry(f"transformers/{name}", build, inputs, dynamic, "small configuration")

    return {f"transformers/{n}": (lambda n=n: entry(n)) for n in table()}
