"""The settings of a mixture of experts, as the section `moe` of a model's config.

Sources: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434; DeepSeek-AI 2024, "DeepSeek-V3 Technical Report",
arXiv:2412.19437.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deepseek.config import Config


class MoEConfig(Config):
    """A mixture of experts: its sizes, and how tokens choose their experts."""

    num_experts: int = Field(default=64, ge=1, le=1 << 16)
    """Routed experts in a layer."""
    top_k: int = Field(default=6, ge=1, le=1024)
    """Experts that a token is sent to."""
    d_ff: int = Field(default=1408, ge=1, le=1 << 18)
    """Width inside each expert."""
    num_shared: int = Field(default=2, ge=0, le=1024)
    """Shared experts, which every token passes through; they are one layer of `num_shared * d_ff`."""
    num_groups: int = Field(default=1, ge=1, le=1024)
    """Groups of equal size that the experts form, such as one for each machine."""
    top_groups: int = Field(default=1, ge=1, le=1024)
    """Groups in which a token may choose: with `softmax` those of the best expert, with `sigmoid` of the two best."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """How a token's affinities to the experts become scores: over all of them (V2), or each alone (V3)."""
    normalize: bool = False
    """Divide the chosen experts' scores by their sum."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the weights of the routed experts."""
    correction_bias: bool = False
    """Add a bias for each expert to the scores for the choice alone: balance without an auxiliary loss."""
    correction_rate: float = Field(default=1e-3, ge=0)
    """How far that bias moves after each training step: up for experts below the mean load, down for those above."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """Most tokens of an expert in training, in multiples of its equal share; beyond it the choices of least weight are
    left out and counted. Null: no limit, nothing is left out. Evaluation has no limit."""

    @model_validator(mode="after")
    def _choice_is_possible(self) -> MoEConfig:
        if self.num_experts % self.num_groups:
            fitting = [groups for groups in range(1, self.num_experts + 1) if self.num_experts % groups == 0]
            near = min(fitting, key=lambda groups: abs(groups - self.num_groups))
            raise ValueError(
                f"{self.num_experts} experts can't be split into {self.num_groups} groups; "
                f"nearest that fits: num_groups {near}"
            )
        size = self.num_experts // self.num_groups
        if self.top_groups > self.num_groups:
            raise ValueError(f"top_groups {self.top_groups} is more than num_groups; at most {self.num_groups} fits")
        if self.top_k > self.top_groups * size:
            raise ValueError(
                f"a token can't choose {self.top_k} experts among {self.top_groups} groups of {size}; "
                f"at most top_k {self.top_groups * size} fits"
            )
        if self.scoring == "sigmoid" and self.num_groups > 1 and size < 2:
            raise ValueError(
                "sigmoid scoring ranks groups by their two best experts, and these groups hold one; "
                f"nearest that fits: num_groups {self.num_experts // 2}"
            )
        return self
