"""Text that was decoded with the wrong encoding, put right by going back: UTF-8 read as Latin-1, cp1252 or GBK, and GBK
read as Latin-1.

A stretch is replaced only where its bytes decode strictly in the right encoding and the outcome scores better; text
that was right fails one of the two. What the wrong decoding lost (a byte that became U+FFFD or "?") stays lost.
Encodings: RFC 3629 (UTF-8), WHATWG Encoding Standard (windows-1252, GBK).
"""

from __future__ import annotations

import re

_CP1252 = {
    bytes([code]).decode("cp1252"): code for code in range(0x80, 0xA0) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
_HIGH = re.compile(f"[\x80-\xff{re.escape(''.join(_CP1252))}]{{2,}}")
_LATIN_RUN = re.compile("[\xa1-\xfe]{4,}")
_NON_ASCII = re.compile(r"[^\x00-\x7f]{2,}")
_HAN = re.compile("[\u4e00-\u9fff]")
_ROUNDS = 3

COMMON_HAN = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事"
    "成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此"
    "已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代"
    "内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安"
    "少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光"
    "放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运房间店"
    "酒服前台早餐早吃环境差错比较号您请谢谢吗吧呢啊哪谁喜欢"
)
"""Some of the commonest Chinese characters: right text is full of them, wrongly decoded text is not."""


def repair(text: str) -> str:
    """Return `text` with wrongly decoded stretches put right; text without any is returned as it is."""
    for _ in range(_ROUNDS):
        if text.isascii():
            return text
        mended = _from_gbk(_LATIN_RUN.sub(_gbk_as_latin, _HIGH.sub(_utf8_as_latin, text)))
        if mended == text:
            return text
        text = mended
    return text


def _utf8_as_latin(match: re.Match[str]) -> str:
    run = match[0]
    try:
        return bytes(_CP1252.get(character) or ord(character) for character in run).decode("utf-8")
    except UnicodeDecodeError:
        return run


def _gbk_as_latin(match: re.Match[str]) -> str:
    """Return the Chinese that a run of Latin-1 letters stands for, where it is plain Chinese of common characters."""
    run = match[0]
    try:
        chinese = run.encode("latin-1").decode("gb2312")
    except UnicodeDecodeError:
        return run
    return chinese if _common_share(chinese) >= 0.3 else run


def _from_gbk(text: str) -> str:
    """Return `text` with what is UTF-8 read as GBK put right: whole lines where that works, else stretches."""
    if not _HAN.search(text):
        return text
    return "\n".join(_gbk_line(line) for line in text.split("\n"))


def _gbk_line(line: str) -> str:
    whole = _utf8_as_gbk(line)
    return whole if whole != line else _NON_ASCII.sub(lambda match: _utf8_as_gbk(match[0]), line)


def _utf8_as_gbk(run: str) -> str:
    try:
        mended = run.encode("gb18030").decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError):
        return run
    if _HAN.search(mended):
        return mended if _common_share(mended) > _common_share(run) else run
    letters = [character for character in mended if character > "\x7f"]
    other_script = len(letters) >= 4 and all(map(str.isalpha, letters)) and _common_share(run) < 0.1
    return mended if other_script else run


def _common_share(text: str) -> float:
    """Return the share of common ones among the characters outside ASCII."""
    other = [character for character in text if character > "\x7f"]
    return sum(character in COMMON_HAN for character in other) / len(other) if other else 0.0
