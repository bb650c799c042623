"""Which server an upload goes to: a batch runs where its file is, so that must have all that its lines name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from sixfold.core.errors import InvalidRequest, ModelNotFound, NotFound, NotReady
from sixfold.core.serving.keys import Principal
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.upload_peek import BATCH, UploadFacts

MODEL_HEADER = "x-model"
"""Names the model that an uploaded file is for, where its lines don't: what it is uploaded to must have that model."""


class UploadPlaces:
    """Finds servers for files. Used in one event loop.

    Args:
        fleet: The servers.
        geography: Which regions models may be used in.
        guards: Whether the gateway tells its clients apart, so that servers must, too.
    """

    def __init__(self, fleet: Fleet, geography: Geography, *, guards: bool) -> None:
        self._fleet = fleet
        self._geography = geography
        self._guards = guards

    def places_of(
        self, upload: UploadFacts, headers: Mapping[str, str], principal: Principal, *, tenant: str
    ) -> frozenset[str]:
        """Ids of the servers of which any may take the file.

        Args:
            upload: What is in it.
            headers: The request's.
            principal: Whose key it is.
            tenant: Files of one are put together, so that one batch can name several.

        Raises:
            ModelNotFound: A model is not there, or not for this key.
            InvalidRequest: No one server has all that is named.
            NotFound: No server could tell whose the file is.
            NotReady: Those that could take it are not up.
            RegionLocked: A model may not be used from here.
        """
        models = self._known_models(upload, headers.get(MODEL_HEADER), principal)
        keeping = [replica for replica in self._fleet if not self._guards or replica.tells_tenants]
        if not keeping and not self._fleet.may_know_more:
            raise NotFound(
                "The servers behind this gateway do not tell its API keys apart, so they keep no files for them. The operator "
                "allows it by 'acts_for_others' of the servers' key for the gateway."
            )
        if upload.store_ids:
            keeping = self._with_files(keeping, upload)
        able = self._with_models(keeping, models)
        if upload.purpose != BATCH:
            able = [max(able, key=lambda replica_id: _draw(tenant, replica_id))]
        return frozenset(able)

    def _known_models(self, upload: UploadFacts, header: str | None, principal: Principal) -> Sequence[str]:
        wanted = sorted(upload.models) if upload.purpose == BATCH or header is None else [header]
        known = [model for model in wanted if self._fleet.knows(model)]
        for model in wanted:
            # Lines of unknown models fail one by one; a key's bounds hold for the file as a whole.
            must_be_there = principal.models is not None or model == header
            if must_be_there and not (model in known and principal.may_use(model)):
                raise ModelNotFound(
                    f"The model {model[:200]!r} does not exist. GET /v1/models lists all.",
                    param="file" if upload.models else MODEL_HEADER,
                )
        for model in known:
            self._geography.check(self._fleet.names_of(model))
        return known

    def _with_files(self, keeping: Sequence[Replica], upload: UploadFacts) -> list[Replica]:
        if len(upload.store_ids) > 1:
            raise InvalidRequest(
                "The lines name files that different servers keep. A batch runs on one server: upload its files with the header "
                f"{MODEL_HEADER!r}, which puts those of one model together, or make a batch for each.",
                param="file",
            )
        found = [replica for replica in keeping if replica.store_id in upload.store_ids]
        if not found:
            raise NotReady(
                "The server that keeps the files which the lines name is not up right now. Upload them anew if it stays away.",
                code="holder_not_up",
                retry_after_s=2.0,
            )
        return found

    def _with_models(self, keeping: Sequence[Replica], models: Sequence[str]) -> list[str]:
        able = [replica for replica in keeping if all(replica.serves(model) for model in models)]
        if not able and not self._fleet.may_know_more:
            raise InvalidRequest(_no_one_server(models), param="file")
        for model in models or (None,):
            usable = self._fleet.usable(model)
            able = [replica for replica in able if replica in usable]
        if not able:
            names = [name for model in models for name in self._fleet.names_of(model)]
            raise self._geography.no_replica(names)
        # Those that compute prompts for others keep files only where there is nobody else, as everywhere.
        able = [replica for replica in able if replica.record.role != "prefill"] or able
        return sorted(replica.record.replica_id for replica in able)


def _no_one_server(models: Sequence[str]) -> str:
    if len(models) > 1:
        names = ", ".join(repr(model[:100]) for model in models[:8])
        return f"No one server has all models of the lines ({names}). A batch runs on one server: send a file for each model."
    return (
        "No server that keeps files for this client, or those that the lines name, has the model. Upload what the lines name "
        f"with the header {MODEL_HEADER!r}, then the lines."
    )


def _draw(tenant: str, replica_id: str) -> bytes:
    """Rendezvous hashing: a tenant's files stay together while servers come and go elsewhere."""
    return hashlib.blake2b(f"{tenant}\0{replica_id}".encode(errors="surrogatepass"), digest_size=8).digest()
