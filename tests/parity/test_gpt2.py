"""Our GPT against `GPT2LMHeadModel` of transformers with equal weights: logits, text, and a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.models.gpt import GPT, GPTConfig
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.train import Trainer
from deepseek.train.step import TrainStep

transformers = pytest.importorskip("transformers")

CONFIG = GPTConfig(vocab_size=97, max_length=40, num_layers=3, d_model=48, num_heads=4)


def theirs(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=97,
        n_positions=40,
        n_embd=48,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=96,
        pad_token_id=96,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, and far enough from zero to show a misplaced one
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def their_names(model: Any) -> dict[str, Tensor]:
    """Return their weights under our names; their `Conv1D` holds a matrix the other way round."""
    found = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("transformer.")
        for old, new in (
            ("wte.", "token_embedding."),
            ("wpe.", "position_embedding."),
            ("ln_f.", "norm."),
            ("h.", "blocks."),
            ("ln_1.", "attention_norm."),
            ("ln_2.", "feed_forward_norm."),
            ("attn.c_attn.", "attention.qkv."),
            ("attn.c_proj.", "attention.out."),
            ("mlp.c_fc.", "feed_forward.up."),
            ("mlp.c_proj.", "feed_forward.down."),
        ):
            name = name.replace(old, new)
        turned = name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))
        found[name] = tensor.T.contiguous() if turned else tensor.clone()
    return found


def ours(model: Any) -> GPT:
    gpt = GPT(CONFIG)
    gpt.load_state_dict(their_names(model))
    return gpt.eval()


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 40)])
@pytest.mark.parametrize("grad", [True, False], ids=["training kernel", "inference kernel"])
def test_equal_weights_give_equal_logits(shape: tuple[int, int], grad: bool) -> None:
    model, ids = theirs(), torch.randint(97, shape)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(ours(model)(ids), model(ids).logits, atol=1e-5, rtol=1e-5)


def test_equal_weights_give_equal_greedy_text() -> None:
    for seed in range(3):
        model, ids = theirs(seed), torch.randint(1, 90, (1, 5))
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, eos_token_id=None
        )
        assert torch.equal(ours(model).generate(ids, max_new_tokens=30), wanted)


def test_greedy_text_with_a_penalty_and_an_end_is_theirs_too() -> None:
    model, ids = theirs(), torch.randint(1, 90, (1, 5))
    gpt = ours(model)
    plain = gpt.generate(ids, max_new_tokens=30, repetition_penalty=1.3)
    for eos_id in (None, int(plain[0, 20])):
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            repetition_penalty=1.3,
            eos_token_id=eos_id,
        )
        found = gpt.generate(ids, max_new_tokens=30, repetition_penalty=1.3, eos_id=eos_id)
        assert torch.equal(found, wanted)


def decayed_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def test_training_steps_equal_a_loop_by_hand_over_their_model() -> None:
    reference = theirs().train()
    gpt = ours(reference).train()
    batches = [torch.randint(97, (4, 21)) for _ in range(4)]
    optimizer = torch.optim.AdamW(decayed_groups(reference), lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    step = TrainStep(
        gpt,
        LanguageModeling(),
        torch.optim.AdamW(decayed_groups(gpt), lr=1e-3, betas=(0.9, 0.95), eps=1e-6),
        Precision("fp32", torch.device("cpu")),
    )
    for batch in batches:
        logits = reference(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update = step([{"input_ids": batch[:, :-1], "labels": batch[:, 1:]}])
        assert update.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert update.grad_norm == pytest.approx(float(norm), rel=1e-4)
    wanted = their_names(reference)
    for name, tensor in gpt.state_dict().items():
        if name.endswith("qkv.bias"):  # the part of the keys has no gradient but rounding: AdamW makes it a step
            tensor, wanted[name] = (torch.cat([t[:48], t[96:]]) for t in (tensor, wanted[name]))
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_trainer_does_what_a_loop_by_hand_does() -> None:
    data = [torch.randint(97, (4, 21)) for _ in range(5)]
    batches = [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]} for ids in data]
    gpt, by_hand = ours(theirs()), ours(theirs()).train()
    optimizer = torch.optim.AdamW(decayed_groups(by_hand), lr=2e-3, betas=(0.9, 0.95), fused=True)
    losses = []
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 4)
        batch = batches[step % 5]
        loss = F.cross_entropy(by_hand(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    trainer = Trainer(
        model=gpt,
        train_dataset=batches,
        learning_rate=2e-3,
        schedule="constant",
        warmup_steps=4,
        weight_decay=0.1,
        precision="fp32",
        compile=False,
    )
    assert trainer.train(epochs=2).losses == pytest.approx(losses, rel=1e-4)
