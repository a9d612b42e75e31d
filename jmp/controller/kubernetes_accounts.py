"""Service accounts of the cluster: whose token somebody shows, which only the cluster can tell (TokenReview)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import trio

from jmp.controller.kubernetes_api import Api
from jmp.errors import LabError, Refused
from jmp.wire.tokens import LEEWAY, SERVICE_ACCOUNT, account_of

REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
ABREAST: Final = 4
"""Reviews at once: whoever reaches this port can have one made."""
SECONDS: Final = 5.0
"""How long one may take; whoever waits for it is a stranger, and has 10 s in all."""


class Reviewer:
    """Asks the cluster of ``api`` about tokens, which have to be for ``audience``."""

    def __init__(self, api: Api, audience: str, *, clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._turns = trio.CapacityLimiter(ABREAST)

    async def __call__(self, token: str) -> str:
        """The service account whose token that is, as NAMESPACE/NAME.

        Raises :class:`~jmp.errors.Refused` for one that is none or not for us, :class:`~jmp.errors.LabError` if nobody can tell.
        """
        says = account_of(token)
        if says is None or self._audience not in says.audiences:
            raise Refused(f"the service account's token is for somebody else: its audience has to be {self._audience}")
        if says.expires is not None and says.expires + LEEWAY <= self._clock():
            raise Refused("the service account's token has expired: a pod finds the next one in the same file")
        with trio.move_on_after(SECONDS) as patience:
            async with self._turns:
                status = await self._review(token)
        if patience.cancelled_caught:
            raise LabError("the cluster does not answer at present whose token this is")
        user = str((status.get("user") or {}).get("username", ""))
        if status.get("authenticated") is not True or not user.startswith(SERVICE_ACCOUNT):
            raise Refused(
                "the cluster does not know this token: its pod or account is gone, or it is another cluster's"
            )
        if self._audience not in (status.get("audiences") or ()):
            raise Refused("the cluster does not say for whom this token is")
        return user.removeprefix(SERVICE_ACCOUNT).replace(":", "/")

    async def _review(self, token: str) -> dict[str, Any]:
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        answer = await self._api.request("POST", REVIEWS, asked)
        if answer.status >= 400:
            raise LabError(f"the cluster cannot say whose token this is: status {answer.status}")
        status = answer.body.get("status")
        return status if isinstance(status, dict) else {}
