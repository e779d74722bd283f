"""What a function is, as a hash: so that a run is not continued with other code.

The hash covers name, bytecode, constants, defaults, what it closes over, and the functions and plain values of its own
module that it uses. It does not see other modules, files or the clock; another
version of Python counts as a change. Not here: the rest of a plan (`run`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from typing import Any

_PLAIN = (str, bytes, int, float, bool, complex, type(None))
_DEEPEST = 20


def fingerprint(function: Any) -> str:
    """Return 32 hexadecimal digits that change when the function does."""
    return hashlib.blake2b(_text(function, [], 0).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _text(value: Any, seen: list[Any], depth: int) -> str:
    """Return text that is the same for the same value in every process."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if depth > _DEEPEST:
        return type(value).__qualname__
    for place, other in enumerate(seen):
        if other is value:
            return f"again {place}"
    seen.append(value)
    below = depth + 1
    if isinstance(value, types.FunctionType):
        return _function(value, seen, below)
    if isinstance(value, types.MethodType):
        return f"method {_text(value.__func__, seen, below)} of {_text(value.__self__, seen, below)}"
    if isinstance(value, types.CodeType):
        return _code(value, seen, below)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} [{', '.join(_text(one, seen, below) for one in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"set {sorted(_text(one, [], below) for one in value)}"
    if isinstance(value, dict):
        items = sorted((_text(key, [], below), _text(one, [], below)) for key, one in value.items())
        return f"dict {items}"
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        name = getattr(value, "__qualname__", value.__name__)
        return f"named {getattr(value, '__module__', '')}.{name}"
    return _object(value, seen, below)


def _object(value: Any, seen: list[Any], depth: int) -> str:
    """Return a callable object, a partial, a pattern or an array by its class and what it holds."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return f"{kind} {[_text(one, seen, depth) for one in (value.func, value.args, value.keywords)]}"
    if hasattr(value, "pattern") and hasattr(value, "flags"):
        return f"{kind} {value.pattern!r} {value.flags}"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return f"{kind} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if dataclasses.is_dataclass(value):
        held: Any = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        held = getattr(value, "__dict__", {})
    call = vars(type(value)).get("__call__")
    code = _text(call, seen, depth) if isinstance(call, types.FunctionType) else ""
    return f"{kind} {_text(dict(held), seen, depth)} {code}"


def _function(function: types.FunctionType, seen: list[Any], depth: int) -> str:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_text(cell.cell_contents, seen, depth))
        except ValueError:  # not yet filled
            cells.append("empty")
    used = []
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if own or (name in function.__globals__ and isinstance(value, (*_PLAIN, tuple, frozenset))):
            used.append(f"{name} = {_text(value, seen, depth)}")
    parts = [
        function.__qualname__,
        _text(function.__code__, seen, depth),
        _text(function.__defaults__, seen, depth),
        _text(function.__kwdefaults__, seen, depth),
        *cells,
        *used,
    ]
    return f"function {parts}"


def _names(code: types.CodeType) -> list[str]:
    """Return the global names that code uses, also in the functions inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(_names(constant))
    return sorted(found)


def _code(code: types.CodeType, seen: list[Any], depth: int) -> str:
    constants = [_text(one, seen, depth) for one in code.co_consts]
    return f"code {code.co_code.hex()} {constants} {code.co_names} {code.co_varnames} {code.co_argcount}"
