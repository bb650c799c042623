"""The budget of retries keeps its places, whoever leaves the queue before it."""

from __future__ import annotations

import asyncio

from sixfold.scaling.gateway.budgets import RetryBudget
from sixfold.scaling.gateway.settings import RetrySettings


async def waiting(budget: RetryBudget) -> asyncio.Task[None]:
    task = asyncio.create_task(budget.take())
    await asyncio.sleep(0)  # it stands in the queue now
    return task


async def test_a_waiter_that_is_cancelled_before_a_place_is_free_takes_none() -> None:
    budget = RetryBudget(RetrySettings(min_concurrent=1))
    assert budget.try_take()
    leaving, staying = await waiting(budget), await waiting(budget)
    leaving.cancel()  # it has not run since, when the place comes back
    budget.give_back()
    await staying
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert budget.num_retries == 1
    budget.give_back()
    assert budget.num_retries == 0
    assert budget.try_take()


async def test_a_waiter_that_is_cancelled_after_it_got_a_place_passes_it_on() -> None:
    budget = RetryBudget(RetrySettings(min_concurrent=1))
    assert budget.try_take()
    leaving, staying = await waiting(budget), await waiting(budget)
    budget.give_back()
    leaving.cancel()
    await staying
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert budget.num_retries == 1
