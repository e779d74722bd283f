"""What stands in a `tokenizer.json`: our own kind, checked part by part, and the kinds of others, checked for use.

Our kind is byte-level BPE with a fixed set of parts; every byte has a token and nothing is normalised. A file of
another kind is used by the `tokenizers` library as it says; what is known of it here is which bytes each token stands
for and whether text survives. Such a file carries our `Settings` under the key "deepseek" (`tokenizer_folder` makes
them from a folder in the Hugging Face layout).

Source: https://huggingface.co/docs/tokenizers; bytes as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors

from deepseek.data.pretokenize import PATTERNS, Pattern
from deepseek.errors import TokenizerError

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, END)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

_MAX_IDS = 1 << 24
_KEY = "deepseek"
_WANTED = "a tokenizer.json that Tokenizer.save wrote"
_FIXED_PARTS = ("normalizer", "post_processor", "decoder", "truncation", "padding")


@dataclass(frozen=True)
class Settings:
    """What a tokenizer.json can't say: roles of tokens by the names of tokenizer_config.json, and the chat template.

    `own` says that the file is of our own kind.
    """

    own: bool = True
    tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None


def split_settings(text: str) -> tuple[str, Settings]:
    """Return the library's part of a tokenizer file and our settings in it. Raises TokenizerError."""
    if f'"{_KEY}"' not in text:
        return text, Settings()
    try:
        content = json.loads(text)
        found = content.pop(_KEY, None) if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise TokenizerError("not a tokenizer", found=str(error)[:200], wanted=_WANTED) from None
    if found is None:
        return text, Settings()
    try:
        settings = Settings(**found)
        ok = isinstance(settings.own, bool) and isinstance(settings.chat_template, str | None)
        ok = ok and all(isinstance(value, str) for value in settings.tokens.values())
    except (TypeError, AttributeError):
        ok = False
    if not ok:
        raise TokenizerError(f"the tokenizer's settings under '{_KEY}' are of another version", wanted=_WANTED)
    return json.dumps(content, ensure_ascii=False), settings


def join_settings(text: str, settings: Settings) -> str:
    """Return one text of both; `split_settings` takes it apart. Our own kind without settings stays as it is."""
    if settings == Settings():
        return text
    return json.dumps({**json.loads(text), _KEY: asdict(settings)}, indent=2, ensure_ascii=False)


def assemble(pattern: Pattern = "han") -> tokenizers.Tokenizer:
    """Return our kind with an empty vocabulary: how it splits, joins and renders a prompt with its response."""
    if pattern not in PATTERNS:
        raise TokenizerError("unknown pattern", found=repr(pattern), wanted=", ".join(PATTERNS))
    library = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.TemplateProcessing(
        single="$A",
        pair=f"{USER} $A {END} {ASSISTANT} $B {END}",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (USER, END, ASSISTANT)],
    )
    return library


