"""What Sixfold uses of python-crfsuite, which ships no types."""

from collections.abc import Mapping, Sequence

class Tagger:
    def open(self, name: str) -> object: ...
    def tag(self, xseq: Sequence[Mapping[str, str | bool | float]]) -> list[str]: ...
