from collections.abc import Sequence

class ActorState:
    pid: int

def list_actors(
    address: str | None = None, filters: Sequence[tuple[str, str, str]] | None = None
) -> list[ActorState]: ...
