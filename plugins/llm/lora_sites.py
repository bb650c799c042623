"""Where adapters act, and what a step adds there.

A step's rows may have different adapters, or none. The matrices of all adapters of a step stand side by side in one pair,
so that a layer costs two more products however many adapters there are; between the two, each row keeps the columns of its
own adapter and the rest is zeroed. A step without adapters does nothing here but read one attribute a layer.

Source: the products are those of Hu et al. 2021; many adapters in one batch, Chen et al. 2023 (Punica).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sixfold.core.runtime.step_linear import StepLinear
from sixfold.plugins.llm.lora_adapter import Adapter, ModuleShape
from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import to_tensor

# Kernels take rows of whole cache lines of bfloat16.
_COLUMN_STEP = 32

_HOST = torch.device("cpu")

Join = Callable[[list[Tensor]], Tensor]
"""Puts [out_features, columns] of each layer of a site together as the results of its product lie."""


def stack_layers(parts: list[Tensor]) -> Tensor:
    """One after another."""
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two products of one site for one set of adapters."""

    down: StepLinear
    up: StepLinear


class AdapterSite:
    """One product of the decoder, of one linear layer or of several that share an input.

    Args:
        router: Knows the step's adapters.
        layers: Names of the linear layers, in the stock model.
        shapes: Of each.
        join: How the results of the product lie.
    """

    def __init__(
        self,
        router: AdapterRouter,
        layers: Sequence[str],
        shapes: Sequence[ModuleShape],
        join: Join = stack_layers,
    ) -> None:
        self._router = router
        self._layers = tuple(layers)
        self._shapes = tuple(shapes)
        self._join = join

    @property
    def is_active(self) -> bool:
        """Whether the running step has adapters."""
        return self._router.active is not None

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """What the adapters of the step add to ``y``, the product of ``x``; ``y`` itself where they add nothing.

        Args:
            x: [..., tokens, in_features], all rows of the step.
            y: [..., tokens, out_features].
        """
        active = self._router.active
        pair = None if active is None else active.packed.pair(self)
        if active is None or pair is None:
            return y
        result: Tensor = pair.up(self._inner(active, pair, x), y)
        return result

    def delta(self, x: Tensor) -> Tensor | None:
        """As `add`, alone; None where the adapters add nothing."""
        active = self._router.active
        pair = None if active is None else active.packed.pair(self)
        if active is None or pair is None:
            return None
        result: Tensor = pair.up(self._inner(active, pair, x))
        return result

    def _inner(self, active: StepAdapters, pair: _Pair, x: Tensor) -> Tensor:
        inner: Tensor = pair.down(x)
        others = active.others(len(self._layers))
        # Filled, not multiplied: what overflows in a row under another's adapter must not become NaN in this one.
        return inner if others is None else inner.masked_fill_(others, 0.0)

    def pack(self, adapters: Sequence[Adapter]) -> _Pair | None:
        """The matrices of these adapters side by side; None if none of them changes this site."""
        found = [a.layers[name] for a in adapters for name in self._layers if name in a.layers]
        if not found:
            return None
        like = found[0].down
        num_columns = _num_columns(adapters)
        down = like.new_zeros(len(self._layers) * num_columns, self._shapes[0].in_features)
        ups = [like.new_zeros(shape.out_features, len(down)) for shape in self._shapes]
        for place, (layer, up) in enumerate(zip(self._layers, ups, strict=True)):
            at = place * num_columns
            for adapter in adapters:
                own = adapter.layers.get(layer)
                if own is not None:
                    down[at : at + own.rank] = own.down
                    up[:, at : at + own.rank] = own.up
                at += adapter.rank
        return _Pair(StepLinear(down, None), StepLinear(self._join(ups), None))


