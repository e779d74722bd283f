"""Fills the text templates of this room: the Dockerfile, scripts, pages that say the commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from deepseek.deploy.plan import MODEL_DIR, REDIS_URL, USER, DeployPlan
from deepseek.deploy.workload import PRESTOP_SECONDS

_FOLDER = Path(__file__).parent / "templates"


def page(name: str, plan: DeployPlan, **more: Any) -> str:
    """Return the template `name` filled with the plan; a hole without a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["word"] = shlex.quote
    known = {"plan": plan, "model_dir": MODEL_DIR, "user": USER, "prestop": PRESTOP_SECONDS, "redis_url": REDIS_URL}
    return environment.get_template(name).render(**known, **more)
