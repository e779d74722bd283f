"""A byte-level BPE tokenizer with a chat template, in one `tokenizer.json` that Hugging Face `tokenizers` reads too.

Lossless: every byte has a token, nothing is normalised, and special tokens are never read out of a user's text.
The file carries the chat template: its post-processor is the template of a prompt and its response, and `load`
refuses a file whose template this code does not know. Not here: other kinds of tokenizer.

Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; bytes as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

import deepseek.files as files
from deepseek.data.record_forms import Message
from deepseek.data.records import cut_point
from deepseek.errors import TokenizerError

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, END)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 1 << 20

# As GPT-2 splits text, with marks kept on their letters, and no part longer than 64 characters (3 for digits):
# the cost of a part grows faster than its length, and a megabyte without a space must stay linear.
_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]{1,64}| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]{1,64}|\s{1,64}(?!\S)|\s{1,64}"
)
# White space and the word after it. No token of the pattern reaches from a word into the white space after it, so
# the ids of a text are those of these parts one after the other, and parts met before need no second look.
_WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[{_WHITE}]*[^{_WHITE}]+|[{_WHITE}]+")
_MAX_KNOWN_WORDS = 1 << 17
_MAX_KNOWN_LENGTH = 64

_ROLE_TOKENS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_MAX_FILE_BYTES = 256 * 1024 * 1024
_PIECE = 1 << 16  # characters encoded in one call of the library; its intermediate form takes about 100 bytes a token
_BATCH = 1 << 20  # characters encoded at a time over all cores


class Tokenizer:
    """Text to token ids and back. Make one with `train` or `load`.

    `decode(encode(text)) == text` for every text. Ids are 0 to `vocab_size - 1`; the special tokens come first.
    Chat template: `<|user|>text<|end|><|assistant|>text<|end|>`, with no white space added.
    """

    def __init__(self, text: str) -> None:
        """Read the JSON that `to_json` gives. Raises TokenizerError."""
        self._json = text
        self._library = _parse(text)
        self._library.encode_special_tokens = True
        self._bytes = _token_bytes(self._library)
        self._known: dict[str, list[int]] = {}
        self.vocab_size: int = len(self._bytes)
        self.sha256: str = hashlib.sha256(text.encode("utf-8")).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 32768, *, allow_smaller: bool = False) -> Self:
        """Learn `vocab_size` tokens from `texts`, always the same ones from the same texts.

        A token must occur at least twice. Raises TokenizerError when the texts can't give that many, unless
        `allow_smaller`, when `vocab_size` is below 261 (256 bytes and 5 special tokens), and without any text.
        """
        if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(
                "vocab_size is out of range", found=vocab_size, wanted=f"{MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}"
            )
        library = _assemble()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(_training_pieces(texts), trainer)
        trained = library.get_vocab_size()
        if trained < vocab_size and not allow_smaller:
            raise TokenizerError(
                "the text is too small for this vocabulary",
                found=f"at most {trained} tokens that occur twice",
                wanted=f"vocab_size = {vocab_size}",
                fix=f"set vocab_size to {trained} or less, or train on more text",
            )
        return cls(library.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json` that `save` wrote. Raises TokenizerError for any other file."""
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise TokenizerError(f"{path} is too large for a tokenizer", wanted=f"at most {_MAX_FILE_BYTES} bytes")
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise TokenizerError(f"can't read the tokenizer {path}", found=error.strerror) from None
        except UnicodeDecodeError:
            raise TokenizerError(f"{path} is not a tokenizer", found="bytes that are not UTF-8") from None
        try:
            return cls(text)
        except TokenizerError as error:
            raise TokenizerError(
                f"{path}: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix
            ) from None

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, atomically; its SHA-256 is `sha256`. Raises StorageError."""
        files.write_text(Path(path), self._json)

    def to_json(self) -> str:
        """Return the text of `tokenizer.json`."""
        return self._json

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens with their ids."""
        return {token: index for index, token in enumerate(SPECIAL_TOKENS)}

    @property
    def eos_id(self) -> int:
        """The id of <|endoftext|>, which ends every document."""
        return SPECIAL_TOKENS.index(END_OF_TEXT)

    @property
    def pad_id(self) -> int:
        """The id that fills short sequences: <|endoftext|>, always without loss."""
        return self.eos_id

    @property
    def end_id(self) -> int:
        """The id of <|end|>, which ends every message of a chat."""
        return SPECIAL_TOKENS.index(END)

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocab_size,) int64: bytes of UTF-8 text that each token stands for; 0 for special tokens."""
        return np.array([len(value) for value in self._bytes], dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any special token. Raises TokenizerError for lone surrogates."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, worked out on all cores, at most 1 MiB of text at a time."""
        encoded: list[list[int]] = [[] for _ in texts]
        for batch in _batches(texts):
            for owner, ids in zip(
                (owner for owner, _ in batch), self._encode([piece for _, piece in batch]), strict=True
            ):
                encoded[owner] += ids
        return encoded

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; words met before come from memory, others from the library, once each."""
        if len(self._known) > _MAX_KNOWN_WORDS:
            self._known = {}  # another thread may still be reading the old one
        known = self._known
        words = [_WORD.findall(text) for text in texts]
        missing = list(dict.fromkeys(word for text in words for word in text if word not in known))
        encodings = self._library.encode_batch_fast(missing, add_special_tokens=False)
        found = {word: encoding.ids for word, encoding in zip(missing, encodings, strict=True)}
        known.update((word, ids) for word, ids in found.items() if len(word) <= _MAX_KNOWN_LENGTH)
        encoded = []
        for text in words:
            ids: list[int] = []
            for word in text:
                ids += known.get(word) or found[word]
            encoded.append(ids)
        return encoded

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises TokenizerError for an unknown id."""
        if skip_special_tokens:
            return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        names = [name.encode() for name in SPECIAL_TOKENS]
        return b"".join(names[index] if 0 <= index < len(names) else self.token_bytes(index) for index in ids).decode(
            "utf-8", errors="replace"
        )

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that one id stands for; none for a special token. Raises TokenizerError."""
        if not 0 <= index < self.vocab_size:
            raise TokenizerError("unknown token id", found=index, wanted=f"0 to {self.vocab_size - 1}")
        return self._bytes[index]

    def encode_chat(
        self, messages: Sequence[Message | Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a chat, with `<|assistant|>` at its end when an answer is to be generated.

        Messages are `Message` or `{"role", "content"}`. Raises TokenizerError for an empty chat or an unknown role.
        """
        ids, _ = self.encode_chats([messages])[0]
        return [*ids, SPECIAL_TOKENS.index(ASSISTANT)] if add_generation_prompt else ids

    def encode_chats(
        self, chats: Sequence[Sequence[Message | Mapping[str, str]]]
    ) -> list[tuple[list[int], list[bool]]]:
        """Return each chat's ids, and for each id whether it is learned: what the assistant says, and its <|end|>."""
        turns = [[_as_message(message) for message in chat] for chat in chats]
        if not all(turns):
            raise TokenizerError("a chat has no message", wanted="at least one {'role', 'content'}")
        contents = iter(self.encode_batch([message.content for chat in turns for message in chat]))
        encoded = []
        for chat in turns:
            ids: list[int] = []
            learned: list[bool] = []
            for message in chat:
                content = next(contents)
                ids += [SPECIAL_TOKENS.index(_ROLE_TOKENS[message.role]), *content, self.end_id]
                learned += [False] + [message.role == "assistant"] * (len(content) + 1)
            encoded.append((ids, learned))
        return encoded


