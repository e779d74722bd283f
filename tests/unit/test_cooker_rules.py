"""The cooker's rules one by one, against what they must and must not do."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.cooker import bert_score, find_personal_data, identify, repair, sentences
from deepseek.data.cooker.config import (
    BoilerplateConfig,
    DomainConfig,
    EncodingConfig,
    LanguageConfig,
    PersonalDataConfig,
    QualityConfig,
    SensitiveConfig,
    WindowConfig,
)
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.length import estimate_tokens
from deepseek.data.cooker.line_counts import LineCounts
from deepseek.data.cooker.repetition import repetition
from deepseek.data.cooker.rules.boilerplate import Boilerplate, countable_lines
from deepseek.data.cooker.rules.contamination import Contamination, evaluation_grams
from deepseek.data.cooker.rules.domain import DomainBertScore, DomainProxy, known_grams
from deepseek.data.cooker.rules.encoding import Encoding
from deepseek.data.cooker.rules.language import Language
from deepseek.data.cooker.rules.personal_data import PersonalData, chinese_id, luhn
from deepseek.data.cooker.rules.quality import Quality
from deepseek.data.cooker.rules.sensitive import Sensitive
from deepseek.data.cooker.rules.window import Window, split
from deepseek.data.cooker.word_search import WordSearch
from deepseek.errors import ConfigError, DataError

ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood."
)
# Article 1 of the Universal Declaration of Human Rights (United Nations, https://www.ohchr.org/en/udhr)
ARTICLE = {
    "en": ENGLISH,
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de "
    "consciência, "
    "devem agir uns para com os outros em espírito de fraternidade.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en "
    "geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete och "
    "bör handla gentemot varandra i en anda av broderskap.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja "
    "omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i "
    "sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím a mají "
    "spolu jednat v duchu bratrství.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel és "
    "lelkiismerettel "
    "bírván, egymással szemben testvéri szellemben kell hogy viseltessenek.",
    "ro": "Toate ființele umane se nasc libere și egale în demnitate și în drepturi. Ele sunt înzestrate cu rațiune și "
    "conștiință și trebuie să se comporte unele față de altele în spiritul fraternității.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve "
    "birbirlerine "
    "karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal "
    "dan hati "
    "nurani dan hendaknya bergaul satu sama lain dalam semangat persaudaraan.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được "
    "tạo hoá ban "
    "cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng hữu.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "he": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}


def draft(text: str, line: int = 1, **keys: object) -> Draft:
    return Draft({"text": text, **keys}, (text,), "in.jsonl", line)


def chat(*texts: str) -> Draft:
    messages = [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)
    ]
    return Draft({"messages": messages}, texts, "in.jsonl", 1)


@pytest.mark.parametrize("code", ARTICLE)
def test_a_language_is_known_by_its_sentences(code: str) -> None:
    assert identify(ARTICLE[code])[0] == code


def test_what_has_no_language_is_undetermined() -> None:
    assert {identify(text)[0] for text in ("", "12345", "?!", "xyzzy qwrt zzkp", "🙂🙂")} == {"und"}


@pytest.mark.parametrize("code", ["zh", "ja", "ru", "ar", "fr", "de", "vi"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_utf8_read_as_latin_comes_back(code: str, wrong: str) -> None:
    broken = "".join(
        bytes([byte]).decode(wrong, "replace").replace("\ufffd", chr(byte)) for byte in ARTICLE[code].encode()
    )
    assert broken != ARTICLE[code] and repair(broken) == ARTICLE[code]


def test_gbk_mistaken_either_way_comes_back() -> None:
    text = "酒店的服务很好，我们下次还会来这里住的"
    assert repair(text.encode("gb2312").decode("latin-1")) == text
    even = "你好世界，今天的天气很好"  # an odd number of bytes would have lost one
    assert repair(even.encode().decode("gbk")) == even


@pytest.mark.parametrize("code", ARTICLE)
def test_right_text_is_left_alone(code: str) -> None:
    assert repair(ARTICLE[code]) == ARTICLE[code]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_repair_takes_any_text_and_is_done_after_one_time(text: str) -> None:
    once = Encoding(EncodingConfig()).apply(draft(text))
    if isinstance(once, Change):
        once.texts[0].encode("utf-8")
        again = Encoding(EncodingConfig(mojibake=False, html_entities=False)).apply(draft(once.texts[0]))
        assert not isinstance(again, Change)


def test_control_characters_surrogates_and_entities_are_mended() -> None:
    rule = Encoding(EncodingConfig(full_width=True))
    change = rule.apply(draft("\ufeffA\x00B\x07 &lt;b&gt; \ud83d\ude00 e\u0301 １２Ａ\r\n\ud800 ok and so on"))
    assert isinstance(change, Change) and change.texts == ("AB <b> 😀 é 12A\n\ufffd ok and so on",)
    assert "HTML entities" in str(change.value) and "surrogates" in str(change.value)
    assert isinstance(rule.apply(draft("\ufffd" * 20 + "text")), Drop)
    assert rule.apply(draft("plain text & more")) is None


def test_languages_are_kept_or_dropped() -> None:
    rule = Language(LanguageConfig(keep=["zh"]))
    assert rule.apply(draft(ARTICLE["zh"])) is None
    assert rule.apply(draft(ENGLISH)) == Drop("another language", "en")
    assert rule.apply(draft("12345")) is None
    with pytest.raises(ConfigError, match="unknown language"):
        LanguageConfig(keep=["zz"])


def test_quality_counts_words_or_characters_and_drops_what_repeats() -> None:
    rule = Quality(QualityConfig())
    good = ENGLISH + " Everyone is entitled to all the rights set forth in this Declaration, without distinction."
    assert rule.apply(draft(good)) is None and rule.apply(draft(ARTICLE["zh"])) is None
    assert rule.apply(draft("太好了")) == Drop("too short", 3)
    assert rule.apply(draft("Too short.")) == Drop("too short", 2)
    reasons = {
        "repeated": "this is the best of all the cheap watches you have " * 30,
        "mostly bullet lines": "\n".join(f"- {word} is an item here" for word in good.split()),
        "few letters": "12 34 56 78 90 12 34 56 78 a b c d 3 4 5 6",
        "mean word length": " ".join(["Donaudampfschifffahrtsgesellschaft"] * 8),
    }
    for reason, text in reasons.items():
        verdict = rule.apply(draft(text))
        assert isinstance(verdict, Drop) and verdict.reason.startswith(reason), (reason, verdict)
    assert isinstance(rule.apply(draft("这个酒店真的非常好住得舒服" * 40)), Drop)


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=60))
@settings(max_examples=100, deadline=None)
def test_repeated_n_grams_equal_a_count_by_hand(letters: list[str]) -> None:
    measured = dict(repetition(" ".join(letters)))
    for n in (5, 7):
        seen, covered = set(), set()
        for place in range(len(letters) - n + 1):
            gram = tuple(letters[place : place + n])
            if gram in seen:
                covered |= set(range(place, place + n))
            seen.add(gram)
        assert measured[f"{n}-grams"] == pytest.approx(len(covered) / len(letters))


def test_recurring_lines_go_and_chats_stay() -> None:
    pages = [
        draft(f"Page {place} of many\nSubscribe to Daily Things!\nThe story of day {place} is long")
        for place in range(40)
    ]
    counts = LineCounts()
    counts.add_documents([countable_lines(page.text.replace("Page", f"Page{page.line}")) for page in pages], 40)
    rule = Boilerplate(BoilerplateConfig(max_share=0.9), counts)
    other = draft("A title of its own\nSubscribe to Daily  things!\nA sentence that nobody else has")
    assert rule.apply(other) == Change(("A title of its own\nA sentence that nobody else has",), "boilerplate lines", 1)
    assert rule.apply(chat("a\nSubscribe to Daily Things!\nb", "c")) is None
    cookie = draft(
        "We use cookies to improve this page.\nThe cell divides twice.\n版权所有 2020 某公司\nThen it rests."
    )
    assert rule.apply(cookie) == Change(("The cell divides twice.\nThen it rests.",), "boilerplate lines", 2)


def test_a_line_count_is_never_too_low(tmp_path: Path) -> None:
    counts, lines = LineCounts(), [countable_lines(f"a{place % 7}\nb\nc{place}") for place in range(200)]
    counts.add_documents(lines, 200)
    counts.save(tmp_path / "c")
    again = LineCounts.load(tmp_path / "c")
    assert again.documents == 200 and (again.count(countable_lines("b\nb\nb")) >= 200).all()
    (tmp_path / "c").write_bytes(b"no counts")
    with pytest.raises(DataError, match="damaged"):
        LineCounts.load(tmp_path / "c")


PERSONAL = {
    "write to jane.doe+x@mail.example.co.uk now": ["email"],
    "手机：13812345678，谢谢": ["phone"],
    "call +86 138 1234 5678 or 010-62345678": ["phone", "phone"],
    "(415) 555-2671": ["phone"],
    "身份证11010519491231002X。": ["id_card"],
    "card 4111 1111 1111 1111": ["bank_card"],
    "amex 3782 822463 10005, visa 4111111111111111": ["bank_card", "bank_card"],
    "$<<2000000-400000=1600000>>": [],
    "host 192.168.10.254, and 2001:db8::8a2e:370:7334": ["ip", "ip"],
    "42 +126 + 63 = 231 and 16.5 +12.5 + 25": [],
    "110105194912310021 4111 1111 1111 1112 version 1.2.3.4.5 300.1.1.1 at 12:30:45": [],
    "12345678901234567890123456 and 3.14159265358979": [],
}


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_is_told_by_form_and_check_digit(text: str) -> None:
    assert [kind for _, _, kind in find_personal_data(text)] == PERSONAL[text]


def test_check_digits() -> None:
    assert luhn("79927398713") and not any(luhn(f"7992739871{digit}") for digit in "012456789")
    assert chinese_id("11010519491231002X") and not chinese_id("110105194913310020")


def test_personal_data_is_masked_dropped_or_counted() -> None:
    text = chat("mail a@b.org", "or 13812345678 ok")
    mask = PersonalData(PersonalDataConfig()).apply(text)
    assert isinstance(mask, Change) and mask.texts == ("mail [EMAIL]", "or [PHONE] ok")
    assert isinstance(PersonalData(PersonalDataConfig(action="drop")).apply(text), Drop)
    keep = PersonalData(PersonalDataConfig(action="keep", kinds=["email"])).apply(text)
    assert isinstance(keep, Change) and keep.texts == text.texts and keep.value == "1 x email"


@given(st.lists(st.text("ab中", min_size=1, max_size=4), min_size=1, max_size=6), st.text("ab中 ", max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_automaton_finds_what_a_search_word_by_word_finds(words: list[str], text: str) -> None:
    def alone(start: int, end: int) -> bool:
        def latin(place: int) -> bool:
            return 0 <= place < len(text) and text[place] in "ab"

        return not (latin(start) and latin(start - 1)) and not (latin(end - 1) and latin(end))

    wanted = {
        (start, start + len(word), word)
        for word in set(words)
        for start in range(len(text))
        if text.startswith(word, start) and alone(start, start + len(word))
    }
    assert set(WordSearch(words).find(text)) == wanted


def test_words_are_found_in_any_case_and_width_but_not_inside_others() -> None:
    rule = Sensitive(SensitiveConfig(words="x", action="mask"), WordSearch(["ass", "赌博"]))
    assert rule.apply(draft("The ＡＳＳ of a class 网络赌博害人")) == Change(
        ("The *** of a class 网络**害人",), "sensitive words masked", "ass, 赌博"
    )
    assert rule.apply(draft("a class")) is None
    with pytest.raises(ConfigError, match="empty"):
        WordSearch([" "])


@pytest.mark.timeout(60)  # a screen that takes quadratic time needs far longer
def test_screens_stay_linear_on_hostile_text() -> None:
    hostile = [
        "a" * 60_000,
        "1" * 60_000,
        "a@" * 20_000,
        "1.1." * 20_000,
        "+1" * 20_000,
        ":::a" * 20_000,
        "x@" + "a." * 30_000,
    ]
    search = WordSearch(["a" * 50 + "b"])
    for text in hostile:
        find_personal_data(text)
        search.find(text)
        repair(text)
        sentences(text)


def test_a_13_gram_of_an_evaluation_set_is_found(tmp_path: Path) -> None:
    words = [f"w{place}" for place in range(40)]
    (tmp_path / "e.jsonl").write_text(
        json.dumps({"question": " ".join(words), "more": ["人人生而自由，在尊严和权利上一律平等。"]}) + "\n", "utf-8"
    )
    rule = Contamination(evaluation_grams([str(tmp_path / "e.jsonl")], 13))
    assert rule.apply(draft("start, " + " ".join(words[5:18]).upper() + "! end")) == Drop("in an evaluation set", 1)
    assert rule.apply(draft(" ".join(words[5:17]) + " other")) is None
    assert isinstance(rule.apply(draft("有人说：人人生而自由，在尊严和权利上一律平等！")), Drop)
    (tmp_path / "bad.jsonl").write_text("{", "utf-8")
    with pytest.raises(DataError, match="can't read the evaluation set"):
        evaluation_grams([str(tmp_path / "bad.jsonl")], 13)


def test_bert_score_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(length, 8, generator=generator) for length in (3, 5, 2, 4)]
    score = bert_score(texts[:2], texts[2:])
    for i, candidate in enumerate(texts[:2]):
        for j, reference in enumerate(texts[2:]):
            table = torch.nn.functional.cosine_similarity(candidate[:, None], reference[None], dim=2)
            precision, recall = table.max(dim=1).values.mean(), table.max(dim=0).values.mean()
            assert score.precision[i, j] == pytest.approx(float(precision), abs=1e-6)
            assert score.recall[i, j] == pytest.approx(float(recall), abs=1e-6)
            assert score.f1[i, j] == pytest.approx(float(2 * precision * recall / (precision + recall)), abs=1e-6)
    assert bert_score(texts, texts).f1.diagonal() == pytest.approx(torch.ones(4), abs=1e-6)
    with pytest.raises(DataError, match="at least one token"):
        bert_score([torch.zeros(0, 8)], texts)


def test_the_domain_rule_drops_strangers() -> None:
    config = DomainConfig(references="x", method="bertscore")
    basis = torch.eye(4)
    rule = DomainBertScore(config, lambda texts: [basis[[len(text) % 4]] for text in texts], ["abcd"])
    verdicts = rule.apply([draft("abcdefgh"), draft("abc")])
    assert verdicts[0] is None and isinstance(verdicts[1], Drop) and "BERTScore" in verdicts[1].reason
    proxy = DomainProxy(DomainConfig(references="x"), known_grams([ENGLISH]))
    stranger = proxy.apply(draft("Prices of used tractors fell last week"))
    assert proxy.apply(draft(ENGLISH[:60])) is None
    assert isinstance(stranger, Drop) and "proxy" in stranger.reason


@given(st.text(st.sampled_from('ab. 。！?\n”"')))
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


def test_long_documents_are_split_at_sentences_and_short_ones_joined() -> None:
    rng = random.Random(0)
    window = Window(WindowConfig(target=60, tolerance=10), estimate_tokens)
    long = " ".join(f"{' '.join(rng.choices(['alpha', 'beta', 'gamma'], k=7))}." for _ in range(40))
    chinese = "".join("今天天气很好我们去公园玩。" for _ in range(40))
    for text in (long, chinese, "word " * 500, "无" * 500):
        pieces = split(text, window.config, estimate_tokens)
        lengths = estimate_tokens(pieces)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(50 <= length <= 70 for length in lengths[:-1]) and lengths[-1] <= 70, lengths
    assert all(piece.endswith(".") for piece in split(long, window.config, estimate_tokens))
    shorts = [draft(f"A short note number {place} here.", place, kind=place // 6) for place in range(12)]
    units = window.apply(shorts)
    assert sum(len(unit.drafts) for unit in units) == 12
    assert all(len({one.record["kind"] for one in unit.drafts}) == 1 for unit in units)
    assert max(len(unit.drafts) for unit in units) > 3
    dropping = Window(WindowConfig(target=60, tolerance=10, long="drop", short="drop"), estimate_tokens)
    assert [unit.texts for unit in dropping.apply([shorts[0], draft(long)])] == [[], []]
