"""What a server keeps between requests: a cache of answers and sessions, in memory or in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "AnswerCache": "deepseek.serve.state.response_cache:AnswerCache",
    "SessionKeeper": "deepseek.serve.state.sessions:SessionKeeper",
    "StateOptions": "deepseek.serve.state.options:StateOptions",
    "build_state": "deepseek.serve.state.options:build_state",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.serve.state.options import StateOptions as StateOptions
    from deepseek.serve.state.options import build_state as build_state
    from deepseek.serve.state.response_cache import AnswerCache as AnswerCache
    from deepseek.serve.state.sessions import SessionKeeper as SessionKeeper
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
