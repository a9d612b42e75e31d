"""What a client may do with an exporter: all policies that match both, taken together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jmp.wire import actions, selector
from jmp.wire.records import Client, Exporter, Policy


@dataclass(frozen=True)
class Access:
    """Rights of one client on one exporter. Without any policy there are none."""

    lease: bool = False
    see: bool = False
    manage: bool = False
    priority: int = 0
    """The highest that may be asked for."""
    longest: float | None = None
    """Seconds; None: no limit."""
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    packages: tuple[str, ...] | None = None


NONE: Final = Access()


def check(policy: Policy) -> None:
    """Raise ``BadValue`` for selectors and patterns that cannot be read."""
    selector.parse(policy.clients)
    selector.parse(policy.exporters)
    for pattern in (*policy.allow, *policy.deny):
        actions.check(pattern)


def access(policies: Iterable[Policy], client: Client, exporter: Exporter) -> Access:
    """The rights of ``client`` on ``exporter``.

    Of the policies whose selectors match both, rights add up: what one allows is allowed, the highest priority and the longest
    duration count (no limit being the longest), patterns and packages are united. ``deny`` adds up, too, and wins over ``allow``.
    What a policy says of durations, patterns and packages counts only if it lets lease.
    """
    matching = [
        policy
        for policy in policies
        if selector.parse(policy.clients).matches(client.labels)
        and selector.parse(policy.exporters).matches(exporter.labels)
    ]
    if not matching:
        return NONE
    leasing = [policy for policy in matching if policy.lease]
    limits = [policy.longest for policy in leasing]
    packages = [policy.packages for policy in leasing]
    return Access(
        lease=bool(leasing),
        see=any(policy.see for policy in matching),
        manage=any(policy.manage for policy in matching),
        priority=max((policy.priority for policy in leasing), default=0),
        longest=None if None in limits or not limits else max(limit for limit in limits if limit is not None),
        allow=_united(policy.allow for policy in leasing),
        deny=_united(policy.deny for policy in matching),
        packages=None if None in packages or not packages else _united(item for item in packages if item is not None),
    )


def _united(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pattern for group in groups for pattern in group))
