"""Looks at this machine and says what is fine, what is slow and what will fail, each with the command that mends it.

`python -m deepseek.utils.check_env [--json]` and `deepseek check-env`. It works without torch, or with a broken one:
torch is asked in a process of its own. Not here: changing anything on the machine.
"""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Finding": "deepseek.utils.check_env.finding:Finding",
        "Machine": "deepseek.utils.check_env.machine:Machine",
        "collect": "deepseek.utils.check_env.check:collect",
        "run_check": "deepseek.utils.check_env.check:run_check",
        "this_machine": "deepseek.utils.check_env.machine:this_machine",
    },
)
