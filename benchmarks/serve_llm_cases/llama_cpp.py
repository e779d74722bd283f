"""llama.cpp as a contestant: our models' weights written in its file format, and greedy decoding by its own calls.

Weights of 16 bits are f16; of 8 bits Q8_0; of 4 bits Q4_0 with embeddings and output layer in Q8_0, as ours has them.
Source: the GGUF format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.serve_llm_cases.shapes import Shape
from deepseek.serve.text.weights import WeightForm

FORMS: dict[str, tuple[WeightForm, str]] = {"16": ("bf16", "F16"), "8": ("int8", "Q8_0"), "4": ("int4", "Q4_0")}

_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Values = npt.NDArray[np.float32]


def tensors(shape: Shape, folder: Path) -> Iterator[tuple[str, Values]]:
    """Yield the model's tensors under llama.cpp's names, laid out as it wants them."""
    model, gpt2 = shape.theirs(folder, torch.float32), shape.model_class.startswith("GPT2")
    base = "transformer" if gpt2 else "model"
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    names = names if gpt2 else {"embed_tokens": "token_embd", "norm": "output_norm"}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix(f"{base}.").split(".")
        if parts[0] in ("h", "layers"):
            middle = (_GPT2 if gpt2 else _LLAMA)[".".join(parts[2:-1])]
            value = parameter.detach().numpy()
            if gpt2 and value.ndim == 2:
                value = value.T  # transformers keeps GPT-2's as (in, out)
            if middle in ("attn_q", "attn_k"):
                heads = shape.settings["num_attention_heads" if middle == "attn_q" else "num_key_value_heads"]
                # there the pairs that are turned lie side by side
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{parts[1]}.{middle}.{parts[-1]}", np.ascontiguousarray(value)
        elif parts[0] in names:
            yield f"{names[parts[0]]}.{parts[-1]}", parameter.detach().numpy()


def write_gguf(shape: Shape, folder: Path, path: Path, kind: str) -> None:
    """Write the model as a GGUF file whose matrices are of `kind`: F16, Q8_0 or Q4_0."""
    import gguf

    gpt2, settings = shape.model_class.startswith("GPT2"), shape.settings
    config = shape.theirs(folder, torch.bfloat16).config
    writer = gguf.GGUFWriter(path, "gpt2" if gpt2 else "llama")
    writer.add_context_length(2048 if not gpt2 else config.n_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(shape.vocab_size)
    if gpt2:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(settings["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("none")
    for name, value in tensors(shape, folder):
        chosen = "F32" if value.ndim == 1 or name.startswith("position") else kind
        if chosen == "Q4_0" and name.startswith("token"):
            chosen = "Q8_0"
        as_type = gguf.GGMLQuantizationType[chosen]
        writer.add_tensor(name, gguf.quants.quantize(value, as_type), raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A context of llama.cpp, called without the Python layer above its C functions."""

    def __init__(self, path: Path, length: int, threads: int) -> None:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        self._lib = llama_cpp
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, None)
        self._quiet = quiet  # C keeps no reference to it
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't read {path.name}")
        around = llama_cpp.llama_context_default_params()
        around.n_ctx, around.n_batch, around.n_threads, around.n_threads_batch = length, length, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, around)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def __call__(self, prompt: Sequence[int], new: int) -> list[int]:
        """Return `new` greedy tokens that follow `prompt`."""
        found = [int(self.logits(prompt).argmax())]
        while len(found) < new:
            found.append(int(self._decode(found[-1:]).argmax()))
        return found

    def logits(self, prompt: Sequence[int]) -> Values:
        """Return the logits behind `prompt`, (vocab_size,)."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._decode(prompt)

    def _decode(self, tokens: Sequence[int]) -> Values:
        array = (self._lib.llama_token * len(tokens))(*tokens)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama.cpp could not decode")
        place = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(place, shape=(self._vocab_size,)).copy()
