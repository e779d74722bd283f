"""Imported and exported tokenizers against transformers' AutoTokenizer: the same ids and texts, toy vocabularies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import deepseek.data.tokenizer as ours
from deepseek.errors import TokenizerError

CORPUS = [
    "The quick brown fox jumps over the lazy dog, 1234 times; it's late and we've run.",
    "深度学习框架把原始数据变成可以测量的服务。我们训练模型，然后评估模型。",
    "def encode(self, text):\n    return [self.ids[word] for word in text.split()]\n\n",
    "Ünïcödé naïve café ﬁne ÅÅ 🙂👩‍👩‍👧 ½ ٣٤",
] * 4
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{%- for m in messages %}\n{%- set ns = namespace(head=m.role ~ ': ') %}\n"
    "{%- if m.role == 'assistant' %}{{ ns.head }}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ ns.head }}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = [
    {"role": "user", "content": "  What is 深度学习?  "},
    {"role": "assistant", "content": "A fox, 12345 times."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "late"},
]


def byte_level(pre: Any, **changes: Any) -> Tokenizer:
    library = Tokenizer(models.BPE(**changes))
    library.pre_tokenizer, library.decoder = pre, decoders.ByteLevel()
    return trained(
        library, trainers.BpeTrainer, ["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )


def trained(library: Tokenizer, trainer: Any, special: list[str], **options: Any) -> Tokenizer:
    library.train_from_iterator(CORPUS, trainer(vocab_size=420, special_tokens=special, show_progress=False, **options))
    return library


def gpt2() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(GPT4), behavior="isolated")
    library = byte_level(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ignore_merges=True,
    )
    library.add_special_tokens(["<|begin|>"])
    bos = ("<|begin|>", library.token_to_id("<|begin|>"))
    library.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[bos])
    return library


def qwen2() -> Tokenizer:
    library = llama3()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.normalizer = normalizers.NFC()
    library.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    library.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return library


def bert() -> Tokenizer:
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trained(library, trainers.WordPieceTrainer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library


def unigram() -> Tokenizer:
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trained(library, trainers.UnigramTrainer, ["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return library


def sentencepiece_bpe(scheme: str) -> Tokenizer:
    library = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        replaced = decoders.Replace("▁", " ")
        library.decoder = decoders.Sequence(
            [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    options = {"vocab_size": 700, "show_progress": False, "special_tokens": ["<unk>", "<s>", "</s>", *bytes_]}
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(**options))
    content = json.loads(library.to_str())  # bytes are no special tokens, only the trainer wanted them in front
    content["added_tokens"] = content["added_tokens"][:3]
    library = Tokenizer.from_str(json.dumps(content))
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


END = {"eos_token": "<|endoftext|>"}
KINDS: dict[str, tuple[Any, dict[str, str], bool]] = {
    "gpt2": (gpt2, END, True),
    "llama3": (llama3, END | {"bos_token": "<|begin|>"}, True),
    "qwen2": (qwen2, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, False),
    "bert": (bert, {"sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}, False),
    "unigram": (unigram, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, False),
    "llama2": (lambda: sentencepiece_bpe("normalizer"), {"bos_token": "<s>", "eos_token": "</s>"}, False),
    "metaspace": (lambda: sentencepiece_bpe("first"), {"bos_token": "<s>", "eos_token": "</s>"}, False),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ours.Tokenizer, bool]:
    make, tokens, lossless = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    fast = PreTrainedTokenizerFast(tokenizer_object=make(), clean_up_tokenization_spaces=False, **tokens)
    fast.chat_template = CHATML if request.param == "qwen2" else MARKED
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), ours.Tokenizer.from_pretrained(folder), lossless


def texts() -> list[str]:
    drawn = random.Random(7)
    pool = "".join(CORPUS[:4]) + " \t\n\r\u3000é́\u200d\0ÀΩжع한국어かなカナ"
    return ["", " ", "a", *CORPUS[:4]] + ["".join(drawn.choices(pool, k=drawn.randint(1, 60))) for _ in range(150)]


def test_ids_are_those_of_transformers(pair: tuple[Any, ours.Tokenizer, bool]) -> None:
    theirs, tokenizer, lossless = pair
    assert tokenizer.lossless is lossless
    for add in (False, True):
        expected = [theirs.encode(text, add_special_tokens=add) for text in texts()]
        assert tokenizer.encode_batch(texts(), add_special_tokens=add) == expected
    if lossless:
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts()] == texts()


def test_decoded_texts_are_those_of_transformers(pair: tuple[Any, ours.Tokenizer, bool]) -> None:
    theirs, tokenizer, _ = pair
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=True)
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
        stream = ours.TokenStream(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_special_tokens_in_text_are_parsed_only_when_allowed(pair: tuple[Any, ours.Tokenizer, bool]) -> None:
    theirs, tokenizer, _ = pair
    for token in tokenizer.special_tokens:
        text = f"The {token} fox{token}{token} dog"
        assert tokenizer.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, allowed_special=[token]) == theirs.encode(text, add_special_tokens=False)
        plain = tokenizer.encode(text)
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        special = {index for name, index in tokenizer.special_tokens.items() if name not in ("[UNK]", "<unk>")}
        assert not special & set(plain)
        assert plain == expected or special & set(expected)  # a Unigram model makes "<pad>" out of plain text


def test_chats_are_those_of_transformers(pair: tuple[Any, ours.Tokenizer, bool]) -> None:
    theirs, tokenizer, _ = pair
    if theirs.bos_token is None and theirs.chat_template == MARKED:
        tokenizer = tokenizer.with_chat_template(MARKED)
    for count in (1, 2, 3, 4):
        for prompt in (False, True):
            expected = theirs.apply_chat_template(CHAT[:count], add_generation_prompt=prompt, return_dict=False)
            assert tokenizer.encode_chat(CHAT[:count], prompt) == expected
    tools = [{"name": "find", "parameters": {"text": "深 <b>"}}]
    if theirs.chat_template == MARKED:
        expected = theirs.apply_chat_template(CHAT, tools=tools, return_dict=False)
        assert tokenizer.encode_chat(CHAT, False, tools=tools) == expected
        found = theirs.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
        ids, learned = tokenizer.encode_chats([CHAT])[0]
        assert (ids, [int(one) for one in learned]) == (found["input_ids"], found["assistant_masks"])


def test_saved_files_give_transformers_the_same_tokenizer(
    pair: tuple[Any, ours.Tokenizer, bool], tmp_path: Path
) -> None:
    theirs, tokenizer, lossless = pair
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [loaded.encode(text) for text in texts()] == [theirs.encode(text) for text in texts()]
    assert loaded.apply_chat_template(CHAT, return_dict=False) == theirs.apply_chat_template(CHAT, return_dict=False)
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == (
        theirs.eos_token,
        theirs.pad_token,
        theirs.bos_token,
    )
    again = ours.Tokenizer.from_pretrained(tmp_path)
    assert again.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
    tokenizer.save(tmp_path / "one.json")
    one = ours.Tokenizer.load(tmp_path / "one.json")
    assert (one.sha256, one.lossless, one.chat_template) == (tokenizer.sha256, lossless, tokenizer.chat_template)
    assert one.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)


def test_our_own_kind_is_the_same_in_transformers(tmp_path: Path) -> None:
    tokenizer = ours.Tokenizer.train(CORPUS, 400, allow_smaller=True)
    tokenizer.with_special_tokens(["<|tool|>"]).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs.encode(text) for text in texts()] == tokenizer.encode_batch(texts())
    for prompt in (True, False):
        found = theirs.apply_chat_template(
            CHAT, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
        )
        assert found["input_ids"] == tokenizer.encode_chat(CHAT, prompt)
    assert [bool(one) for one in found["assistant_masks"]] == tokenizer.encode_chats([CHAT])[0][1]
    again = ours.Tokenizer.from_pretrained(tmp_path)
    assert again.lossless and again.special_tokens == {**tokenizer.special_tokens, "<|tool|>": tokenizer.vocab_size}
    assert again.encode("<|tool|>", allowed_special=["<|tool|>"]) == [tokenizer.vocab_size]
    assert theirs.convert_tokens_to_ids("<|tool|>") == tokenizer.vocab_size


def test_a_folder_of_old_files_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n")
    with pytest.raises(TokenizerError, match=r"(?s)holds no tokenizer.json.*vocab.txt.*AutoTokenizer"):
        ours.Tokenizer.from_pretrained(tmp_path)
