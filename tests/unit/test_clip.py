"""CLIP: the loss by its formula, where a text is read out, the audio tower, learning of pairs, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models.clip import CLIP, CLIPAudioOutput, CLIPConfig, CLIPOutput
from deepseek.nn.activations import ACTIVATIONS
from deepseek.nn.contrastive_loss import contrastive_loss

TEXT = {"vocab_size": 31, "max_length": 9, "num_layers": 1, "d_model": 16, "num_heads": 2}
IMAGE = {"image_size": 12, "patch_size": 4, "num_layers": 1, "d_model": 16, "num_heads": 2}
AUDIO = {"num_mels": 6, "max_frames": 21, "num_layers": 1, "d_model": 16, "num_heads": 2}


def tiny(*, audio: bool = True, **text: Any) -> CLIP:
    torch.manual_seed(0)
    values = {"text": {**TEXT, **text}, "image": IMAGE, "audio": AUDIO if audio else None, "projection_dim": 8}
    return CLIP(CLIPConfig(**values))


def ids() -> Tensor:
    return torch.tensor([[3, 4, 30, 1, 1], [5, 6, 7, 8, 30]])


def test_the_loss_is_the_cross_entropy_of_rows_and_columns() -> None:
    first, second = torch.randn(2, 4, 5).softmax(-1)
    total = 0.0
    for i in range(4):
        for one, other in ((first, second), (second, first)):
            scores = [3.0 * float(one[i] @ other[j]) for j in range(4)]
            total += math.log(sum(map(math.exp, scores))) - scores[i]
    assert float(contrastive_loss(first, second, 3.0)) == pytest.approx(total / 8, rel=1e-5)
    assert float(contrastive_loss(torch.eye(4), torch.eye(4), 100.0)) < 1e-6
    same = torch.ones(6, 2)
    assert float(contrastive_loss(same, same, 9.0)) == pytest.approx(math.log(6), rel=1e-5)
    with pytest.raises(ModelError, match="pairs"):
        contrastive_loss(first, second[:3], 1.0)


def test_quick_gelu_is_near_gelu() -> None:
    x = torch.linspace(-4, 4, 81)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), ACTIVATIONS["gelu"](x), atol=0.021, rtol=0)


@pytest.mark.parametrize("eos_id", [None, 30])
def test_what_follows_the_end_of_a_text_does_not_count(eos_id: int | None) -> None:
    model, text = tiny(eos_id=eos_id).eval(), ids()
    changed = text.clone()
    changed[0, 3:] = torch.tensor([9, 2])
    torch.testing.assert_close(model.encode_text(changed), model.encode_text(text))
    changed[0, 1] = 9
    assert not torch.allclose(model.encode_text(changed)[0], model.encode_text(text)[0])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(model.encode_text(text, mask), model.encode_text(text))


def test_vectors_of_all_towers_are_of_length_one_in_one_space() -> None:
    model = tiny().eval()
    output = model(ids(), torch.randn(3, 3, 12, 12), input_features=torch.randn(4, 6, 21))
    assert isinstance(output, CLIPAudioOutput)
    for embeds, batch in ((output.text_embeds, 2), (output.image_embeds, 3), (output.audio_embeds, 4)):
        assert embeds.shape == (batch, 8)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(batch))
    assert output.logit_scale.item() == pytest.approx(1 / 0.07)
    without = model(ids(), torch.randn(3, 3, 12, 12))
    assert isinstance(without, CLIPOutput)
    assert model.encode_audio(torch.randn(1, 6, 1)).shape == (1, 8)


def test_pairs_are_learned_across_all_three_towers() -> None:
    model = tiny().train()
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(30, (6, 5), generator=generator)
    text[:, -1] = 30
    images, sounds = torch.randn(6, 3, 12, 12, generator=generator), torch.randn(6, 6, 20, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(30):
        output = model(text, images, input_features=sounds)
        loss = contrastive_loss(output.text_embeds, output.image_embeds, output.logit_scale)
        loss = loss + contrastive_loss(output.text_embeds, output.audio_embeds, output.logit_scale)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = model.eval()(text, images, input_features=sounds)
    for embeds in (output.image_embeds, output.audio_embeds):
        assert (output.text_embeds @ embeds.T).argmax(-1).tolist() == list(range(6))


def test_refusals_name_the_argument_or_the_nearest_value() -> None:
    model, image = tiny(audio=False), torch.randn(1, 3, 12, 12)
    for wrong, name in (
        ((ids() + 1, image), "input_ids"),
        ((torch.ones(1, 10, dtype=torch.int64), image), "max_length = 9"),
        ((ids(), image[:, :2]), "pixel_values"),
        ((ids(), torch.randn(1, 3, 12, 13)), "pixel_values"),
        ((ids(), image, torch.ones(2, 4)), "attention_mask"),
        ((ids(), image, None, torch.randn(1, 6, 9)), "audio"),
    ):
        with pytest.raises(ModelError, match=name):
            model(*wrong)
    with pytest.raises(ModelError, match="input_features"):
        tiny().encode_audio(torch.randn(1, 6, 22))
    for wrong, nearest in (
        ({"text": {**TEXT, "eos_id": 31}}, "eos_id 30"),
        ({"text": {**TEXT, "num_heads": 3}}, "num_heads 2"),
        ({"image": {**IMAGE, "patch_size": 13}}, "patch_size 12"),
        ({"audio": {**AUDIO, "d_model": 15}}, "d_model 16"),
    ):
        with pytest.raises(ConfigError, match=nearest):
            CLIPConfig(**wrong)
