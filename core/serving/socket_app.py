"""The ASGI application of one WebSocket route: counts the socket, runs its endpoint, closes it with the right code."""

from __future__ import annotations

import logging

from starlette.types import Receive, Scope, Send

from sixfold.core.errors import RequestCancelled, RequestError
from sixfold.core.serving.api import SocketRoute
from sixfold.core.serving.context import SCOPE_KEY, ServingContext
from sixfold.core.serving.error_responses import sanitize
from sixfold.core.serving.socket_call import WebSocketCall

logger = logging.getLogger(__name__)

_POLICY_VIOLATION = 1008
_INTERNAL_ERROR = 1011
_SERVICE_RESTART = 1012
_TRY_AGAIN_LATER = 1013


class SocketApp:
    """See the module.

    Args:
        route: What the plugin declared.
        context: The server's parts.
    """

    def __init__(self, route: SocketRoute, context: ServingContext) -> None:
        self._route = route
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one socket to its end; errors before the handshake go up to the gate, which answers them with a status.

        Raises:
            RequestError: What the client is to be told instead of a handshake.
        """
        scope["route"] = self._route
        admitted = scope[SCOPE_KEY]
        call = WebSocketCall(self._context, scope, receive, send, admitted)
        limiter = admitted.principal.limiter
        limiter.begin()
        drain = self._context.drain
        drain.enter(call)
        try:
            await self._route.endpoint(call)
            await call.close()
        except RequestError as error:
            if not call.accepted:
                raise
            await call.close(_code(error), sanitize(error.message))  # does nothing if the client left
        except Exception:  # the border of a socket: the log gets the reason, the client a code
            if not call.accepted:
                raise
            logger.exception("request %s: a defect ended its socket", call.request_id)
            await call.close(_INTERNAL_ERROR, f"The server made a mistake; quote {call.request_id} to the operator.")
        finally:
            await call.leave()
            drain.leave(call)
            limiter.end()


def _code(error: RequestError) -> int:
    if error.code == "draining":
        return _SERVICE_RESTART
    if error.retryable:
        return _TRY_AGAIN_LATER
    is_theirs = error.status < 500 and not isinstance(error, RequestCancelled)
    return _POLICY_VIOLATION if is_theirs else _INTERNAL_ERROR