def parse_own(text: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of our kind in `text`. Raises TokenizerError naming the part that differs."""
    library, found = _read(text)
    expected = json.loads(assemble().to_str())
    known = [json.loads(assemble(pattern).to_str())["pre_tokenizer"] for pattern in PATTERNS]
    differs = [part for part in _FIXED_PARTS if found[part] != expected[part]]
    if found["pre_tokenizer"] not in known:
        differs.append("pre_tokenizer")
    if differs:
        raise TokenizerError(
            f"the tokenizer's {differs[0]} is of another kind or version",
            wanted=_WANTED,
            fix="read other tokenizers with Tokenizer.from_pretrained, or install the deepseek version that wrote it",
        )
    if {**found["model"], "vocab": {}, "merges": []} != expected["model"]:
        raise TokenizerError(
            "the tokenizer's model is of another kind", found=found["model"].get("type"), wanted=_WANTED
        )
    names = [(token["content"], token["id"]) for token in found["added_tokens"]]
    own = names[: len(SPECIAL_TOKENS)] == [(name, index) for index, name in enumerate(SPECIAL_TOKENS)]
    if not own or not all(_is_plain_special(token) for token in found["added_tokens"]):
        raise TokenizerError(
            "the tokenizer's special tokens differ", found=names[:16], wanted=", ".join(SPECIAL_TOKENS)
        )
    return library


def parse_other(text: str) -> tuple[tokenizers.Tokenizer, bool]:
    """Return the tokenizer in `text`, of any kind the library knows, and whether every text survives it."""
    library, found = _read(text)
    library.no_truncation()
    library.no_padding()
    return library, _lossless(library, found)


def _read(text: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    try:
        _check_ids(json.loads(text))
        library = tokenizers.Tokenizer.from_str(text)
        return library, json.loads(library.to_str())
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise TokenizerError("not a tokenizer", found=str(error)[:200], wanted=_WANTED) from None


def _check_ids(content: Any) -> None:
    """Refuse ids so large that the library, which counts up to the last one, would never be done."""
    model = content["model"]
    vocabulary = model.get("vocab", {})
    ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else ()), len(vocabulary)]
    ids += [token["id"] for token in content.get("added_tokens", [])]
    if max(ids) >= _MAX_IDS:
        raise TokenizerError("the tokenizer's ids are too large", found=max(ids), wanted=f"below {_MAX_IDS}")


def _is_plain_special(token: Mapping[str, Any]) -> bool:
    return bool(token["special"]) and not any(token[flag] for flag in ("lstrip", "rstrip", "single_word", "normalized"))


def own_token_bytes(library: tokenizers.Tokenizer) -> list[bytes]:
    """Return the bytes of every id of our kind; ids have no gap and every single byte has its token, else an error."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise TokenizerError("the tokenizer's ids have gaps", wanted=f"0 to {len(tokens) - 1}")
    byte_of = _byte_alphabet()
    special = {token.content for token in library.get_added_tokens_decoder().values()}
    try:
        values = [b"" if token in special else bytes(byte_of[c] for c in token) for token in tokens]
    except KeyError as error:
        raise TokenizerError("the tokenizer has a token that is not bytes", found=error.args[0]) from None
    if len({value for value in values if len(value) == 1}) != 256:
        raise TokenizerError("the tokenizer lacks tokens for some bytes", wanted="all 256 bytes")
    return values


def other_token_bytes(library: tokenizers.Tokenizer) -> list[bytes]:
    """Return the bytes that each id stands for, as near as its kind allows; none for special tokens and for gaps."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise TokenizerError("the tokenizer has no tokens")
    byte_of = _byte_alphabet()
    byte_level = '"ByteLevel"' in json.dumps(_part(library, "decoder"))
    added = {token.content: token.special for token in library.get_added_tokens_decoder().values()}
    values = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if token in added:
            values[index] = b"" if added[token] else token.encode()
        elif byte_level and all(c in byte_of for c in token):
            values[index] = bytes(byte_of[c] for c in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            values[index] = bytes([int(token[3:5], 16)])
        else:
            values[index] = token.removeprefix("##").replace("\u2581", " ").encode("utf-8", "replace")
    return values


def unknown_ids(library: tokenizers.Tokenizer, settings: Settings) -> set[int]:
    """Return the ids that text the vocabulary lacks may give, although they are of special tokens."""
    model = _part(library, "model")
    names = {model.get("unk_token"), settings.tokens.get("unk_token")} - {None}
    found = {library.token_to_id(name) for name in names} | {model.get("unk_id")}
    return {index for index in found if index is not None}


def _part(library: tokenizers.Tokenizer, name: str) -> Any:
    return json.loads(library.to_str())[name]


def _lossless(library: tokenizers.Tokenizer, found: Mapping[str, Any]) -> bool:
    """Return whether `decode(encode(text)) == text` for every text: bytes all through, and nothing dropped."""
    model, decoder = found["model"], found["decoder"] or {}
    steps = found["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    bytes_only = (
        found["normalizer"] is None
        and model["type"] == "BPE"
        and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"))
        and decoder.get("type") == "ByteLevel"
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(_keeps_text(step) for step in steps)
    )
    flags = ("lstrip", "rstrip", "normalized")
    plain = all(token["special"] or not any(token[flag] for flag in flags) for token in found["added_tokens"])
    return bytes_only and plain and set(_byte_alphabet()) <= set(library.get_vocab(with_added_tokens=False))


def _keeps_text(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "ByteLevel":
        return not step["add_prefix_space"]
    return step.get("type") == "Digits" or (step.get("type") == "Split" and step["behavior"] != "Removed")


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
