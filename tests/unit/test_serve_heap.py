"""What is there when a server begins is not looked at by collections, and what was exchanged still goes."""

from __future__ import annotations

import gc
import time
import weakref

from deepseek.serve.heap import SteadyHeap
from deepseek.serve.registry import Registry


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.myself = self


def test_what_stays_is_frozen_until_the_end():
    with SteadyHeap(Registry()):
        assert gc.get_freeze_count() > 1000
        assert len(gc.get_objects()) < gc.get_freeze_count()
    assert gc.get_freeze_count() == 0


def test_after_a_change_of_the_models_what_was_frozen_before_can_go():
    models = Registry()
    old = Knot()
    gone = weakref.ref(old)
    with SteadyHeap(models, later=0.01):
        del old
        gc.collect()
        assert gone() is not None
        models._tell("loaded", "a", "2")
        end = time.monotonic() + 20
        while (gone() is not None or gc.get_freeze_count() < 1000) and time.monotonic() < end:
            time.sleep(0.01)
        assert gone() is None
        assert gc.get_freeze_count() > 1000


def test_nothing_is_frozen_after_the_end():
    models = Registry()
    with SteadyHeap(models, later=0.02):
        models._tell("loaded", "a", "2")
    models._tell("unloaded", "a", "1")
    time.sleep(0.1)
    assert gc.get_freeze_count() == 0