class PackedAdapters:
    """The matrices of a set of adapters, side by side at every site.

    The adapters themselves are not held: what nobody else holds is unloaded.

    Args:
        adapters: The set, in the order of their columns.

    Attributes:
        widths: Columns of each.
        num_columns: Of all, with padding.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = tuple(weakref.ref(adapter) for adapter in adapters)
        self.widths = tuple(adapter.rank for adapter in adapters)
        self.num_columns = _num_columns(adapters)
        self._pairs: dict[AdapterSite, _Pair | None] = {}

    @property
    def adapters(self) -> list[Adapter | None]:
        """The set; None for each that is gone."""
        return [ref() for ref in self._adapters]

    def fill(self, sites: Sequence[AdapterSite], adapters: Sequence[Adapter]) -> None:
        """Makes the matrices of all sites."""
        self._pairs = {site: site.pack(adapters) for site in sites}

    def pair(self, site: AdapterSite) -> _Pair | None:
        """Of one site; None where the set changes nothing."""
        return self._pairs[site]


@dataclass(slots=True)
class StepAdapters:
    """The adapters of one step.

    Attributes:
        packed: A set that holds them.
        mask: [tokens, columns], true where a column is not of the row's own adapter; None if all rows have all columns.
    """

    packed: PackedAdapters
    mask: Tensor | None
    _wide: dict[int, Tensor] = field(default_factory=lambda: {})

    def others(self, num_layers: int) -> Tensor | None:
        """`mask` for a site of several layers."""
        if self.mask is None or num_layers == 1:
            return self.mask
        found = self._wide.get(num_layers)
        if found is None:
            found = self._wide[num_layers] = self.mask.repeat(1, num_layers)
        return found


class AdapterRouter:
    """Tells the sites of one decoder which rows of a step have which adapter. Owned by the device thread.

    Args:
        device: Of the decoder.

    Attributes:
        active: Of the running step; None where no row has an adapter.
        shapes: The layers that can have adapters, by name; filled with the sites.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sites: list[AdapterSite] = []
        self._packed = PackedAdapters(())
        self.active: StepAdapters | None = None
        self.shapes: dict[str, ModuleShape] = {}

    def add_site(
        self,
        layers: Sequence[str],
        shapes: Sequence[ModuleShape],
        join: Join = stack_layers,
    ) -> AdapterSite:
        """Makes a site; see `AdapterSite`."""
        site = AdapterSite(self, layers, shapes, join)
        self._sites.append(site)
        self.shapes.update(zip(layers, shapes, strict=True))
        return site

    def begin(self, adapters: Sequence[Adapter | None], sequence_of: IntArray) -> None:
        """Prepares a step; `end` must follow.

        Args:
            adapters: Of each sequence.
            sequence_of: [tokens] the sequence of each row.
        """
        needed = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        packed = self._pack(needed)
        bounds: dict[Adapter, tuple[int, int]] = {}
        at = 0
        for adapter, width in zip(packed.adapters, packed.widths, strict=True):
            if adapter is not None:
                bounds[adapter] = (at, at + width)
            at += width
        hidden = torch.ones(len(adapters), packed.num_columns, dtype=torch.bool)
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                begin, end = bounds[adapter]
                hidden[row, begin:end] = False
        alone = len(packed.adapters) == 1 and None not in adapters
        mask = None if alone else hidden[to_tensor(sequence_of, _HOST)].to(self._device)
        self.active = StepAdapters(packed, mask)

    def end(self) -> None:
        """The step is over."""
        self.active = None

    def _pack(self, needed: list[Adapter]) -> PackedAdapters:
        """The set at hand if it holds all that is needed and not much more; else a new one."""
        packed = self._packed
        is_covered = set(needed) <= {adapter for adapter in packed.adapters if adapter is not None}
        if not is_covered or packed.num_columns > 2 * _num_columns(needed):
            packed = PackedAdapters(needed)
            packed.fill(self._sites, needed)
            self._packed = packed
        return packed


def _num_columns(adapters: Sequence[Adapter]) -> int:
    return -(-sum(adapter.rank for adapter in adapters) // _COLUMN_STEP) * _COLUMN_STEP
