"""Rule `boilerplate`: lines that recur over many documents, and lines about cookies and navigation, are taken out.

Which lines recur is counted in a pass of its own before the rules run (`line_counts`). Only texts of three lines and
more are looked at, and never chats: a short answer that recurs is no boilerplate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.data.cooker.config import BoilerplateConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.hashing import Hashes, text_hashes
from deepseek.data.cooker.line_counts import LineCounts

_FEWEST_LINES = 3
_LONGEST_PHRASE_LINE = 160
_SPACE = re.compile(r"\s+")
PHRASES = (
    r"(?:accept|we use|this (?:web)?site uses|manage|reject) (?:all )?cookies?",
    r"cookie (?:policy|settings|preferences|notice)",
    r"(?:privacy policy|terms (?:of (?:use|service)|and conditions)) ?(?:\||$)",
    r"all rights reserved",
    r"(?:click here|sign up|subscribe) (?:to|for) (?:our |the )?(?:newsletter|read more|continue)",
    r"^(?:skip to (?:main )?content|back to top|log ?in|sign in|share (?:this|on)\b.*|read more|menu|home)$",
    r"(?:home|about(?: us)?|contact(?: us)?|login|products) ?[|>»/·] ?(?:home|about|contact|login|products)",
    r"please enable javascript",
    r"版权所有|京ICP备|公网安备|ICP备\d+",
    r"^(?:返回顶部|上一篇|下一篇|点击(?:查看|阅读)(?:更多|全文)?|阅读全文|登录|注册|首页|免责声明|网站地图|分享到.*)[:：>]?.{0,40}$",
    r"(?:本站|本网站|我们)(?:使用|用到) ?cookie|隐私政策|接受(?:全部|所有)? ?cookie",
    r"扫描(?:上方|下方)?二维码|关注(?:我们的)?(?:微信)?公众号",
)
_PHRASES = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES), re.IGNORECASE)


@dataclass(frozen=True)
class Boilerplate:
    """Takes such lines out; a document of which most was boilerplate is dropped."""

    config: BoilerplateConfig
    counts: LineCounts | None = None
    name = "boilerplate"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the text without its boilerplate lines; the value is how many there were."""
        if draft.is_chat:
            return None
        lines = draft.text.split("\n")
        if sum(bool(line.strip()) for line in lines) < _FEWEST_LINES:
            return None
        out = self._marked(lines)
        if not out.any():
            return None
        kept = "\n".join(line for line, gone in zip(lines, out, strict=True) if not gone).strip()
        lost = 1.0 - len(kept) / max(1, len(draft.text.strip()))
        if not kept or lost > self.config.max_share:
            return Drop("mostly boilerplate", round(lost, 4))
        return Change((kept,), "boilerplate lines", int(out.sum()))

    def _marked(self, lines: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return for each line whether it is boilerplate."""
        out = np.zeros(len(lines), dtype=bool)
        if self.config.phrases:
            out |= [len(line) <= _LONGEST_PHRASE_LINE and bool(_PHRASES.search(line.strip())) for line in lines]
        if self.counts is not None and self.config.recurring:
            least = max(self.config.min_documents, int(self.config.min_share * self.counts.documents))
            keys = [line_key(line) for line in lines]
            filled = np.array([bool(key) for key in keys])
            out |= filled & (self.counts.count(text_hashes(keys)) >= least)
        return out


def line_key(line: str) -> str:
    """Return what two lines have in common that count as the same: case, white space and digits don't matter."""
    return re.sub(r"\d+", "0", _SPACE.sub(" ", line.strip()).lower())


def countable_lines(text: str) -> Hashes:
    """Return the hashes of a text's different lines; none where it has fewer than three lines."""
    keys = [key for line in text.split("\n") if (key := line_key(line))]
    if len(keys) < _FEWEST_LINES:
        return np.zeros(0, dtype=np.uint64)
    return text_hashes(sorted(set(keys)))
