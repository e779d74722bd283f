"""A folder with a tokenizer in the Hugging Face layout: `tokenizer.json` and the small files beside it.

`tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` say which token plays which role and how a
chat is rendered. Not here: what `tokenizer.json` itself means (`tokenizer_format`).

Source: https://huggingface.co/docs/transformers/main_classes/tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepseek import files
from deepseek.data.tokenizer_format import Settings
from deepseek.errors import TokenizerError

MAX_FILE_BYTES = 256 * 1024 * 1024
_MAX_CONFIG_BYTES = 16 * 1024 * 1024
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OLD_FILES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """Return a file's text. Raises TokenizerError for one that is missing, too large or not UTF-8."""
    try:
        if path.stat().st_size > limit:
            raise TokenizerError(f"{path} is too large for a tokenizer", wanted=f"at most {limit} bytes")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TokenizerError(f"can't read the tokenizer {path}", found=error.strerror) from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not a tokenizer", found="bytes that are not UTF-8") from None


def read_folder(path: Path) -> tuple[str, Settings, list[str]]:
    """Return tokenizer.json, the settings of the files beside it, and further special tokens. Raises TokenizerError."""
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        old = [name for name in _OLD_FILES if (path / name).is_file()]
        raise TokenizerError(
            f"{path} holds no tokenizer.json",
            found=", ".join(old) or "none of a tokenizer's files",
            fix="write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    config = {**_read_object(folder / "special_tokens_map.json"), **_read_object(folder / "tokenizer_config.json")}
    tokens = {role: name for role in ROLES if (name := _token_name(config.get(role)))}
    listed = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    listed = list(listed.values()) if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    further = [name for name in map(_token_name, listed) if name]
    return read_text(file), Settings(own=False, tokens=tokens, chat_template=_template(folder, config)), further


def write_folder(folder: Path, text: str, settings: Settings, additional: list[str]) -> None:
    """Write the files that `read_folder` and transformers' AutoTokenizer read, each atomically. Raises StorageError."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **settings.tokens,
    }
    if additional:
        config["additional_special_tokens"] = additional
    if settings.chat_template is not None:
        config["chat_template"] = settings.chat_template
    files.write_text(folder / "tokenizer.json", text)
    files.write_json(folder / "tokenizer_config.json", config)
    files.write_json(folder / "special_tokens_map.json", dict(settings.tokens))


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not JSON", found=str(error)[:200]) from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} is not a JSON object", found=type(found).__name__)
    return found


def _token_name(value: object) -> str | None:
    """Return the text of a token that is given as text or as an object with `content`."""
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name else None


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the chat template: its own file, or the config's; of several the one named "default"."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja", _MAX_CONFIG_BYTES)
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
