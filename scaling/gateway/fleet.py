"""The replicas as the gateway sees them: which are up, what they serve, which are left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.upstream import Answer
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.rollout.decide import Tally
from sixfold.scaling.route.router import ReplicaFacts, Router

_MAX_KNOWN_MODELS = 10_000
_UNUSABLE = frozenset(("failed",))


class ServedName(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a replica's ``/v1/models``; fields of others' servers are left where they are.

    Attributes:
        id: What clients ask for.
        root: The model behind it.
        parent: Of an adapter, the model that it changes.
        state: Sixfold's own; None elsewhere.
    """

    id: str
    root: str | None = None
    parent: str | None = None
    state: str | None = None


Listing = Mapping[str, tuple[ServedName, msgspec.Raw]]
"""What a replica serves: what is read of each entry, and the entry as it came, by the name that clients use."""


def read_listing(entries: Sequence[msgspec.Raw]) -> Listing:
    """Reads the entries of a ``/v1/models``.

    Raises:
        ValueError: One is no model, or its text is no UTF-8.
        RecursionError: One is nested too deep.
    """
    return {entry.id: (entry, raw) for raw in entries for entry in (msgspec.json.decode(raw, type=ServedName),)}


class Replica:
    """What is known of one replica. Owned by its `Fleet`.

    Attributes:
        record: As configured or published.
        was_seen: Whether any probe was ever answered.
        up: Whether its last probe, and no connection since, said so.
        draining: Whether it takes no new requests.
        names: What it serves, by the name that clients use.
        listing: Its ``/v1/models`` entries as it sent them, by id.
        store_id: Of what it keeps, as it said last; "" for a server that has none.
        tells_tenants: Whether it keeps apart for whom the gateway's requests are.
    """

    def __init__(self, record: ReplicaRecord) -> None:
        self.record = record
        self.up = False
        self.was_seen = False
        self.draining = record.draining
        self.names: Mapping[str, ServedName] = {}
        self.listing: Mapping[str, msgspec.Raw] = {}
        self.store_id = ""
        self.tells_tenants = False
        self.facts = _facts(record, {})

    def serves(self, model: str | None) -> bool:
        """Whether it has this model; None for any."""
        return model is None or model in self.names

    def names_of(self, model: str | None) -> tuple[str, ...]:
        """What the model is called: by clients, by the server, and the one that it adapts; none for None."""
        entry = None if model is None else self.names.get(model)
        if model is None or entry is None:
            return () if model is None else (model,)
        return (model, *(each for each in (entry.root, entry.parent) if each is not None and each != model))


