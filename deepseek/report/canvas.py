"""matplotlib as an SVG writer for one page: inline, deterministic, coloured and worded by the page itself.

A figure is drawn with sentinel colours and tokens for its words; the SVG text is then rewritten so that colours are
CSS variables (dark mode), words are in both languages, fonts are the page's, and ids are unique on the page.
No pyplot and no state outside one figure. Not here: what is drawn. matplotlib's SVG backend:
https://matplotlib.org/stable/api/backend_svg_api.html
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepseek.lazy import require
from deepseek.report.html import Html, safe, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLES = ("text", "muted", "grid", "train", "raw", "validation", "bigram", "unigram", "bar", "chosen", "whisker")
_COLORS = {role: f"#0a0b{index + 16:02x}" for index, role in enumerate(_ROLES)}
_POINTS_PER_INCH = 72.0  # at 72 a matplotlib point is one unit of the viewBox
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deepseek.report",
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib; only measures, the page sets its own
    "font.size": 12.0,
    "path.simplify": True,
    "axes.unicode_minus": True,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Layout:
    """The size a chart is drawn for, in CSS pixels: `wide` from tablets up, `narrow` for phones."""

    name: str
    width: float


WIDE = Layout("wide", 760.0)
NARROW = Layout("narrow", 304.0)


def color(role: str) -> str:
    """Return the sentinel colour of a role; on the page it is the CSS variable `--chart-ROLE`."""
    return _COLORS[role]


@dataclass
class Canvas:
    """One SVG in the making; positions and sizes are in pixels, y from the top."""

    layout: Layout
    figure: Figure
    height: float
    words: list[Html] = field(default_factory=list)

    @property
    def narrow(self) -> bool:
        """Whether this is the phone's version."""
        return self.layout is NARROW

    def say(self, english: str, chinese: str | None = None) -> str:
        """Return a token that stands for these words (escaped; the same in both languages if one is given)."""
        self.words.append(safe(english) if chinese is None else _tspans(english, chinese))
        return f"@{len(self.words) - 1}@"

    def axes(self, top: float, bottom: float, *, left: float = 46.0, right: float = 10.0) -> Axes:
        """Add axes between these distances from the figure's top and sides, with a light horizontal grid."""
        width = self.layout.width
        axes = self.figure.add_axes(
            (left / width, 1 - bottom / self.height, (width - left - right) / width, (bottom - top) / self.height)
        )
        axes.patch.set_visible(False)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(color("muted"))
        axes.spines["bottom"].set_linewidth(0.8)
        axes.grid(axis="y", color=color("grid"), linewidth=1.0)
        axes.set_axisbelow(True)
        axes.tick_params(axis="both", length=0, pad=6, labelsize=12.5, labelcolor=color("muted"))
        axes.tick_params(axis="x", length=4, width=0.8, color=color("muted"), pad=4)
        return axes

    def words_at(self, x: float, y: float, token: str, *, align: str = "left", role: str = "muted") -> None:
        """Write a token at a pixel position (baseline)."""
        self.figure.text(
            x / self.layout.width, 1 - y / self.height, token, ha=align, va="baseline", fontsize=12.5, color=color(role)
        )


def draw(name: str, height: float, paint: Callable[[Canvas], None]) -> Html:
    """Paint a chart once for each layout; CSS shows the one that fits. `name` must be unique on the page.

    Raises MissingExtraError when matplotlib is not installed.
    """
    require("matplotlib", "report")
    return tag("div", _one(name, height, paint, WIDE), _one(name, height, paint, NARROW), class_="chart")


def _one(name: str, height: float, paint: Callable[[Canvas], None], layout: Layout) -> Html:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # its keys are literal types in some releases
        settings.update(_SETTINGS)
        figure = Figure(figsize=(layout.width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        canvas = Canvas(layout, figure, height)
        paint(canvas)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    return _for_page(buffer.getvalue(), f"{name}-{layout.name}", f"{name}-caption", canvas)


def _for_page(svg: str, prefix: str, caption: str, canvas: Canvas) -> Html:
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r' id="(?!p?[0-9a-f]{10,}"|m[0-9a-f]{10})[^"]*"', "", body)  # only clips and markers are referred to
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for role, sentinel in _COLORS.items():
        body = body.replace(sentinel, f"var(--chart-{role})")
    body = re.sub(r"@(\d+)@", lambda match: canvas.words[int(match.group(1))], body)
    body = re.sub(r">\s+<", "><", body)
    opening = tag(
        "svg",
        viewBox=f"0 0 {canvas.layout.width:g} {canvas.height:g}",
        class_=canvas.layout.name,
        role="img",
        aria_labelledby=caption,
    ).removesuffix("</svg>")
    return Html(f"{opening}{body.strip()}</svg>")


def _tspans(english: str, chinese: str) -> Html:
    return Html(f'<tspan class="en">{safe(english)}</tspan><tspan class="zh">{safe(chinese)}</tspan>')
