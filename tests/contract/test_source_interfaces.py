"""The calls that the five source documents show, with their names and arguments, at sizes a test can carry.

Each test names the document (S1, S2, ... in the order of their files) and says in our words what the sample does. Where
a sample names sizes that only a data centre holds, the objects are also made with exactly those. Samples about parts
that do not exist yet come with those parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepseek as ds
from tests.system import child_environment
from tests.toy_gpt import toy_batches, toy_gpt, write_text

# Where CUDA is absent, torch says so about its own classes; and it prefers torch.amp to the samples' spelling.
torch_may_warn = [
    pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*device_type of 'cuda'.*:UserWarning"),
]


def with_torch_warnings(test: Any) -> Any:
    for mark in torch_may_warn:
        test = mark(test)
    return test


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=100, env=child_environment()
    )


def test_s1_the_environment_is_checked_from_the_command_line() -> None:
    done = python("-m", "deepseek.utils.check_env")
    assert done.returncode in (0, 1) and "Python" in done.stdout and done.stderr == ""
    facts = json.loads(python("-m", "deepseek.utils.check_env", "--json").stdout)
    assert facts


def test_s1_mixed_precision_with_a_fixed_loss_scale(caplog: pytest.LogCaptureFixture) -> None:
    """A trainer from a model, an optimizer class, and a dict that switches float16 on and fixes the scale at 128."""
    from torch.optim import AdamW

    from deepseek.optim import MixedPrecisionTrainer

    bert_model = toy_gpt()
    trainer = MixedPrecisionTrainer(model=bert_model, optimizer=AdamW, fp16_params={"enable": True, "loss_scale": 128})
    assert trainer.scaler is not None and trainer.scaler.get_scale() == 128
    result = trainer.train(toy_batches(3), epochs=2, compile=False)
    assert result.steps == 6 and result.losses[-1] < result.losses[0]
    if not torch.cuda.is_available():
        assert "float16 is slow on this CPU" in caplog.text


def test_s2_gradients_of_a_tensor() -> None:
    """The derivative of x**3 + 5 x at 2 is 17; the result has one element, so `backward` needs no argument."""
    x = ds.tensor([2.0], requires_grad=True)
    y = x**3 + 5 * x
    y.backward()
    assert x.grad is not None and x.grad.tolist() == [17.0]
    import deepseek.autograd

    assert deepseek.autograd.grad is torch.autograd.grad


def test_s2_quantization_by_a_config() -> None:
    """A config of 8-bit weights and activations, symmetric, and a function that takes the model and the config."""
    from deepseek.quantization import QuantConfig

    model = toy_gpt()
    config = QuantConfig(weight_bits=8, activation_bits=8, quant_scheme="symmetric")
    quant_model = ds.quantization.quantize_model(model, config)
    ids = torch.randint(48, (2, 9))
    assert quant_model is not model and model.lm_head.weight.dtype is torch.float32
    assert any(tensor.dtype is torch.int8 for tensor in quant_model.state_dict().values())
    with torch.no_grad():
        error = (quant_model(ids) - model(ids)).norm() / model(ids).norm()
    assert float(error) < 0.1


@with_torch_warnings
def test_s2_autocast() -> None:
    with ds.cuda.amp.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
    assert ds.cuda.amp.autocast is torch.cuda.amp.autocast
    from deepseek.cuda.amp import autocast

    assert autocast is torch.cuda.amp.autocast


def test_s2_gradient_accumulation_by_its_name() -> None:
    config = ds.GPTConfig(vocab_size=48, max_length=24, num_layers=1, d_model=16)
    trainer = ds.Trainer(model_config=config, train_dataset=toy_batches(16), gradient_accumulation_steps=8)
    assert trainer.train().steps == 2


def test_s2_the_profiler_prints_a_table() -> None:
    """A block under the profiler, then the averages of its operations as a table."""
    model = toy_gpt()

    def train_step() -> None:
        model(torch.randint(48, (1, 5))).sum().backward()

    with ds.profiler.profile() as prof:
        train_step()
    table = prof.key_averages().table()
    assert "aten::addmm" in table and "Self CPU" in table


@with_torch_warnings
def test_s3_mixed_precision_with_a_scaler_and_an_optimizer_without_parameters() -> None:
    """The model first; an optimizer that gets its parameters from it; a dynamic scaler; float16 switched on."""
    from deepseek.cuda.amp import GradScaler

    from deepseek.optim import AdamW, MixedPrecisionTrainer

    model = toy_gpt()
    before = model.norm.weight.detach().clone()
    trainer = MixedPrecisionTrainer(model, optimizer=AdamW(lr=5e-4), scaler=GradScaler(), fp16_enable=True)
    result = trainer.train(toy_batches(3), epochs=2, compile=False)
    assert result.steps == 6 and result.losses[-1] < result.losses[0]
    assert float((model.norm.weight.detach() - before).abs().max()) <= 6 * 5e-4 * 1.01


def test_s3_quantization_in_one_call() -> None:
    """KL calibration, 8 bits, asymmetric activations; without calibration data the model's own example serves."""
    from deepseek.compress import Quantizer

    model = toy_gpt()
    quantizer = Quantizer(model, method="KL", bit_width=8, symmetric=False)
    with pytest.warns(UserWarning, match="calibration"):
        quantized_model = quantizer.compress()
    ids = torch.randint(48, (2, 9))
    with torch.no_grad():
        assert float((quantized_model(ids) - model(ids)).norm() / model(ids).norm()) < 0.3


