"""KdConv: Chinese dialogues, each turn with the facts it rests on, to chats.

Source: Zhou et al. 2020, KdConv (https://arxiv.org/abs/2004.04100), and its files: a list of dialogues, each with a
`name` and `messages` that have `message` and, where facts are used, `attrs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import shown
from deepseek.errors import DataError


def kdconv_chats(path: str | Path, *, knowledge: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a chat for each dialogue of a KdConv file, or of all such files of a folder.

    Each is `{"messages": [{"role", "content"}, ...], "triples": [[head, relation, tail], ...], "name"}`: written as
    lines of JSON they are what `deepseek.data.read_documents` takes. The one who speaks first is the user, the other
    the assistant. `triples` are the facts that the turns rest on, in order, each once; with `knowledge` a system
    message with them, one a line, comes first. Raises DataError naming file and dialogue for another form.
    """
    survey = Survey.of(path)
    names = list(survey.files) if survey.is_file else survey.names("kdconv")
    if not names:
        raise DataError(f"{shown(path)} holds no KdConv dialogues", found=survey.summary())
    for name in names:
        for number, dialogue in enumerate(_dialogues(survey.root / name)):
            try:
                yield _chat(dialogue, knowledge)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{shown(survey.root / name)}: dialogue {number} is of another form",
                    found=f"{type(error).__name__}: {error}"[:200],
                    wanted='{"name", "messages": [{"message", "attrs": [{"name", "attrname", "attrvalue"}]}]}',
                ) from None


class KdConv:
    """The dialogues of KdConv files: `messages`, `triples`, `name` and `path`, as `kdconv_chats` gives them."""

    def __init__(self, path: str | Path, *, knowledge: bool = False) -> None:
        self._path = str(path)
        self._chats = StringColumn(
            json.dumps(chat, ensure_ascii=False) for chat in kdconv_chats(path, knowledge=knowledge)
        )
        if not len(self._chats):
            raise DataError(f"{shown(path)} holds no dialogue", found="an empty list")
        lengths = (sum(len(turn["content"]) for turn in json.loads(chat)["messages"]) for chat in self._chats)
        self._sizes = np.fromiter(lengths, dtype=np.int64, count=len(self._chats))

    def __len__(self) -> int:
        return len(self._chats)

    def sizes(self) -> NDArray[np.int64]:
        """Return the characters of each dialogue."""
        return self._sizes

    def read(self, index: int) -> Sample:
        """Return dialogue `index`."""
        return {**json.loads(self._chats[index]), "path": self._path}


def _dialogues(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)} is not valid JSON", found=str(error)[:200]) from None
    if not isinstance(content, list):
        raise DataError(f"{shown(file)} holds no KdConv dialogues", found=type(content).__name__, wanted="a list")
    return content


def _chat(dialogue: Any, knowledge: bool) -> dict[str, Any]:
    turns = dialogue["messages"]
    if len(turns) < 2:
        raise ValueError(f"{len(turns)} messages; wanted at least two")
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": _text(turn["message"])}
        for place, turn in enumerate(turns)
    ]
    facts = [
        (_text(fact["name"]), _text(fact["attrname"]), _text(fact["attrvalue"]))
        for turn in turns
        for fact in turn.get("attrs", ())
    ]
    triples = [list(fact) for fact in dict.fromkeys(facts)]
    if knowledge and triples:
        messages.insert(0, {"role": "system", "content": "\n".join("\t".join(fact) for fact in triples)})
    return {"messages": messages, "triples": triples, "name": _text(dialogue["name"])}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {type(value).__name__}; wanted text")
    value.encode("utf-8")  # refuses half of a surrogate pair
    return value
