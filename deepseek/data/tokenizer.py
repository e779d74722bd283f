"""Text to token ids and back: a byte-level BPE tokenizer of our own kind, and those of others out of `tokenizer.json`.

Our kind is lossless: every byte has a token, nothing is normalised. Special tokens are never read out of a user's
text unless a call names them. A tokenizer is one JSON text, its chat template in it, that a bundle keeps. Not here:
how it is learned (`tokenizer_training`), how text is cut (`pretokenize`), how templates run (`chat_template`).

Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; bytes as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken

import deepseek.files as files
from deepseek.data import tokenizer_format as form
from deepseek.data.own_chat import ASSISTANT_ID, END_ID, OWN_TEMPLATE, Chat, encode_own_chats
from deepseek.data.pretokenize import Pattern, checked
from deepseek.data.record_forms import Message
from deepseek.data.special_tokens import Segment, Special, split_specials
from deepseek.data.token_stream import TokenStream
from deepseek.data.tokenizer_encoder import Encoder
from deepseek.data.tokenizer_folder import read_folder, read_text, write_folder
from deepseek.data.tokenizer_format import END_OF_TEXT, MIN_VOCAB_SIZE, SPECIAL_TOKENS, Settings
from deepseek.data.tokenizer_training import MAX_VOCAB_SIZE, TrainingProgress, sample_texts, train_json
from deepseek.errors import TokenizerError

__all__ = ["MAX_VOCAB_SIZE", "MIN_VOCAB_SIZE", "SPECIAL_TOKENS", "TokenStream", "Tokenizer"]

Allowed = Collection[str] | Literal["all"]


class Tokenizer:
    """Text to token ids and back. Make one with `train`, `load` or `from_pretrained`.

    Ids are 0 to `vocab_size - 1`. Where `lossless` holds, as it does for every tokenizer that `train` makes,
    `decode(encode(text)) == text` for every text. Lone surrogates, which are no text, are refused.
    Our own chat template: `<|user|>text<|end|><|assistant|>text<|end|>`, with no white space added.
    """

    def __init__(self, text: str) -> None:
        """Read the JSON that `to_json` gives. Raises TokenizerError."""
        self._json = text
        library_text, self._settings = form.split_settings(text)
        if self._settings.own:
            self._library, self.lossless = form.parse_own(library_text), True
            self._bytes = form.own_token_bytes(self._library)
        else:
            self._library, self.lossless = form.parse_other(library_text)
            self._bytes = form.other_token_bytes(self._library)
        added = self._library.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in sorted(added.items()) if token.special}
        self._specials = [Special(one.content, one.lstrip, one.rstrip) for one in added.values() if one.special]
        unspoken = frozenset(self._special.values()) - form.unknown_ids(self._library, self._settings)
        self._encoder = Encoder(self._library, own=self._settings.own, special=self._special, unspoken=unspoken)
        self.vocab_size: int = len(self._bytes)
        self.sha256: str = hashlib.sha256(text.encode("utf-8")).hexdigest()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 32768,
        *,
        allow_smaller: bool = False,
        pattern: Pattern = "han",
        sample_bytes: int | None = None,
        seed: int = 0,
        progress: TrainingProgress | None = None,
    ) -> Self:
        """Learn `vocab_size` tokens from `texts`, always the same ones from the same texts.

        `pattern` says where text is cut before merging (see `deepseek.data.pretokenize`). With `sample_bytes` the
        tokens are learned from a uniform sample of the texts, drawn by `seed` and held in memory, of at most so many
        bytes; `progress(bytes_read, bytes_kept)` is called while it is drawn.

        A token must occur at least twice. Raises TokenizerError when the texts can't give that many, unless
        `allow_smaller`, when `vocab_size` is below 261 (256 bytes and 5 special tokens), and without any text.
        """
        if sample_bytes is not None:
            texts = sample_texts(texts, sample_bytes, seed, progress)
        return cls(train_json(texts, vocab_size, pattern, allow_smaller=allow_smaller))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json` that `save` wrote. Raises TokenizerError for any other file."""
        path = Path(path)
        text = read_text(path)
        try:
            return cls(text)
        except TokenizerError as error:
            raise _of_file(path, error) from None

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read a folder in the Hugging Face layout, or its `tokenizer.json`; nothing is downloaded.

        Byte-level BPE, WordPiece, Unigram and SentencePiece BPE give the ids that transformers gives; what of them
        does not keep every text has `lossless` False. Raises TokenizerError for a folder without a tokenizer.json,
        or one that the `tokenizers` library can't use, and for a chat template outside the safe subset.
        """
        path = Path(path)
        text, settings, further = read_folder(path)
        try:
            template = settings.chat_template
            if form.split_settings(text)[1] != Settings() or _is_own(text):
                made = cls(text)
                template = None if template == made.chat_template else template
            else:
                library, _ = form.parse_other(text)
                library.add_special_tokens(_missing(library, [*settings.tokens.values(), *further]))
                made = cls(form.join_settings(library.to_str(), settings))
            return made if template is None else made.with_chat_template(template)
        except TokenizerError as error:
            raise _of_file(path, error) from None

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, atomically; its SHA-256 is `sha256`. Raises StorageError."""
        files.write_text(Path(path), self._json)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the Hugging Face layout, which `from_pretrained` and transformers' AutoTokenizer read.

        `tokenizer.json`, `tokenizer_config.json` with the chat template, `special_tokens_map.json`.
        Raises StorageError.
        """
        settings = dataclasses.replace(self._settings, chat_template=self.chat_template)
        if self._settings.own:
            settings = dataclasses.replace(settings, tokens={"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT})
        named = set(settings.tokens.values())
        additional = [name for name in self._special if name not in named]
        library, _ = form.split_settings(self._json)
        write_folder(Path(folder), library, settings, additional)

    def to_json(self) -> str:
        """Return the text of `tokenizer.json`."""
        return self._json

    def with_special_tokens(self, tokens: Sequence[str]) -> Self:
        """Return the tokenizer with further special tokens, their ids after all others. Raises TokenizerError."""
        for token in tokens:
            if not checked(token) or token in self._library.get_vocab(with_added_tokens=True):
                raise TokenizerError("not a new special token", found=repr(token), wanted="text that is no token yet")
        text, settings = form.split_settings(self._json)
        library = tokenizers.Tokenizer.from_str(text)
        library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
        return type(self)(form.join_settings(library.to_str(pretty=True), settings))

    def with_chat_template(self, template: str) -> Self:
        """Return the tokenizer with a Jinja chat template, kept in its JSON. Raises TokenizerError.

        The template is of the form of Hugging Face's, within a safe subset (see `deepseek.data.chat_sandbox`).
        """
        from deepseek.data.chat_template import check_template

        check_template(template)
        text, settings = form.split_settings(self._json)
        return type(self)(form.join_settings(text, dataclasses.replace(settings, chat_template=template)))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a chat; None where an imported tokenizer has none."""
        own = OWN_TEMPLATE if self._settings.own else None
        return own if self._settings.chat_template is None else self._settings.chat_template

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens with their ids."""
        return dict(self._special)

    @property
    def eos_id(self) -> int:
        """The id that ends every document: <|endoftext|>, or an imported tokenizer's eos or sep token."""
        return 0 if self._settings.own else self._role_id("eos_token", "sep_token")

    @property
    def pad_id(self) -> int:
        """The id that fills short sequences, always without loss: <|endoftext|>, or an imported pad or eos token."""
        return 0 if self._settings.own else self._role_id("pad_token", "eos_token", "sep_token")

    @property
    def end_id(self) -> int:
        """The id that ends every message of a chat: <|end|>, or an imported tokenizer's eos token."""
        return END_ID if self._settings.own else self.eos_id

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocab_size,) int64: bytes of UTF-8 text that each token stands for; 0 for special tokens."""
        return np.array([len(value) for value in self._bytes], dtype=np.int64)

    def encode(self, text: str, *, allowed_special: Allowed = (), add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; special tokens in it are text but for those in `allowed_special` ("all": any).

        With `add_special_tokens` come those an imported tokenizer sets around a text, such as [CLS] (ours sets none).
        Raises TokenizerError for lone surrogates and for a name that is no special token.
        """
        return self.encode_batch([text], allowed_special=allowed_special, add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, allowed_special: Allowed = (), add_special_tokens: bool = False
    ) -> list[list[int]]:
        """Return the ids of each text as `encode` does, worked out on all cores, at most 1 MiB of text at a time."""
        if allowed_special:
            allowed = self._allowed(allowed_special)
            parts = [[Segment(*part[:2]) for part in split_specials(checked(text), allowed)] for text in texts]
            encoded = [ids for ids, _ in self._encoder.encode_segments(parts)]
        else:
            encoded = self._encoder.encode(texts)
        if add_special_tokens:
            before, after = self._encoder.around()
            encoded = [[*before, *ids, *after] for ids in encoded]
        return encoded

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises TokenizerError for an unknown id."""
        ids = list(ids)
        if not self.lossless:
            for index in ids:
                self.token_bytes(index)
            return self._library.decode(ids, skip_special_tokens=skip_special_tokens)
        names = {} if skip_special_tokens else {index: name.encode() for name, index in self._special.items()}
        return b"".join([names.get(index) or self.token_bytes(index) for index in ids]).decode("utf-8", "replace")

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that one id stands for; none for a special token. Raises TokenizerError."""
        if not 0 <= index < self.vocab_size:
            raise TokenizerError("unknown token id", found=index, wanted=f"0 to {self.vocab_size - 1}")
        return self._bytes[index]

    def encode_chat(
        self, messages: Chat, add_generation_prompt: bool = True, *, template: str | None = None, **variables: Any
    ) -> list[int]:
        """Return the ids of a chat, with the beginning of an answer at its end when one is to be generated.

        Messages are `Message` or `{"role", "content"}`; our own template knows system, user and assistant.
        `template` is a Jinja template in place of the tokenizer's own, `variables` are further values for it, such as
        `tools`. Nothing in a message can become a special token. Raises TokenizerError for an empty chat, an unknown
        role, a tokenizer without a template, and what the template refuses.
        """
        source = self._settings.chat_template if template is None else template
        if source is None and self._settings.own:
            ids, _ = encode_own_chats([messages], self.encode_batch)[0]
            return [*ids, ASSISTANT_ID] if add_generation_prompt else ids
        segments = self._render(messages, source, add_generation_prompt, learned=False, **variables)
        return self._encoder.encode_segments([segments])[0][0]

    def encode_chats(
        self, chats: Sequence[Chat], *, template: str | None = None, **variables: Any
    ) -> list[tuple[list[int], list[bool]]]:
        """Return each chat's ids, and for each id whether it is learned: what the assistant says, and its end.

        Of a Jinja template that is what stands inside `{% generation %}`; of one without it, what each assistant
        message adds to the prompt before it.
        """
        source = self._settings.chat_template if template is None else template
        if source is None and self._settings.own:
            return encode_own_chats(chats, self.encode_batch)
        return self._encoder.encode_segments(
            [self._render(chat, source, False, learned=True, **variables) for chat in chats]
        )

    def _render(
        self, messages: Chat, source: str | None, prompt: bool, *, learned: bool, **variables: Any
    ) -> list[Segment]:
        from deepseek.data.chat_template import render_chat

        if source is None:
            raise TokenizerError("the tokenizer has no chat template", fix="give one with with_chat_template")
        if not messages:
            raise TokenizerError("a chat has no message", wanted="at least one {'role', 'content'}")
        plain = [message._asdict() if isinstance(message, Message) else message for message in messages]
        tokens = {"eos_token": END_OF_TEXT} if self._settings.own else self._settings.tokens
        return render_chat(source, plain, self._specials, tokens, variables, prompt=prompt, learned=learned)

    def _allowed(self, names: Allowed) -> list[Special]:
        if names == "all":
            return self._specials
        for name in names:
            if name not in self._special:
                raise TokenizerError("not a special token", found=repr(name), wanted=", ".join(self._special))
        return [special for special in self._specials if special.text in names]

    def _role_id(self, *roles: str) -> int:
        for role in roles:
            if self._settings.tokens.get(role) in self._special:
                return self._special[self._settings.tokens[role]]
        raise TokenizerError(f"the tokenizer has no {roles[0]}", fix="name it in tokenizer_config.json")


def _is_own(text: str) -> bool:
    try:
        form.parse_own(text)
    except TokenizerError:
        return False
    return True


def _missing(library: tokenizers.Tokenizer, names: Iterable[str]) -> list[AddedToken]:
    """Return those of `names` that are no special tokens of the library yet."""
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    return [AddedToken(name, special=True, normalized=False) for name in dict.fromkeys(names) if name not in special]


def _of_file(path: Path, error: TokenizerError) -> TokenizerError:
    return TokenizerError(f"{path}: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix)