class TokenStream:
    """Turns ids into text one at a time; a character spread over several tokens comes out whole, with its last one.

    The texts of all `push` calls and of `finish`, joined, are `tokenizer.decode` of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """Take one id and return the characters that are whole now; special tokens give none."""
        return self._decoder.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        """Return what is left: U+FFFD when the ids ended inside a character."""
        return self._decoder.decode(b"", final=True)


def _assemble() -> tokenizers.Tokenizer:
    """Return the tokenizer with an empty vocabulary: how it splits, joins and renders a prompt with its response."""
    library = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
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


def _parse(text: str) -> tokenizers.Tokenizer:
    wanted = "a tokenizer.json that Tokenizer.save wrote"
    try:
        library = tokenizers.Tokenizer.from_str(text)
        found = json.loads(library.to_str())
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise TokenizerError("not a tokenizer", found=str(error)[:200], wanted=wanted) from None
    expected = json.loads(_assemble().to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        if found[part] != expected[part]:
            raise TokenizerError(
                f"the tokenizer's {part} is of another kind or version",
                wanted=wanted,
                fix="train one with Tokenizer.train, or install the deepseek version that wrote it",
            )
    if {**found["model"], "vocab": {}, "merges": []} != expected["model"]:
        raise TokenizerError(
            "the tokenizer's model is of another kind", found=found["model"].get("type"), wanted=wanted
        )
    names = [(token["content"], token["id"], token["special"]) for token in found["added_tokens"]]
    if names != [(name, index, True) for index, name in enumerate(SPECIAL_TOKENS)]:
        raise TokenizerError("the tokenizer's special tokens differ", found=names, wanted=", ".join(SPECIAL_TOKENS))
    return library


def _token_bytes(library: tokenizers.Tokenizer) -> list[bytes]:
    """Return the bytes of every id, and check that ids have no gap and every single byte its token."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise TokenizerError("the tokenizer's ids have gaps", wanted=f"0 to {len(tokens) - 1}")
    byte_of = _byte_alphabet()
    try:
        values = [b"", *(bytes(byte_of[c] for c in token) for token in tokens[len(SPECIAL_TOKENS) :])]
    except KeyError as error:
        raise TokenizerError("the tokenizer has a token that is not bytes", found=error.args[0]) from None
    if len({value for value in values if len(value) == 1}) != 256:
        raise TokenizerError("the tokenizer lacks tokens for some bytes", wanted="all 256 bytes")
    return [b""] * (len(SPECIAL_TOKENS) - 1) + values


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TokenizerError("only text can be encoded", found=type(text).__name__, wanted="str")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                "the text holds a lone surrogate, which no UTF-8 has",
                found=f"U+{ord(text[error.start]):04X} at character {error.start}",
                fix="decode the bytes as UTF-8, or text.encode('utf-8', 'replace').decode()",
            ) from None
    return text


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE:
        end = cut_point(text, start, _PIECE)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _batches(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield (index of the text, piece of it), about a mebibyte of pieces at a time."""
    batch: list[tuple[int, str]] = []
    size = 0
    for owner, text in enumerate(texts):
        for piece in _pieces(_checked(text)):
            batch.append((owner, piece))
            size += len(piece) + 64
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    pieces = itertools.chain.from_iterable(_pieces(_checked(text)) for text in texts)
    first = next((piece for piece in pieces if piece), None)
    if first is None:
        raise TokenizerError("there is no text to train a tokenizer on", wanted="at least one text that is not empty")
    yield first
    yield from pieces


def _as_message(message: Message | Mapping[str, str]) -> Message:
    if isinstance(message, Message):
        role, content = message
    else:
        try:
            role, content = message["role"], message["content"]  # type: ignore[assignment]
        except KeyError as error:
            raise TokenizerError(f"a message has no {error}", wanted="'role' and 'content'") from None
    if role not in _ROLE_TOKENS:
        raise TokenizerError("unknown role", found=repr(role)[:80], wanted=", ".join(_ROLE_TOKENS))
    return Message(role, _checked(content))