def test_s4_the_version_can_be_imported_and_printed() -> None:
    done = python("-c", "from deepseek import __version__; print(__version__)")
    assert done.stdout.strip() == ds.__version__ and done.stdout[0].isdigit() and done.stderr == ""


def test_s4_a_model_is_trained_from_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config, trainer, `train(epochs=10)`: data as paths, the tokenizer trained on the way."""
    from deepseek import GPTConfig, Trainer

    monkeypatch.chdir(tmp_path)
    os.makedirs("path/to")
    write_text(tmp_path / "path/to/train.jsonl", documents=14)
    write_text(tmp_path / "path/to/val.jsonl", documents=8, seed=1)
    config = GPTConfig(vocab_size=50265, max_length=32, num_layers=1, d_model=8)
    trainer = Trainer(
        model_config=config,
        train_dataset="path/to/train.jsonl",
        val_dataset="path/to/val.jsonl",
        batch_size=8,
        learning_rate=3e-4,
    )
    trainer.train(epochs=10)
    result = trainer.result
    assert result is not None and result.steps >= 10 and result.losses[-1] < result.losses[0]
    assert result.val_loss is not None and result.val_loss < result.losses[0]
    assert trainer.output_dir is not None and (trainer.output_dir / "bundle" / "config.yaml").is_file()


def test_s4_the_sizes_of_the_sample_are_accepted_as_written() -> None:
    from deepseek import GPTConfig, Trainer

    config = GPTConfig(vocab_size=50265, max_length=2048, num_layers=24, d_model=1536)
    trainer = Trainer(
        model_config=config,
        train_dataset="path/to/train.jsonl",
        val_dataset="path/to/val.jsonl",
        batch_size=8,
        learning_rate=3e-4,
    )
    assert trainer.model_config is config and config.heads == 24
    with torch.device("meta"):
        model = ds.GPT(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(760e6, rel=0.01)


def test_s4_gradient_checkpointing_is_switched_on_by_assignment() -> None:
    from deepseek import GPT, GPTConfig

    config = GPTConfig(vocab_size=50265, max_length=2048, num_layers=24, d_model=1536)
    config.gradient_checkpointing = True
    assert config.gradient_checkpointing
    small = config.replace(vocab_size=48, max_length=24, num_layers=2, d_model=16)
    model = GPT(small).train()
    blocks = 0

    def count(*_: Any) -> None:
        nonlocal blocks
        blocks += 1

    for block in model.blocks:
        block.register_forward_pre_hook(count)
    model(torch.randint(48, (1, 8))).sum().backward()
    assert blocks == 4  # each of the two computed again


def test_s4_static_quantization_of_a_saved_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.pt` file in, 8-bit static quantization, a `.pt` file out."""
    from deepseek.quantization import Quantizer

    monkeypatch.chdir(tmp_path)
    model = toy_gpt(d_model=64, vocab_size=500)
    ds.save(model, "gpt2_large.pt")
    quantizer = Quantizer(model_path="gpt2_large.pt")
    with pytest.warns(UserWarning, match="calibration"):
        quantizer.apply_static_quant()
    quantizer.save("gpt2_quant.pt")
    quantized = ds.load("gpt2_quant.pt", device="cpu").model
    ids = torch.randint(500, (2, 9))
    with torch.no_grad():
        assert float((quantized(ids) - model(ids)).norm() / model(ids).norm()) < 0.3
    assert os.path.getsize("gpt2_quant.pt") < 0.6 * os.path.getsize("gpt2_large.pt")


