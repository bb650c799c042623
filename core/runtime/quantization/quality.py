"""What a family implements so that `sixfold quantize-report` can measure it: its layers, and its quality under a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.plan import LinearShape
from sixfold.core.runtime.quantization.policy import QuantizationPolicy


def sample_text() -> str:
    """English prose of ten subjects, and a little code: written for this project and under its licence."""
    text = Path(__file__).with_name("quality_text.md").read_text(encoding="utf-8")
    return text.partition("-->")[2].strip()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        ConfigError: There is none.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"--inputs: {path} is empty.")
    return lines


def read_text(path: Path) -> str:
    """A file that a person named.

    Raises:
        ConfigError: It is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--inputs: {path} can't be read as text: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """One measurement.

    Attributes:
        figures: By name, with the unit in it; those of the unquantized model are there too where they mean something.
        weight_bytes: What the weights take.
    """

    figures: Mapping[str, float]
    weight_bytes: int


class QualityProbe(ABC):
    """Measures one model on real inputs. Lives in the process of the command; one call at a time.

    Args:
        context: As a loader gets it; its ``quantization`` is not looked at.
        inputs: What to measure on instead of what comes with the family; None for that.

    Raises:
        ConfigError: The family needs inputs, or can't read these.
    """

    def __init__(self, context: LoadContext, inputs: Path | None) -> None:
        self.context = context
        self.inputs = inputs

    @property
    @abstractmethod
    def inputs_text(self) -> str:
        """What is measured on, in a few words."""

    @abstractmethod
    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        """The linear layers of each component that a policy may name."""

    @abstractmethod
    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        """Loads the model anew under a policy and measures it.

        Args:
            policy: None, the first call, is what later calls compare with.
            timed: Whether times are among the figures.

        Raises:
            ConfigError: The policy does not fit.
        """
