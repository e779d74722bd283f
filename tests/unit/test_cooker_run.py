"""A whole run of the cooker: order, workers, undo, report, refusals, and memory that stays flat."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deepseek.cli.app import app
from deepseek.cli.cook import bert_embedder
from deepseek.data.cooker import CookerConfig, DataCooker, Progress, restore
from deepseek.data.cooker.page import render
from deepseek.errors import ConfigError, DataError

WORDS = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but what all"
    " were when we there can an your which their said"
    " if do into has more her two like him see time could no make"
    " than first river stone garden window letter winter market music doctor island forest engine paper"
    " silver morning travel"
).split()
HAN = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
SECRET = "Call me at 13812345678 or write to a.b@example.org about it please."


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of every kind that the rules treat differently, with true copies among them."""
    rng = random.Random(seed)

    def sentence() -> str:
        names = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(3)]  # else long ones share all their words
        return " ".join([*rng.choices(WORDS, k=6), *names]).capitalize() + "."

    def english(length: int) -> str:
        return " ".join(sentence() for _ in range(length))

    made: list[dict[str, Any]] = []
    for number in range(count):
        kind = number % 10
        if kind == 0:
            made.append({"text": "".join(rng.choice(HAN) for _ in range(60)) + "。", "id": number})
        elif kind == 1:
            made.append({"prompt": english(2), "response": english(3), "id": number})
        elif kind == 2:
            made.append({"text": english(6).encode().decode("latin-1") + " caf\u00c3\u00a9 &amp; co", "id": number})
        elif kind == 3:
            made.append({"text": f"{english(3)} {SECRET}", "id": number})
        elif kind == 4:
            made.append({"text": "short", "id": number})
        elif kind == 5 and number > 10:
            made.append({**made[number - 10], "id": number} if number % 20 == 5 else {"text": english(4), "id": number})
        elif kind == 6:
            made.append({"text": english(90), "id": number})
        elif kind == 7:
            made.append(
                {"messages": [{"role": "user", "content": english(1)}, {"role": "assistant", "content": english(2)}]}
            )
        else:
            made.append({"text": english(3)})
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CONFIG = CookerConfig(block_documents=17)


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cooked")
    write(folder / "in.jsonl", records(200))
    DataCooker(CONFIG, workers=1).run(folder / "in.jsonl", folder / "out.jsonl", report=folder / "r.html")
    return folder


def test_every_rule_did_its_part_and_the_counts_add_up(cooked: Path) -> None:
    report = json.loads((cooked / "r.json").read_text(encoding="utf-8"))
    rules = report["tally"]["rules"]
    assert list(rules) == ["encoding", "language", "quality", "boilerplate", "personal_data", "duplicates", "window"]
    assert rules["encoding"]["changed"] >= 20 and rules["personal_data"]["changed"] >= 20
    assert rules["quality"]["reasons"] == {"too short": 20} and rules["duplicates"]["dropped"] == 9
    assert rules["window"]["split"] == 20 and rules["window"]["merged"] > 20
    left = 200
    for rule in rules.values():
        assert rule["seen"] == left
        left -= rule["dropped"]
    out = read(cooked / "out.jsonl")
    assert report["documents_out"] == len(out) and sum(report["tally"]["after"]["length"]) == len(out)
    text = (cooked / "out.jsonl").read_text(encoding="utf-8")
    assert "[PHONE]" in text and "13812345678" not in text and "café & co" in text
    assert not (cooked / "out.jsonl.cook").exists()


def test_everything_undone_is_the_input(cooked: Path, tmp_path: Path) -> None:
    back = restore(cooked / "out.jsonl", cooked / "out.undo.jsonl", tmp_path / "back.jsonl")
    assert back > 100 and read(tmp_path / "back.jsonl") == read(cooked / "in.jsonl")


