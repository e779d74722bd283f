"""Our CLIP against `CLIPModel` of transformers with equal weights: vectors, gradients, loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models import build
from deepseek.models.clip import CLIP
from deepseek.models.pretrained.clip import FAMILY
from deepseek.nn.contrastive_loss import contrastive_loss
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")


def theirs(eos: int = 2, activation: str = "quick_gelu", patch: int = 6) -> Any:
    torch.manual_seed(0)
    text = {
        "vocab_size": 83,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 15,
        "eos_token_id": eos,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "hidden_act": activation,
        "projection_dim": 20,
    }
    image = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 20,
        "patch_size": patch,
        "hidden_act": activation,
        "projection_dim": 20,
    }
    return noisy(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20))
    )


def inputs(eos: int = 82) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 80, (3, 13), generator=generator)
    ends = torch.tensor([12, 5, 9])
    ids[torch.arange(3), ends] = eos
    mask = (torch.arange(13) <= ends[:, None]).long()
    pixels = torch.randn(3, 3, 20, 20, generator=generator)
    return {"input_ids": ids.masked_fill(mask == 0, 1), "pixel_values": pixels, "attention_mask": mask}


def their_answer(output: Any) -> tuple[Tensor, ...]:
    return output.text_embeds, output.image_embeds, output.logits_per_image


def our_answer(output: Any) -> tuple[Tensor, ...]:
    return output.text_embeds, output.image_embeds, output.logit_scale * output.image_embeds @ output.text_embeds.T


@pytest.mark.parametrize("case", [(2, "quick_gelu", 6), (7, "gelu", 5)], ids=["files of 2021", "end token given"])
@pytest.mark.parametrize("masked", [True, False])
def test_equal_weights_give_equal_vectors_gradients_and_files(
    case: tuple[int, str, int], masked: bool, tmp_path: Path
) -> None:
    given = inputs(82 if case[0] == 2 else case[0])
    if not masked:
        del given["attention_mask"]
    ours = check_family(theirs(*case), given, tmp_path, their_answer, pick_ours=our_answer)
    assert isinstance(ours, CLIP)


def test_the_loss_is_theirs() -> None:
    output = theirs()(**inputs(), return_loss=True)
    scale = theirs().logit_scale.exp()
    found = contrastive_loss(output.text_embeds, output.image_embeds, scale)
    torch.testing.assert_close(found, output.loss, atol=1e-5, rtol=1e-5)


def test_old_files_with_a_tower_twice_are_read_as_theirs_are() -> None:
    values = FAMILY.config_from({"text_config": {"hidden_size": 99}, "text_config_dict": {"hidden_size": 64}})
    assert values["text"]["d_model"] == 64
    with pytest.raises(ModelError, match="relu"):
        FAMILY.config_from({"vision_config": {"hidden_act": "relu"}})
    with pytest.raises(ModelError, match="squares"):
        FAMILY.config_from({"vision_config": {"image_size": [20, 30]}})


def test_a_model_with_an_audio_tower_has_no_such_file() -> None:
    with torch.device("meta"):
        model = build({"name": "CLIP", "audio": {}})
    with pytest.raises(ModelError, match="audio"):
        FAMILY.config_to(model.config)


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = build("clip-vit-b32")
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
