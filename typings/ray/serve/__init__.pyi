from collections.abc import Callable
from typing import Any, Protocol

class Application: ...

class Deployment(Protocol):
    def bind(self, *args: Any) -> Application: ...

class ReplicaID(Protocol):
    unique_id: str

class ReplicaContext(Protocol):
    replica_id: ReplicaID

def deployment(*, name: str) -> Callable[[type[Any]], Deployment]: ...
def get_replica_context() -> ReplicaContext: ...
