"""Configs and their YAML: errors that name file, line and nearest key; hostile input refused before it grows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from deepseek.config import Config, explain
from deepseek.errors import ConfigError
from deepseek.models.gpt import GPTConfig
from deepseek.train.config import TrainConfig
from deepseek.yaml_source import MAX_BYTES, MAX_VALUES, dump_yaml, parse_yaml, read_yaml


class Section(Config):
    """A part of the whole."""

    rate: float = Field(default=0.5, gt=0, le=1)
    """How fast it goes."""
    name: str = "plain"


class Whole(Config):
    """Everything."""

    assignable: ClassVar[frozenset[str]] = frozenset({"switch"})

    size: int = Field(ge=1)
    """How large it is,
    in all."""
    section: Section = Section()
    switch: bool = False
    kind: Literal["small", "large"] = "small"
    tags: list[str] = []
    limit: float | None = None


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("size: 3\nsecton: {}\n", 2, ["unknown key 'secton'", "did you mean 'section'"]),
        ("size: 3\n\nsection:\n  rate: 0.1\n  nmae: x\n", 5, ["unknown key 'section.nmae'", "did you mean 'name'"]),
        ("# first\nsize: three\n", 2, ["'size' is 'three'", "integer"]),
        ("size: 3\nsection:\n  rate: 7\n", 3, ["'section.rate' is 7", "less than or equal to 1"]),
        ("size: 3\nswitch: 1\n", 2, ["'switch' is 1", "boolean"]),
        ("size: 3\nkind: huge\n", 2, ["'kind' is 'huge'", "'small' or 'large'"]),
        ("size: 3\ntags:\n  - a\n  - 5\n", 4, ["'tags.1' is 5"]),
        ("size: 3\nlimit: .inf\n", 2, ["'limit' is inf"]),
        ("section: {}\n", 1, ["'size' is missing", "add 'size'"]),
        ("size: 1\nsize: 2\n", 2, ["'size' twice"]),
        ("size: 1\nsection: {rate: 0.1, rate: 0.2}\n", 2, ["'rate' twice"]),
        ("size: 1\n  kind: small\n", 2, ["not valid YAML"]),
        ("size: [1, 2\n", 2, ["not valid YAML"]),
        ("size: 1\nkind: !!python/object/apply:os.system ['touch /tmp/never']\n", 2, ["not plain", "python/object"]),
        ("size: 1\nkind: !!python/name:os.system\n", 2, ["not plain"]),
        ("size: 1\n<<: {kind: small}\n", 2, ["a key that is not text"]),
        ("size: 1\n? [a]\n: 2\n", 2, ["a key that is not text"]),
        ("size: !!int ''\n", 1, ["can't be read"]),
        ("size: !!bool maybe\n", 1, ["can't be read"]),
        ("size: " + "9" * 5000 + "\n", 1, ["can't be read"]),
        ("size: *nobody\n", 1, ["undefined alias"]),
    ],
)
def test_an_error_names_file_and_line_and_what_is_wrong(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Whole.from_yaml(path)
    message = str(caught.value)
    assert f"{path}:{line}" in message, message
    assert all(word in message for word in words), message
    assert not Path("/tmp/never").exists()


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "size: none\nkind: huge\nsection: {rate: -1}\n")
    with pytest.raises(ConfigError) as caught:
        Whole.from_yaml(path)
    assert [f":{line}:" in str(caught.value) for line in (1, 2, 3)] == [True, True, True]


def test_the_same_checks_hold_in_python() -> None:
    with pytest.raises(ConfigError, match="unknown key 'secton'"):
        Whole(size=1, secton={})
    with pytest.raises(ConfigError, match="'size' is '1'"):
        Whole(size="1")
    with pytest.raises(ConfigError, match="'section.rate' is 2"):
        Whole(size=1, section={"rate": 2})
    with pytest.raises(ValueError, match="is missing"):
        Whole()


def alias_bomb() -> str:
    """Return nine levels of ten aliases each: a billion values in 400 bytes."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(levels)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (alias_bomb(), f"at most {MAX_VALUES}"),
        ("&a [*a]", "nested too deeply"),
        ("a: " + "[" * 70 + "]" * 70, "nested too deeply"),
        ("[" * 50_000, "nested too deeply"),
        ("size: 1\nkind: \x01\n", "special characters"),
        ("size: '\x00'", "special characters"),
        ("- 1\n--- \n- 2\n", "another document"),
        ("", "empty or not a mapping"),
        ("# nothing\n", "empty or not a mapping"),
        ("just text", "empty or not a mapping"),
        ("%YAML 3.0\n---\nsize: 1", "incompatible"),
    ],
)
def test_hostile_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Whole.from_source(parse_yaml(text, "recipe.yaml"))