def test_one_rule_undone_brings_back_what_it_dropped(cooked: Path, tmp_path: Path) -> None:
    restore(cooked / "out.jsonl", cooked / "out.undo.jsonl", tmp_path / "back.jsonl", rule="quality")
    texts = [row.get("text") for row in read(tmp_path / "back.jsonl")]
    assert texts.count("short") == 20
    restore(cooked / "out.jsonl", cooked / "out.undo.jsonl", tmp_path / "plain.jsonl", rule="personal_data")
    assert "13812345678" in (tmp_path / "plain.jsonl").read_text(encoding="utf-8")
    assert "short" not in [row.get("text") for row in read(tmp_path / "plain.jsonl")]
    with pytest.raises(ConfigError, match="overwrite"):
        restore(cooked / "out.jsonl", cooked / "out.undo.jsonl", cooked / "out.jsonl")
    (tmp_path / "cut.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="shorter than its undo log"):
        restore(tmp_path / "cut.jsonl", cooked / "out.undo.jsonl", tmp_path / "x.jsonl")


def test_the_output_is_the_same_for_any_number_of_workers(cooked: Path, tmp_path: Path) -> None:
    DataCooker(CONFIG, workers=2).run(cooked / "in.jsonl", tmp_path / "out.jsonl")
    for name in ("out.jsonl", "out.undo.jsonl"):
        assert (tmp_path / name).read_bytes() == (cooked / name).read_bytes()


def test_the_page_shows_the_numbers_and_escapes_what_documents_say(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> and <img src=x onerror=alert(2)> \x1b[31m &lt;b&gt; the end of it all"
    write(tmp_path / "in.jsonl", [{"text": hostile}, {"text": "<b>no</b>"}])
    result = DataCooker(workers=1).run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", report=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "&lt;img" in page
    assert page == render(result) and "<svg" in page and "\x1b" not in page
    assert "http://" not in page and "https://" not in page


def test_lines_that_cant_be_read_are_counted_or_refused(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "the first of all the lines that we have here"}\r\n',
        b"{bad\n",
        b'{"text": 5}\n',
        b"\n",
    ]
    lines += [
        b'{"text": "   "}\n',
        b'{"text": "\\ud800 of the half a pair that we have here, and so on"}\n',
        b'{"text": "a\x00"}\n',
    ]
    lines += [b'{"text": "the last line has no end but it is there and can be read \xe4\xbd\xa0"}']
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    result = DataCooker(CookerConfig(window={"enabled": False}), workers=1).run(
        tmp_path / "in.jsonl", tmp_path / "a.jsonl"
    )
    assert result.documents_in == 3 and result.tally.skipped == 3 and result.tally.empty == 1
    assert result.tally.skip_examples[0].startswith(f"{tmp_path / 'in.jsonl'}:2: not valid JSON")
    with pytest.raises(DataError, match=r"in.jsonl:2: not valid JSON"):
        DataCooker(CookerConfig(on_error="raise"), workers=1).run(tmp_path / "in.jsonl", tmp_path / "b.jsonl")
    off = CookerConfig(encoding={"enabled": False})
    assert DataCooker(off, workers=1).run(tmp_path / "in.jsonl", tmp_path / "c.jsonl").tally.skipped == 4


def test_folders_and_text_files_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = records(30)
    write(tmp_path / "in" / "a.jsonl", rows[:15])
    (tmp_path / "in" / "b.txt").write_text(str(rows[16]["text"]), encoding="utf-8")
    seen: list[Progress] = []
    cooker = DataCooker(CookerConfig(window={"enabled": False}), workers=1, progress=seen.append)
    result = cooker.run(tmp_path / "in", tmp_path / "out.jsonl")
    assert result.documents_in == 16 and read(tmp_path / "out.jsonl")[-1]["text"] == rows[16]["text"]
    assert {one.phase for one in seen} == {"lines", "rules"}


def test_outputs_never_take_the_place_of_inputs(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", records(5))
    kept = source.read_bytes()
    for output, report in (
        (source, None),
        (tmp_path / "o.jsonl", source),
        (tmp_path / "o.jsonl", tmp_path / "o.jsonl"),
    ):
        with pytest.raises(ConfigError):
            DataCooker(workers=1).run(source, output, report=report)
    with pytest.raises(ConfigError, match="mixed with the output"):
        DataCooker(workers=1).run(tmp_path, tmp_path / "o.jsonl")
    (tmp_path / "there.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists already"):
        DataCooker(workers=1).run(source, tmp_path / "there.jsonl")
    assert source.read_bytes() == kept and (tmp_path / "there.jsonl").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "there.jsonl"]
    with pytest.raises(ConfigError, match="embedding model"):
        DataCooker(CookerConfig(domain={"references": str(source), "method": "bertscore"}))
    with pytest.raises(DataError, match="can't read"):
        DataCooker(workers=1).run(tmp_path / "absent.jsonl", tmp_path / "o.jsonl")


def test_settings_go_to_yaml_and_back_and_wrong_ones_are_named() -> None:
    assert CookerConfig(**yaml.safe_load(CONFIG.to_yaml())) == CONFIG
    with pytest.raises(ConfigError, match="unknown key 'qualty'"):
        CookerConfig(qualty={})  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="below target"):
        CookerConfig(window={"target": 64, "tolerance": 64})


def test_the_command_cooks_undoes_and_teaches(tmp_path: Path) -> None:
    import typer

    from deepseek.cli.cook import cook

    app = typer.Typer()
    app.command()(cook)
    run = CliRunner()
    source, out = write(tmp_path / "in.jsonl", records(40)), tmp_path / "out.jsonl"
    done = run.invoke(app, [str(source), str(out), "--without", "window", "--report", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "personal_data" in done.output and (tmp_path / "r.html").is_file()
    done = run.invoke(app, [str(out), str(tmp_path / "back.jsonl"), "--undo", "all"])
    assert done.exit_code == 0 and read(tmp_path / "back.jsonl") == read(source)
    shown = run.invoke(
        app, ["a", "b", "--show-config", "--keep-language", "zh", "--words", "w.txt", "--without", "quality"]
    )
    settings = CookerConfig(**yaml.safe_load(shown.output))
    assert settings.language.keep == ["zh"] and settings.sensitive.words == "w.txt" and not settings.quality.enabled
    assert isinstance(run.invoke(app, ["a", "b", "--without", "nothing"]).exception, ConfigError)
    assert isinstance(run.invoke(app, ["a", "b", "--undo", "nothing"]).exception, ConfigError)
    assert "boilerplate" in run.invoke(app, ["--help"]).output


def test_a_bert_folder_embeds_for_the_domain_rule(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from deepseek.models import BERT, BERTConfig
    from deepseek.models.pretrained.front import save_pretrained

    words = ["[UNK]", *WORDS]
    model = BERT(BERTConfig(vocab_size=len(words), max_length=8, num_layers=1, d_model=16, num_heads=2))
    save_pretrained(model, tmp_path / "bert")
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "bert" / "tokenizer.json"))
    vectors = bert_embedder(tmp_path / "bert")(["river stone", " ".join(WORDS)])
    assert [tuple(one.shape) for one in vectors] == [(2, 16), (8, 16)]


def test_other_keys_are_named_and_unreadable_input_writes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"question": f"What is {n} and {n + 1} together?", "answer": f"It is {2 * n + 1}."} for n in range(3)]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="no line of .* could be read(.|\n)*--rename question=prompt"):
        DataCooker(workers=1).run(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    names: Any = {"question": "prompt", "answer": "response"}
    off: Any = {"quality": {"enabled": False}, "duplicates": {"enabled": False}}
    DataCooker(CookerConfig(rename=names, **off), workers=1).run(source, target)
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert found == [{names[key]: value for key, value in row.items()} for row in rows]
    with pytest.raises(ConfigError, match="KEY=NAME"):
        command = ["cook", str(source), str(tmp_path / "x.jsonl"), "--rename", "a"]
        CliRunner().invoke(app, command, catch_exceptions=False)
