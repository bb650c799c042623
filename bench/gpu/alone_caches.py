"""First-block caching over whole pictures and clips: time saved, and how far the result is; see `alone.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from alone_timing import Notes, Way, interleave


def measure_caches(
    notes: Notes, key: str, shape: str, module: Any, draw: Callable[[], Any], thresholds: Sequence[float]
) -> None:
    """Whole pictures with first-block caching: the time, the share that was skipped, and how far the result is.

    Args:
        notes: Take it.
        key: Of the optimisation.
        shape: Of the picture.
        module: The denoiser.
        draw: The result, an array of any scale: its distance is given over the range of its values.
        thresholds: To try.
    """
    from sixfold.core.rendezvous.row_cache import RowCache, RowGroup, transformer_blocks

    results: dict[float, Any] = {}
    counts: dict[float, tuple[int, int]] = {}

    def cached(threshold: float) -> None:
        cache, stock = RowCache(transformer_blocks(module)), module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with cache.running([RowGroup(owner="one", context=None, rows=1, threshold=threshold)]):
                return stock(*args, **kwargs)

        module.forward = forward
        try:
            results[threshold] = draw()
        finally:
            module.forward = stock
            cache.close()
        counts[threshold] = (cache.num_hits, cache.num_misses)

    def computed() -> None:
        results[-1.0] = draw()

    ways = {"computed": Way(computed)}
    ways |= {f"threshold {each}": Way(functools.partial(cached, each)) for each in thresholds}
    found = interleave(ways, rounds=1, warms=False)
    notes.keep(shape, found)
    for threshold in thresholds:
        name = f"threshold {threshold}"
        if name not in found:
            continue
        away = np.abs(np.asarray(results[threshold], np.float64) - results[-1.0])
        away /= max(1e-9, float(np.ptp(results[-1.0])))
        hits, misses = counts[threshold]
        note = (
            f"threshold {threshold}: {hits} of {hits + misses + 1} steps skipped, difference {away.mean():.1e} on "
            f"average, {away.max():.1e} at most, of the range; random weights"
        )
        notes.add(key, shape, off=1e3 * found["computed"], on=1e3 * found[name], note=note)