def test_s5_sampling_with_a_processor_of_transformers() -> None:
    """Top-k 40, top-p 0.9, and the repetition penalty 1.2 as a list of transformers' own processors."""
    transformers = pytest.importorskip("transformers")
    model = toy_gpt(vocab_size=200)
    input_ids = torch.tensor([[5, 6, 7]])
    processors = transformers.LogitsProcessorList([transformers.RepetitionPenaltyLogitsProcessor(penalty=1.2)])
    outputs = model.generate(input_ids, do_sample=True, top_k=40, top_p=0.9, logits_processor=processors)
    assert torch.equal(outputs[:, :3], input_ids) and outputs.shape[1] > 3


def test_s1_bert_is_loaded_for_three_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained Chinese BERT by its name, a fresh head of three classes, checkpointing switched on."""
    from deepseek.models import BERT, BERTConfig
    from deepseek.nlp import BertForSequenceClassification

    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 40, "max_length": 16, "num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 16}
    BERT(BERTConfig(**sizes, head="masked_lm")).save_pretrained("bert-base-chinese")  # type: ignore[arg-type]
    model = BertForSequenceClassification.from_pretrained(
        "bert-base-chinese", num_labels=3, gradient_checkpointing=True
    )
    assert model.config.gradient_checkpointing
    assert model(torch.randint(40, (2, 7))).shape == (2, 3)


def test_s3_a_conformer_is_built_from_yaml(tmp_path: Path) -> None:
    """Name, encoder and decoder with the sample's sizes, in a file."""
    (tmp_path / "model.yaml").write_text(
        "model:\n  name: Conformer\n  encoder:\n    num_layers: 12\n    d_model: 512\n    attention_heads: 8\n"
        "  decoder:\n    vocab_size: 5000\n    embedding_dim: 512\n"
    )
    with torch.device("meta"):
        model = ds.models.build(tmp_path / "model.yaml")
    encoder: Any = model.encoder
    assert type(model).__name__ == "Conformer" and len(encoder.blocks) == 12
    assert {p.shape[0] for name, p in model.named_parameters() if name == "ctc_head.weight"} == {5000}


def test_s4_relative_positions_are_sines_and_cosines() -> None:
    """Positions times inverse frequencies; sines first, then cosines."""
    from deepseek.nn import relative_position_encoding

    pos, dim = torch.arange(7), 6
    found = relative_position_encoding(pos, dim)
    angles = torch.tensor([[p / 10000 ** (2 * i / dim) for i in range(dim // 2)] for p in range(7)])
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()], dim=-1))


def test_s3_a_pipeline_and_its_loader(tmp_path: Path) -> None:
    """Resampling, masks and MFCC features in one pipeline, which collates the batches of a folder's recordings."""
    from deepseek.data import DistributedDataset, FeatureExtract, Pipeline, Resample, SpecAugment
    from deepseek.data.audio import write_audio

    for number in range(5):
        write_audio(tmp_path / f"{number}.wav", torch.randn(4000 + 400 * number) / 10, 8000)
    data_pipeline = Pipeline(
        [
            Resample(target_sr=16000),
            SpecAugment(freq_mask=10, time_mask=20),
            FeatureExtract(type="mfcc", n_mels=80),
        ]
    )
    dataset = DistributedDataset(str(tmp_path), batch_size=256, num_workers=8, collate_fn=data_pipeline)
    (batch,) = list(dataset)
    assert batch["input_features"].shape[0] == 5 and sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4]
    frames = [1 + (2 * (4000 + 400 * number) - 400) // 160 for number in sorted(range(5))]
    assert sorted(batch["lengths"].tolist()) == frames


def test_s1_elastic_deformation_takes_alpha_as_a_range() -> None:
    """The augmentation of medical images, its strength drawn from 10 to 30; image and mask move together."""
    from deepseek.data import Pipeline, RandomElasticDeformation

    image = torch.randint(256, (1, 64, 64), dtype=torch.uint8)
    sample = {"image": image, "mask": (image[0] > 127).long()}
    moved = Pipeline([RandomElasticDeformation(alpha=(10, 30))])(sample)
    assert moved["image"].shape == image.shape and not torch.equal(moved["image"], image)
    assert moved["mask"].shape == image.shape[1:]


def test_s2_hdf5_is_read_through_utils_data(tmp_path: Path) -> None:
    """Volumes out of an HDF5 file, by a class beside torch's own data sets."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "ct.h5", "w") as file:
        file["image"] = torch.arange(2 * 4 * 4 * 2).reshape(2, 1, 4, 4, 2).numpy().astype("float32")
    dataset = ds.utils.data.H5Dataset(str(tmp_path / "ct.h5"))
    loader = ds.utils.data.DataLoader(dataset, batch_size=2, num_workers=2)
    (batch,) = list(loader)
    assert batch["image"].shape == (2, 1, 4, 4, 2)