def test_files_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"size: 1\nkind: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2 is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        read_yaml(tmp_path / "latin.yaml" / "below")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="too large"):
        read_yaml(tmp_path / "large.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfsize: 4\r\nkind: large\r\n")
    assert Whole.from_yaml(tmp_path / "bom.yaml") == Whole(size=4, kind="large")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("null", None),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}").value
    assert found == {"a": value} and type(found["a"]) is type(value)  # type: ignore[index]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_what_is_dumped_reads_back_the_same(value: object) -> None:
    found = parse_yaml(dump_yaml(value)).value  # type: ignore[arg-type]
    assert found == value and repr(found) == repr(value)


@given(
    st.builds(
        dict,
        learning_rate=st.floats(1e-12, 10),
        batch_size=st.integers(1, 1 << 20),
        epochs=st.none() | st.integers(1, 100),
        compile=st.sampled_from([True, False, "auto"]),
        device=st.text(),
        time_budget=st.none() | st.floats(1e-3, 1e9),
    )
)
def test_a_config_survives_its_yaml(values: dict[str, object]) -> None:
    config = TrainConfig(**values)
    assert TrainConfig.from_source(parse_yaml(config.to_yaml())) == config


def test_a_config_is_frozen_and_says_how_to_change_it() -> None:
    whole = Whole(size=1)
    with pytest.raises(ConfigError, match=r"replace\(size=2\)"):
        whole.size = 2
    with pytest.raises(AttributeError, match="did you mean 'size'"):
        whole.sise = 2
    assert whole.replace(size=2).size == 2 and whole.size == 1
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        whole.replace(size=0)


def test_an_assignable_field_is_checked_and_kept() -> None:
    config = GPTConfig(d_model=64)
    config.gradient_checkpointing = True
    assert config.gradient_checkpointing and config.replace(num_layers=1).gradient_checkpointing
    assert GPTConfig.from_source(parse_yaml(config.to_yaml())) == config
    with pytest.raises(ConfigError, match="'gradient_checkpointing' is 'yes'"):
        config.gradient_checkpointing = "yes"  # type: ignore[assignment]
    assert config.gradient_checkpointing


def test_explain_tells_type_default_limits_and_meaning() -> None:
    assert explain(Whole, "size") == "size: whole number, required, >= 1\n  How large it is, in all."
    rate = explain(Whole, "section.rate")
    assert rate == "section.rate: number, default 0.5, > 0 and <= 1\n  How fast it goes."
    assert "small | large" in explain(Whole, "kind") and "number or null, default null" in explain(Whole, "limit")
    listing = explain(Whole, "section")
    assert listing.startswith("section: A part of the whole.") and "rate: number" in listing and "name: text" in listing
    assert "switch: true or false, default false" in explain(Whole, "")


@pytest.mark.parametrize(
    ("key", "words"),
    [("sizes", "did you mean 'size'"), ("section.rat", "did you mean 'rate'"), ("size.x", "a value, not a section")],
)
def test_explain_knows_the_nearest_key(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        explain(Whole, key)


def test_every_setting_of_training_and_of_the_model_is_explained() -> None:
    for root in (TrainConfig, GPTConfig):
        for name in root.model_fields:
            assert len(explain(root, name).splitlines()[1].strip()) > 10, name
