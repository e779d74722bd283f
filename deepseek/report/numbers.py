"""Numbers as a reader wants them: rounded, with units, a real minus sign and thin spaces. None reads as a dash.

Units are SI and the same in both languages. Not here: which number is shown where.
"""

from __future__ import annotations

DASH = "–"
_NARROW = "\u202f"  # a narrow space that doesn't break


def count(value: float | None) -> str:
    """`1234567` -> `1,234,567`."""
    return DASH if value is None else f"{value:,.0f}"


def short(value: float | None, unit: str = "") -> str:
    """`10_700_000` -> `10.7 M`: three digits that count, for headlines."""
    return DASH if value is None else _scaled(value, 1000.0, ("", "k", "M", "G", "T"), unit)


def size(value: float | None) -> str:
    """Bytes: `41234567` -> `41.2 MB` (decimal units, as disks have them)."""
    return DASH if value is None else _scaled(value, 1000.0, ("", "k", "M", "G", "T"), "B")


def fixed(value: float | None, digits: int = 3) -> str:
    """A plain number with `digits` decimals, fewer for large ones: `3.412`; perplexity with 2: `30.27`, `1,204`."""
    if value is None:
        return DASH
    if abs(value) >= 1000:
        digits = 0
    elif abs(value) >= 100:
        digits = min(digits, 1)
    return f"{value:,.{digits}f}".replace("-", "−")


def scientific(value: float | None) -> str:
    """`0.0000123` -> `1.2e−05`, and zero as `0`."""
    return DASH if value is None else "0" if value == 0 else f"{value:.1e}".replace("-", "−")


def milliseconds(value: float | None) -> str:
    """`5.234` -> `5.23 ms`."""
    return DASH if value is None else f"{_digits(value)}{_NARROW}ms"


def duration(value: float | None) -> str:
    """Seconds: `8.3 s`, `3 min 12 s`, `2 h 05 min`."""
    if value is None:
        return DASH
    if value < 59.95:
        return f"{value:.1f}{_NARROW}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}{_NARROW}min {whole % 60:02d}{_NARROW}s"
    minutes = round(value / 60)
    return f"{minutes // 60}{_NARROW}h {minutes % 60:02d}{_NARROW}min"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction: `0.997` -> `99.7%`."""
    return DASH if value is None else f"{value * 100:.{digits}f}%"


def signed_percent(ratio: float | None) -> str:
    """A relative change: `−74.2%`, `+0.3%`, `±0.0%`."""
    if ratio is None:
        return DASH
    shown = f"{abs(ratio) * 100:.1f}%"
    return "±0.0%" if shown == "0.0%" else ("+" if ratio > 0 else "−") + shown


def mood(ratio: float | None) -> str | None:
    """Return "good" for a value that fell by half a percent or more (less is better), "warn" for one that rose."""
    return None if ratio is None or abs(ratio) < 0.005 else "good" if ratio < 0 else "warn"


def relative(value: float | None, before: float | None) -> float | None:
    """`value / before - 1`, or None where either is missing or `before` is not positive."""
    return None if value is None or before is None or before <= 0 else value / before - 1


def _digits(value: float) -> str:
    return f"{value:,.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _scaled(value: float, step: float, prefixes: tuple[str, ...], unit: str) -> str:
    index = 0
    while abs(value) >= step * 0.9995 and index < len(prefixes) - 1:
        value /= step
        index += 1
    number = f"{value:,.0f}" if index == 0 and value == int(value) else _digits(value)
    suffix = prefixes[index] + unit
    return f"{number}{_NARROW}{suffix}" if suffix else number