class Fleet:
    """All replicas. Used in one event loop.

    Args:
        routers: All who route to its replicas; told which are gone or begin anew.
        outliers: Told what came of requests.
        permits: Whether a request for a model of these names may enter a region: asked for whatever is listed here.
        clock: Monotonic seconds.
        on_change: Called when there may be room for more or fewer requests.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        outliers: OutlierDetector,
        permits: Callable[[Collection[str], str], bool],
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._routers = tuple(routers)
        self._outliers = outliers
        self._permits = permits
        self._clock = clock
        self._on_change = on_change
        self._replicas: dict[str, Replica] = {}
        self._known_models: dict[str, None] = {}
        self._tallies: dict[str, Tally] = {}

    def __iter__(self) -> Iterator[Replica]:
        return iter(tuple(self._replicas.values()))

    def get(self, replica_id: str) -> Replica | None:
        """The replica of this id, if it is still there."""
        return self._replicas.get(replica_id)

    def tally(self, revision: str) -> Tally:
        """What became of requests at a revision's replicas so far, present and past ones. An answer that broke off after it had
        begun counts twice, as one that began well and as a failure."""
        return self._tallies.get(revision, Tally())

    def knows(self, model: str) -> bool:
        """Whether any replica, present or past, served the model."""
        return model in self._known_models

    @property
    def may_know_more(self) -> bool:
        """Whether there are replicas whose models were never heard of, or none at all."""
        return not self._replicas or not all(replica.was_seen for replica in self._replicas.values())

    def set_records(self, records: Sequence[ReplicaRecord]) -> None:
        """Takes over who is there now."""
        wanted = {record.replica_id: record for record in records}
        for replica_id in [each for each in self._replicas if each not in wanted]:
            del self._replicas[replica_id]
            self._forget(replica_id)
        for replica_id, record in wanted.items():
            replica = self._replicas.get(replica_id)
            if replica is None or (replica.record.incarnation, replica.record.url) != (record.incarnation, record.url):
                if replica is not None:
                    self._forget(replica_id)
                self._replicas[replica_id] = Replica(record)
            elif replica.record != record:
                replica.record = record
                replica.draining = record.draining
                replica.facts = _facts(record, replica.names)
        self._outliers.retain(tuple(self._replicas))
        for router in self._routers:
            router.retain(self._replicas)
        self._on_change()

    def probed(
        self, replica: Replica, listing: Listing, *, draining: bool, store_id: str = "", tells_tenants: bool = False
    ) -> None:
        """A probe was answered; see `Replica`'s attributes for what it told."""
        replica.store_id, replica.tells_tenants = store_id, tells_tenants
        replica.names = {each: entry for each, (entry, _raw) in listing.items() if entry.state not in _UNUSABLE}
        replica.listing = {each: raw for each, (_entry, raw) in listing.items()}
        replica.facts = _facts(replica.record, replica.names)
        replica.up = replica.was_seen = True
        replica.draining = draining or replica.record.draining
        for name in replica.names:
            if len(self._known_models) < _MAX_KNOWN_MODELS:
                self._known_models[name] = None
        self._on_change()

    def unreachable(self, replica: Replica) -> None:
        """A probe or a connection failed: it gets no requests until a probe is answered."""
        if replica.up:
            replica.up = False
            self._on_change()

    def judge(self, replica: Replica, answer: Answer) -> bool:
        """Counts an answer for or against the replica; says whether the replica failed.

        What it says is the request's own fault is not its. One that says that it drains gets no new requests.
        """
        replica_id = replica.record.replica_id
        if answer.status == 503 and b'"draining"' in answer.first:
            if not replica.draining:
                replica.draining = True
                self._on_change()
        elif answer.status >= 500 and answer.status != 504 and answer.header("x-should-retry") != "false":
            self.failed(replica_id)
            return True
        else:
            self._outliers.succeeded(replica_id)
            self._count(replica, num_failed=0)
        return False

    def sent(self, replica_id: str, number: int, *, model: str) -> None:
        """A request for a model was sent to it; `answered` or `given_up` follows."""
        self._outliers.sent(replica_id, number, self._clock(), model=model)

    def answered(self, replica_id: str, number: int) -> None:
        """The first bytes of its answer came."""
        self._outliers.answered(replica_id, number, self._clock())

    def given_up(self, replica_id: str, number: int) -> None:
        """Nobody waits for the request's answer any more."""
        self._outliers.given_up(replica_id, number)

    def failed(self, replica_id: str) -> None:
        """It failed a request by its own fault."""
        replica = self._replicas.get(replica_id)
        if replica is not None:
            self._outliers.failed(replica_id, self._clock())
            self._count(replica, num_failed=1)

    def names_of(self, model: str | None) -> tuple[str, ...]:
        """All that the model is called at any replica, first as the client calls it; see `Replica.names_of`."""
        return tuple(dict.fromkeys(name for replica in self._replicas.values() for name in replica.names_of(model)))

    def holding(self, store_id: str) -> tuple[Replica, ...]:
        """Who keeps a store, up or not; more than one only where somebody has copied its folder."""
        return tuple(replica for replica in self._replicas.values() if replica.store_id == store_id)

    def available(
        self, model: str | None, without: Collection[str] = (), *, only: Collection[str] | None = None
    ) -> list[ReplicaFacts]:
        """Who may take a request of the model: those that are up, not draining and not ejected, where it may go.

        Replicas that compute prompts for others are among them only where there is nobody else.

        Args:
            model: As the client named it; None for any.
            without: Ids that are not wanted.
            only: Ids of those that hold what is asked about: they may where the request names no model.
        """
        usable = self._usable(model, without, only)
        return self._preferred([each for each in usable if each.record.role != "prefill"] or usable)

    def usable(self, model: str | None) -> list[Replica]:
        """All that may take a request of the model, also those that are ejected or compute for others: what one of them keeps,
        nobody else has.

        Args:
            model: As the client named it; None for any.
        """
        return self._usable(model, (), None)

    def prefillers(self, model: str) -> list[ReplicaFacts]:
        """Who computes prompts of the model for others."""
        return self._preferred([each for each in self._usable(model, (), None) if each.record.role == "prefill"])

    def _count(self, replica: Replica, *, num_failed: int) -> None:
        if revision := replica.record.revision:
            so_far = self.tally(revision)
            self._tallies[revision] = Tally(
                num_requests=so_far.num_requests + 1, num_failed=so_far.num_failed + num_failed
            )

    def _forget(self, replica_id: str) -> None:
        for router in self._routers:
            router.forget(replica_id)

    def _usable(self, model: str | None, without: Collection[str], only: Collection[str] | None) -> list[Replica]:
        return [
            replica
            for replica in self._replicas.values()
            if replica.up
            and not replica.draining
            and replica.serves(model)
            and replica.record.replica_id not in without
            and (only is None or replica.record.replica_id in only)
            and ((only is not None and model is None) or self._permits(replica.names_of(model), replica.record.region))
        ]

    def _preferred(self, usable: Sequence[Replica]) -> list[ReplicaFacts]:
        ejected = self._outliers.ejected(self._clock())
        # A model whose only replicas are ejected is served by them: some answers are better than none.
        return [replica.facts for replica in usable if replica.record.replica_id not in ejected] or [
            replica.facts for replica in usable
        ]

    def adapter_of(self, model: str) -> str | None:
        """The adapter's name, if the model is one; None otherwise."""
        for replica in self._replicas.values():
            entry = replica.names.get(model)
            if entry is not None:
                return model if entry.parent is not None else None
        return None


def _facts(record: ReplicaRecord, names: Mapping[str, ServedName]) -> ReplicaFacts:
    return ReplicaFacts(
        replica_id=record.replica_id,
        region=record.region,
        site=record.site or record.region,
        weight=record.weight,
        revision=record.revision,
        adapters=frozenset(name for name, entry in names.items() if entry.parent is not None),
    )
