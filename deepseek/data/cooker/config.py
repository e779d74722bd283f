"""The cooker's settings: a section for each rule, in the order the rules run. Each section can be switched off."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deepseek.config import Config
from deepseek.data.cooker.language import LANGUAGES
from deepseek.data.cooker.repetition import NAMES

_REPETITION = {
    "lines": 0.30,
    "paragraphs": 0.30,
    "top 2-gram": 0.20,
    "top 3-gram": 0.18,
    "top 4-gram": 0.16,
    "5-grams": 0.15,
    "6-grams": 0.14,
    "7-grams": 0.13,
    "8-grams": 0.12,
    "9-grams": 0.11,
    "10-grams": 0.10,
}
PersonalKind = Literal["email", "id_card", "bank_card", "ip", "phone"]


class EncodingConfig(Config):
    """Repair of wrongly decoded text."""

    enabled: bool = True
    """Whether the rule runs."""
    mojibake: bool = True
    """Put right UTF-8 that was read as Latin-1, cp1252 or GBK, and GBK read as Latin-1."""
    html_entities: bool = True
    """Replace &amp; and the like by their characters."""
    full_width: bool = False
    """Make full-width letters and digits ordinary ones."""
    max_lost_share: float = Field(default=0.05, ge=0, le=1)
    """Drop documents with more than this share of U+FFFD."""


class LanguageConfig(Config):
    """Which languages are kept."""

    enabled: bool = True
    """Whether the rule runs."""
    keep: list[str] = []
    """Codes such as zh and en; an empty list keeps all and counts them in the report."""
    min_confidence: float = Field(default=0.1, ge=0, le=1)
    """Below this the language counts as not clear."""
    keep_undetermined: bool = True
    """Keep documents whose language is not clear, such as very short ones."""

    @model_validator(mode="after")
    def _known(self) -> LanguageConfig:
        for code in self.keep:
            if code not in LANGUAGES:
                raise ValueError(f"unknown language {code!r}; wanted some of {', '.join(LANGUAGES)}")
        return self


class QualityLimits(Config):
    """Limits that depend on the language. Lengths are in words; in Chinese and Japanese in characters."""

    min_length: int = Field(default=8, ge=0)
    """Fewest words or characters."""
    max_length: int = Field(default=100_000, ge=1)
    """Most words or characters."""
    min_stop_words: int = Field(default=2, ge=0)
    """Fewest different common words, in documents of 50 words and more."""


class QualityConfig(Config):
    """The document rules of MassiveText (arXiv:2112.11446)."""

    enabled: bool = True
    """Whether the rule runs."""
    limits: QualityLimits = QualityLimits()
    """Limits for languages that have none of their own."""
    languages: dict[str, QualityLimits] = {
        "zh": QualityLimits(min_length=10, max_length=200_000),
        "ja": QualityLimits(min_length=10, max_length=200_000),
    }
    """Limits by language code."""
    min_letter_share: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of letters among the characters that are no space."""
    min_mean_word: float = Field(default=2.5, ge=0)
    """Smallest mean word length, in letters (not in Chinese and Japanese)."""
    max_mean_word: float = Field(default=12.0, ge=1)
    """Largest mean word length."""
    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Most # and ... for each word."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end with an ellipsis."""
    repetition_from: int = Field(default=50, ge=1)
    """Texts of fewer words or characters are not measured for repetition."""
    max_repetition: dict[str, float] = _REPETITION
    """Largest share that is repeated, by measure; a measure left out is not taken."""

    def limits_for(self, language: str) -> QualityLimits:
        """Return the limits of a language."""
        return self.languages.get(language, self.limits)

    @model_validator(mode="after")
    def _known(self) -> QualityConfig:
        for name in self.max_repetition:
            if name not in NAMES:
                raise ValueError(f"unknown measure of repetition {name!r}; wanted some of {', '.join(NAMES)}")
        return self


class BoilerplateConfig(Config):
    """Lines that are no content."""

    enabled: bool = True
    """Whether the rule runs."""
    phrases: bool = True
    """Take out short lines about cookies, menus and copyright (English and Chinese)."""
    recurring: bool = True
    """Take out lines that recur over many documents; costs a first pass over the input."""
    min_documents: int = Field(default=20, ge=2)
    """A recurring line occurs in at least this many documents"""
    min_share: float = Field(default=0.001, ge=0, le=1)
    """and in at least this share of them."""
    max_share: float = Field(default=0.7, ge=0, le=1)
    """Drop a document of which more than this share was boilerplate."""


