"""A coroutine run at once up to its first wait."""

from __future__ import annotations

import asyncio

import pytest

from deepseek.serve.rest.begun import Begun


def test_one_that_never_waits_is_done_without_a_loop():
    async def work():
        return 7

    begun = Begun(work())
    assert begun.done and begun.result == 7


def test_the_rest_is_done_by_whoever_awaits_it():
    async def work(steps):
        steps.append("first")
        for step in range(3):
            await asyncio.sleep(0.001 * step)
            steps.append(step)
        return "end"

    async def main():
        steps: list[object] = []
        begun = Begun(work(steps))
        assert steps == ["first"] and not begun.done
        return await begun, await begun, steps

    assert asyncio.run(main()) == ("end", "end", ["first", 0, 1, 2])


def test_errors_come_out_before_and_after_the_first_wait():
    async def work(late):
        if late:
            await asyncio.sleep(0)
        raise ValueError("wrong")

    async def main():
        with pytest.raises(ValueError, match="wrong"):
            Begun(work(False))
        begun = Begun(work(True))
        with pytest.raises(ValueError, match="wrong"):
            await begun

    asyncio.run(main())


def test_a_cancelled_one_hears_of_it_and_may_still_wait():
    async def work(told):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            told.append("cancelled")
            raise

    async def main():
        told: list[str] = []
        begun = Begun(work(told))

        async def rest():
            await begun

        task = asyncio.create_task(rest())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told

    assert asyncio.run(main()) == ["cancelled"]
