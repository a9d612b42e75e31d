"""``jmp get|create|update|delete``: what ``jmp lease`` and ``jmp admin`` do, in the order of words that kubectl has."""

from __future__ import annotations

from typing import Annotated

import typer

from jmp.cli import admin, labs, lease
from jmp.cli.labs import EXPORTER, LEASE, Client
from jmp.cli.typed import Output, WideOutput, new_app
from jmp.errors import UsageError
from jmp.wire import duration

get_app = new_app("List leases, exporters, clients, policies or tokens.")
create_app = new_app("Get a lease; or add a client, an exporter, a policy.")
update_app = new_app("Change a lease, a client, an exporter, a policy.")
delete_app = new_app("Release leases; or remove clients, exporters, policies.")


@get_app.command()
def get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="leases, exporters, clients, policies or tokens.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]")] = None,
    matching: Annotated[
        str | None,
        typer.Option(
            "-l",
            "--selector",
            metavar="SELECTOR",
            help="Only those with these labels; leases: of exporters with these labels.",
        ),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", "-A", help="Leases: everybody's, as far as you may see.")] = False,
    ended: Annotated[bool, typer.Option("--ended", help="Leases: those that have ended, too.")] = False,
    tag: Annotated[
        str, typer.Option("--tag", "--tag-filter", metavar="TAG", help="Leases: only those with this tag.")
    ] = "",
    client: Client = None,
    form: WideOutput = "table",
) -> None:
    """List what there is in a lab. Leases and exporters are for everybody, the rest is for admins."""
    chosen = labs.kind_of(kind)
    if chosen is not LEASE and (everybody or ended or tag):
        raise UsageError(f"--all, --ended and --tag are for leases, not for {chosen.plural}")
    if chosen is not LEASE and chosen is not EXPORTER:
        admin.get(kind, names, matching, client, form)
        return
    with labs.as_client(client) as lab:
        if not names:
            if chosen is LEASE:
                lease.print_leases(lab, form, everybody=everybody, ended=ended, tag=tag, matching=matching)
            else:
                admin.print_found(EXPORTER, lab.call("exporters"), None, matching, form)
            return
        found = [lab.call(chosen.name, name) for name in names]
        if len(found) == 1 and form in ("json", "yaml"):
            labs.print_record(chosen, found[0], form)
        else:
            labs.print_records(chosen, found, form)


create_app.command("lease")(lease.acquire)


@update_app.command("lease")
def update_lease(
    id: lease.Id = None,
    length: Annotated[
        str | None,
        typer.Option("--for", "--duration", metavar="DURATION", help="Its whole length, from when it was ready."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to-client", metavar="CLIENT", help="Hand it over.")] = None,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Make a lease longer, or hand it over."""
    if length is None and to is None:
        raise UsageError("nothing to change was given: --for DURATION or --to-client CLIENT")
    seconds = None if length is None else duration.parse(length)
    name = lease.named(id)
    with labs.as_client(client) as lab:
        record = lab.call("lease", name)
        if seconds is not None:
            more = seconds - record["duration"]
            if more < 0:
                now = duration.text(record["duration"])
                raise UsageError(f"lease {name} is for {now}, and can only be made longer; jmp lease release ends it")
            if more:
                record = lab.call("extend", name, more)
        if to is not None:
            record = lab.call("transfer", name, to)
    lease.print_change(record, form)


@delete_app.command("lease")
def delete_lease(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help=f"Default: ${lease.VARIABLE}.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that you have.")] = False,
    client: Client = None,
) -> int:
    """Release leases."""
    return lease.release(ids, everything, "", client)


for _app, _commands in (
    (create_app, {"client": admin.create_client, "exporter": admin.create_exporter, "policy": admin.create_policy}),
    (update_app, {"client": admin.update_client, "exporter": admin.update_exporter, "policy": admin.update_policy}),
    (delete_app, {"client": admin.delete_client, "exporter": admin.delete_exporter, "policy": admin.delete_policy}),
):
    for _name, _command in _commands.items():
        _app.command(_name)(_command)  # type: ignore[type-var]  # of one signature each
for _app in (create_app, update_app, delete_app):
    for _info in list(_app.registered_commands):
        _plural = labs.KINDS[str(_info.name)].plural
        _app.command(_plural, hidden=True)(_info.callback)  # type: ignore[type-var]
