"""Memory budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import ConfigError
from deepseek.train.memory.size import check_budget, in_words, parse_budget


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8 GiB", 8 << 30),
        ("600MiB", 600 << 20),
        ("1.5g", 3 << 29),
        ("0.6", 6 * 10**8),
        (0.6, 6 * 10**8),
        (1, 10**9),
        (2_000_000, 2_000_000),
        (".5TB", 5 * 10**11),
    ],
)
def test_sizes_and_shares_are_read(value: str | float, size: int) -> None:
    assert parse_budget(value, free=10**9) == size


@pytest.mark.parametrize("value", ["", "8 XB", "-8GB", "GB", "1e3GB", "0", 0, -0.5, True, None, "8GB!", "0.1MB", 1e30])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ConfigError):
        parse_budget(value, free=10**9)  # type: ignore[arg-type]


def test_a_share_needs_a_machine_that_says_what_is_free() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        parse_budget(0.5, free=None)
    assert parse_budget("2GB", free=None) == 2 * 10**9
    check_budget(None)
    check_budget(0.5)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    try:
        assert 1 <= parse_budget(text, free=1 << 40) <= 1 << 60
    except ConfigError:
        pass


def test_sizes_are_told_in_the_unit_that_reads_best() -> None:
    assert [in_words(size) for size in (12, 3 << 10, 620 << 20, 3 << 29)] == [
        "12 bytes",
        "3.0 KiB",
        "620 MiB",
        "1.5 GiB",
    ]
