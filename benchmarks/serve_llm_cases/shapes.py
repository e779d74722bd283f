"""The models of `serve_llm`: random weights that are bf16 numbers, saved once as transformers saves them.

Sizes are those of GPT-2 small (124M), SmolLM-135M and Qwen2.5-0.5B; the last two as Llama. All sides read one folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.serve.text.weights import WeightForm


@dataclass(frozen=True)
class Shape:
    """One language model of transformers."""

    name: str
    model_class: str
    settings: Mapping[str, Any]
    toy_settings: Mapping[str, Any] = field(default_factory=dict)

    def toy(self) -> Shape:
        """Return the same at a size that runs in milliseconds."""
        return replace(self, settings={**self.settings, **self.toy_settings})

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self.settings["vocab_size"])

    def prepare(self, folder: Path) -> None:
        """Draw the weights and save them in `folder`."""
        import transformers

        model_class = getattr(transformers, self.model_class)
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**self.settings)).to(torch.bfloat16)
        # without an end every answer has the length it is asked for
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        model.save_pretrained(folder)

    def theirs(self, folder: Path, dtype: torch.dtype) -> Any:
        """Read the weights as transformers' model, with PyTorch's attention kernels."""
        import transformers

        model_class = getattr(transformers, self.model_class)
        return model_class.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()

    def ours(self, folder: Path, form: WeightForm) -> nn.Module:
        """Read the same weights as our model, ready to serve in `form`."""
        from deepseek.models.pretrained.front import from_pretrained
        from deepseek.serve.text.weights import prepare_weights

        return prepare_weights(from_pretrained(folder, dtype=torch.bfloat16), form)

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        """Return `length` random tokens."""
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randint(self.vocab_size, (length,), generator=generator).tolist()


_TOY_LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_LLAMA = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "gpt2-124m",
            "GPT2LMHeadModel",
            {"vocab_size": 50257, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
            {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4},
        ),
        Shape(
            "llama-135m",
            "LlamaForCausalLM",
            {
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                **_LLAMA,
            },
            _TOY_LLAMA,
        ),
        Shape(
            "llama-0.5b",
            "LlamaForCausalLM",
            {
                "vocab_size": 151936,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                **_LLAMA,
            },
            _TOY_LLAMA,
        ),
    )
}


def relative_gap(found: Tensor, reference: Tensor) -> float:
    """Return the root mean square of the difference as a share of the reference's deviation."""
    return float((found.double() - reference.double()).square().mean().sqrt() / reference.double().std())
