"""Data: documents out of files, a tokenizer, a token cache, packed sequences and their loader."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.corpus import python_corpus, write_python_corpus
    from deepseek.data.loader import BatchSource, Loader
    from deepseek.data.packing import PackedDataset
    from deepseek.data.record_forms import Message
    from deepseek.data.records import Document, ReadReport, read_documents
    from deepseek.data.token_cache import TokenCache, build_token_cache
    from deepseek.data.tokenizer import Tokenizer, TokenStream

__all__ = [
    "BatchSource",
    "Document",
    "Loader",
    "Message",
    "PackedDataset",
    "ReadReport",
    "TokenCache",
    "TokenStream",
    "Tokenizer",
    "build_token_cache",
    "python_corpus",
    "read_documents",
    "write_python_corpus",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BatchSource": "deepseek.data.loader:BatchSource",
        "Document": "deepseek.data.records:Document",
        "Loader": "deepseek.data.loader:Loader",
        "Message": "deepseek.data.record_forms:Message",
        "PackedDataset": "deepseek.data.packing:PackedDataset",
        "ReadReport": "deepseek.data.records:ReadReport",
        "TokenCache": "deepseek.data.token_cache:TokenCache",
        "TokenStream": "deepseek.data.tokenizer:TokenStream",
        "Tokenizer": "deepseek.data.tokenizer:Tokenizer",
        "build_token_cache": "deepseek.data.token_cache:build_token_cache",
        "python_corpus": "deepseek.data.corpus:python_corpus",
        "read_documents": "deepseek.data.records:read_documents",
        "write_python_corpus": "deepseek.data.corpus:write_python_corpus",
    },
)
