from __future__ import annotations

import pytest

from sixfold.core.parallel.degrees import Degrees
from tests.core.parallel.processes import run_ranks
from tests.plugins.asr.encoder_cases import difference

MODES = {
    "ulysses of 2": Degrees(context=2, ulysses=2),
    "ring of 2": Degrees(context=2),
    "windows": Degrees(data=2),
    "windows and tokens": Degrees(data=2, context=2),
    "ring of 4": Degrees(context=4),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    return {
        mode: ranks[0] for mode, ranks in zip(MODES, run_ranks(difference, *MODES.values(), timeout_s=300), strict=True)
    }


@pytest.mark.parametrize("mode", MODES)
def test_windows_that_ranks_encode_equal_those_of_the_library(differences: dict[str, float], mode: str) -> None:
    assert differences[mode] <= 1e-5
