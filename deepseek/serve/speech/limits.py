"""How much a stream of speech may hold, and how many there may be at once."""

from __future__ import annotations

from pydantic import Field

from deepseek.config import Config


class StreamLimits(Config):
    """Bounds on streams of speech; beyond them a stream is refused or ended with a typed error."""

    max_streams: int = Field(16, ge=1, le=4096)
    """Streams at once over both protocols; one more gets 429."""
    max_seconds: float = Field(3600.0, gt=0, le=86_400)
    """Sound of one stream."""
    max_utterance_seconds: float = Field(30.0, ge=1, le=600)
    """An utterance that goes on for longer is cut."""
    max_whole_seconds: float = Field(300.0, gt=0, le=86_400)
    """Sound of a stream without endpoints: all of it is one utterance, with which the state of some models grows."""
    beam_size: int = Field(8, ge=1, le=100)
    """Texts that are weighed for a final result (prefix-beam search); 1 is the best path, as in partial results, and
    what a stream gets whose recognition takes more than half of real time."""
    max_frame_bytes: int = Field(256 * 1024, ge=64, le=1 << 20)
    """Bytes of one message with samples."""
    idle_seconds: float = Field(30.0, gt=0, le=3600)
    """How long a client may send nothing."""
    send_seconds: float = Field(30.0, gt=0, le=3600)
    """How long a client may leave a result unread; then its stream ends."""
