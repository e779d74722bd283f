"""Two small charts as inline SVG: histograms before and after, and what is left after each rule.

Colours are the page's CSS variables. Not here: captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 200, 8, 26


def histogram(name: str, labels: Sequence[str], before: Sequence[int], after: Sequence[int]) -> str:
    """Return bars for `before` (light) and `after` (strong) side by side, with bins' labels where there is room."""
    highest = max([1, *before, *after])
    step = (_WIDTH - 2 * _LEFT) / max(1, len(before))
    bar = max(1.0, step * 0.4)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)}">']
    base = _HEIGHT - _BOTTOM
    every = max(1, -(-len(labels) // 8))
    for place, (first, second) in enumerate(zip(before, after, strict=True)):
        x = _LEFT + place * step + step * 0.1
        for kind, value, shift in (("before", first, 0.0), ("after", second, bar)):
            height = (base - 14) * value / highest
            height = max(height, 1.5) if value else 0.0
            title = f"<title>{escape(labels[place])}: {value:,} {kind}</title>"
            parts.append(
                f'<rect class="{kind}" x="{x + shift:.1f}" y="{base - height:.1f}" '
                f'width="{bar:.1f}" height="{height:.1f}">'
                f"{title}</rect>"
            )
        if place % every == 0:
            parts.append(
                f'<text x="{x + bar:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(labels[place])}</text>'
            )
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{_LEFT}" y="10">{highest:,}</text></svg>')
    return "".join(parts)


def funnel(rows: Sequence[tuple[str, int]]) -> str:
    """Return a horizontal bar for each (name, documents left); the first is all there were."""
    whole = max(1, rows[0][1]) if rows else 1
    height = 26 * len(rows) + 4
    parts = [f'<svg viewBox="0 0 720 {height}" role="img" aria-label="documents left after each rule">']
    for place, (name, value) in enumerate(rows):
        y = 26 * place + 4
        width = 440 * min(1.0, value / whole)
        parts.append(f'<text x="150" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="{"before" if place == 0 else "after"}" x="160" y="{y}" width="{width:.1f}" height="18"/>'
        )
        parts.append(f'<text class="value" x="{168 + width:.1f}" y="{y + 14}">{value:,}  ({value / whole:.1%})</text>')
    return "".join([*parts, "</svg>"])
