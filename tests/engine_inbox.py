"""What listens to an engine in tests, and jobs for it."""

from __future__ import annotations

import threading

from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.engine import Done, Engine, Event, Failed, Job, Piece
from tests.fake_serving import EOS


class Inbox:
    """Keeps events; `ended` is set with the last one of `answers` answers."""

    def __init__(self, answers: int = 1) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self._open = answers

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self._open -= 1
            if self._open == 0:
                self.ended.set()

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece) and event.choice == index)

    def end(self, index: int = 0) -> Done | Failed:
        return next(event for event in self.events if event.choice == index and not isinstance(event, Piece))


def job(prompt: str = "abc", tokens: int = 8, **rest) -> Job:
    return Job(list(prompt.encode()), SamplingConfig(max_new_tokens=tokens), stop_ids=frozenset({EOS}), **rest)


def drain(engine: Engine) -> None:
    while engine.step():
        pass
