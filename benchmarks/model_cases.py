"""What `benchmarks.models` compares: models of transformers by their configs, with inputs; and a mixture of experts.

Their weights are drawn once and saved; ours reads the same files through `from_pretrained`. Dropout is off, so that
outputs and gradients can be held against each other. Each case has a toy size for the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One model of transformers and the batch it is timed on."""

    name: str
    model_class: str
    settings: Mapping[str, Any]
    """Values of its config that differ from the class's defaults."""
    picks: tuple[str, ...] = ("logits",)
    """Which of its outputs ours answers with, in order."""
    batch_size: int = 4
    time: int | None = 128
    """Tokens a row; None for images."""
    toy_settings: Mapping[str, Any] = field(default_factory=dict)

    def toy(self) -> Case:
        """Return the same at a size that runs in milliseconds."""
        settings = {**self.settings, **self.toy_settings}
        return replace(self, settings=settings, batch_size=2, time=self.time and 12)

    def prepare(self, folder: Path) -> None:
        """Draw the model's weights and save them in `folder`."""
        import transformers

        model_class = getattr(transformers, self.model_class)
        torch.manual_seed(0)
        model_class(model_class.config_class(**self.settings)).save_pretrained(folder)

    def theirs(self, folder: Path) -> nn.Module:
        """Read the weights as transformers' model, with PyTorch's attention kernels."""
        import transformers

        extra = {"use_cache": False} if "CausalLM" in self.model_class or "LMHead" in self.model_class else {}
        model_class = getattr(transformers, self.model_class)
        kernels = {"attn_implementation": "sdpa"} if self.time or "patch_size" in self.settings else {}
        model: nn.Module = model_class.from_pretrained(folder, dtype=torch.float32, **kernels, **extra)
        return model

    def ours(self, folder: Path) -> nn.Module:
        """Read the same weights as our model."""
        from deepseek.models.pretrained.front import from_pretrained

        return from_pretrained(folder, dtype=torch.float32)

    def inputs(self) -> Inputs:
        """Return a seeded batch under the names that both know."""
        generator = torch.Generator().manual_seed(1)
        if self.time is None:
            size = int(self.settings["image_size"])
            return {"pixel_values": torch.randn(self.batch_size, 3, size, size, generator=generator)}
        shape = (self.batch_size, self.time)
        return {"input_ids": torch.randint(int(self.settings["vocab_size"]), shape, generator=generator)}

    def tensors(self, found: Any) -> list[Tensor]:
        """Return the tensors to compare, of their answer or of ours."""
        if hasattr(found, self.picks[0]) and not isinstance(found, tuple):
            return [getattr(found, name) for name in self.picks]
        return [found] if isinstance(found, Tensor) else list(found)


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TOY_TEXT = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48}
CASES = {
    case.name: case
    for case in (
        Case(
            "bert-base",
            "BertModel",
            {"vocab_size": 30522, **_NO_DROPOUT},
            picks=("last_hidden_state", "pooler_output"),
            toy_settings={**_TOY_TEXT, "num_hidden_layers": 2, "num_attention_heads": 4},
        ),
        Case(
            "gpt2-small",
            "GPT2LMHeadModel",
            {"vocab_size": 50257, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
            toy_settings={"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        ),
        Case(
            "llama-small",
            "LlamaForCausalLM",
            {
                "vocab_size": 32000,
                "hidden_size": 768,
                "intermediate_size": 2048,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "num_key_value_heads": 4,
                "max_position_embeddings": 1024,
            },
            toy_settings={**_TOY_TEXT, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        ),
        Case(
            "vit-b16",
            "ViTForImageClassification",
            {"image_size": 224, "patch_size": 16, "num_labels": 1000, **_NO_DROPOUT},
            time=None,
            toy_settings={
                "image_size": 16,
                "patch_size": 4,
                "num_labels": 5,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
        ),
        Case(
            "resnet50",
            "ResNetForImageClassification",
            {"image_size": 224, "num_labels": 1000},
            time=None,
            toy_settings={
                "image_size": 64,
                "num_labels": 5,
                "embedding_size": 8,
                "hidden_sizes": [16, 32],
                "depths": [1, 2],
            },
        ),
    )
}


@dataclass(frozen=True)
class MoECase:
    """A layer of many small experts in bfloat16: 64 with 6 a token as DeepSeek-V2-Lite has them (arXiv:2405.04434)."""

    d_model: int = 512
    d_ff: int = 128
    num_experts: int = 64
    top_k: int = 6
    batch_size: int = 4
    time: int = 128

    def toy(self) -> MoECase:
        """Return the same at a size that runs in milliseconds."""
        return MoECase(d_model=16, d_ff=8, num_experts=6, top_k=2, batch_size=2, time=5)

    def ours(self) -> nn.Module:
        """Return our layer with seeded weights."""
        from deepseek.nn.moe import MoE
        from deepseek.nn.moe_config import MoEConfig

        torch.manual_seed(0)
        sizes = {"num_experts": self.num_experts, "top_k": self.top_k, "d_ff": self.d_ff}
        return _OutputOf(MoE(self.d_model, MoEConfig(num_shared=0, **sizes))).bfloat16()

    def loop(self) -> nn.Module:
        """Return the loop with the same weights."""
        return LoopMoE(self.ours(), self.top_k)

    def inputs(self) -> Inputs:
        """Return a seeded batch."""
        generator = torch.Generator().manual_seed(1)
        return {"x": torch.randn(self.batch_size, self.time, self.d_model, generator=generator).bfloat16()}


MOE_CASES = {"moe-64": MoECase(), "moe-256": MoECase(num_experts=256, top_k=8)}
"""The second has as many experts, and as many a token, as DeepSeek-V3 (arXiv:2412.19437)."""


class _OutputOf(nn.Module):
    """Our layer without its statistics."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


class LoopMoE(nn.Module):
    """The loop that everyone would write: for each expert, gather its tokens, compute, add at their places."""

    def __init__(self, ours: nn.Module, top_k: int) -> None:
        super().__init__()
        weights = {name.rpartition("layer.")[2]: value.detach().clone() for name, value in ours.named_parameters()}
        self.router = nn.Parameter(weights["router.weight"])
        stacked = [weights[f"experts.{name}"] for name in ("gate", "up", "down")]
        self.experts = nn.ModuleList(
            nn.ParameterList(nn.Parameter(part[expert].clone()) for part in stacked)  # type: ignore[misc]
            for expert in range(len(self.router))
        )
        self.top_k = top_k

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        tokens = x.flatten(0, 1)
        scores = F.linear(tokens.float(), self.router.float()).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if token.numel() == 0:
                continue
            gate, up, down = expert
            rows = tokens[token]
            rows = F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
            out.index_add_(0, token, rows * weights[token, place, None].to(rows.dtype))
        return out.view(x.shape)