class PersonalDataConfig(Config):
    """Personal data that can be told by its form."""

    enabled: bool = True
    """Whether the rule runs."""
    kinds: list[PersonalKind] = ["email", "id_card", "bank_card", "ip", "phone"]
    """What is looked for."""
    action: Literal["mask", "drop", "keep"] = "mask"
    """Mask what is found, drop the document, or only count it."""


class SensitiveConfig(Config):
    """Words from a list of the user."""

    words: str | None = None
    """A UTF-8 file with a word on each line; null switches the rule off."""
    action: Literal["mask", "drop"] = "drop"
    """Drop the document, or mask the words."""
    min_hits: int = Field(default=1, ge=1)
    """Fewest hits in a document that count."""


class ContaminationConfig(Config):
    """Overlap with evaluation sets."""

    against: list[str] = []
    """Files or folders of the evaluation sets (JSON lines of any form, text); an empty list switches the rule off."""
    n: int = Field(default=13, ge=8, le=64)
    """Words (or Chinese, Japanese, Korean characters) in a row that must not be shared."""


class DomainConfig(Config):
    """Fit to a domain that reference texts show."""

    references: str | None = None
    """JSON lines or a text file (one text a line) of the domain; null switches the rule off."""
    method: Literal["bertscore", "ngram_proxy"] = "ngram_proxy"
    """bertscore needs an embedding model; ngram_proxy is an offline stand-in by shared words, not a BERTScore."""
    bertscore_threshold: float = Field(default=0.85, ge=-1, le=1)
    """Smallest BERTScore F1 with the nearest reference."""
    proxy_threshold: float = Field(default=0.2, ge=0, le=1)
    """Smallest share of a document's n-grams that the references know (ngram_proxy)."""
    max_references: int = Field(default=64, ge=1, le=4096)
    """BERTScore is taken with the first so many references."""


class DuplicatesConfig(Config):
    """Documents that came before, wholly or nearly."""

    enabled: bool = True
    """Whether the rule runs."""
    method: Literal["exact", "simhash", "minhash"] = "simhash"
    """exact compares whole texts (case and spaces ignored), the others find near-duplicates as well."""
    threshold: float = Field(default=0.6, gt=0, le=1)
    """Smallest share of n-grams in common that makes two documents near-duplicates."""


class WindowConfig(Config):
    """The length of documents, in tokens."""

    enabled: bool = True
    """Whether the rule runs."""
    target: int = Field(default=512, ge=16)
    """Tokens a document should have"""
    tolerance: int = Field(default=64, ge=0)
    """and how many more or fewer are as good."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one; null estimates: 1.3 tokens a word, 0.75 a character of Chinese."""
    long: Literal["split", "drop", "keep"] = "split"
    """What becomes of longer documents: split at the ends of sentences, dropped or kept."""
    short: Literal["merge", "drop", "keep"] = "merge"
    """What becomes of shorter ones: joined with their neighbours from the same file and with the same other keys."""

    @model_validator(mode="after")
    def _fits(self) -> WindowConfig:
        if self.tolerance >= self.target:
            raise ValueError(f"tolerance {self.tolerance} is not below target {self.target}")
        return self


class CookerConfig(Config):
    """What the cooker does with each document, in this order."""

    on_error: Literal["raise", "skip"] = "skip"
    """A line that can't be read ends the run, or is counted in the report and passed over."""
    rename: dict[str, Literal["text", "prompt", "response", "messages"]] = {}
    """Keys of the input that stand for others, such as question: prompt and answer: response."""
    encoding: EncodingConfig = EncodingConfig()
    """Repair of wrongly decoded text."""
    language: LanguageConfig = LanguageConfig()
    """Which languages are kept."""
    quality: QualityConfig = QualityConfig()
    """The document rules of MassiveText."""
    boilerplate: BoilerplateConfig = BoilerplateConfig()
    """Lines that are no content."""
    personal_data: PersonalDataConfig = PersonalDataConfig()
    """Personal data that can be told by its form."""
    sensitive: SensitiveConfig = SensitiveConfig()
    """Words from a list of the user."""
    contamination: ContaminationConfig = ContaminationConfig()
    """Overlap with evaluation sets."""
    domain: DomainConfig = DomainConfig()
    """Fit to a domain that reference texts show."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """Documents that came before, wholly or nearly."""
    window: WindowConfig = WindowConfig()
    """The length of documents, in tokens."""
    undo_text: bool = True
    """Keep the original texts in the undo log; without them it says what was done but can't bring documents back."""
    examples: int = Field(default=5, ge=0, le=100)
    """Examples of each rule's work in the report."""
    block_documents: int = Field(default=1000, ge=1, le=100_000)
    """Documents worked on together; merging of short ones stays inside a block."""
