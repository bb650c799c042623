from __future__ import annotations

from typing import Any

import pytest

from sixfold.core.parallel.degrees import Degrees
from tests.core.parallel.module_cases import BUILDERS, all_differences
from tests.core.parallel.processes import run_ranks

MODES = {"ulysses of 2": Degrees(context=2, ulysses=2), "ring of 2": Degrees(context=2)}


@pytest.fixture(scope="module")
def differences() -> dict[str, list[dict[str, Any]]]:
    return dict(zip(MODES, run_ranks(all_differences, *MODES.values()), strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_transformer_over_ranks_equals_the_one_of_the_library(
    differences: dict[str, list[dict[str, Any]]], name: str, mode: str
) -> None:
    for rank in differences[mode]:
        assert isinstance(rank[name], float), rank[name]
        assert rank[name] <= 1e-5
