"""``jmp admin``: who and what belongs to a lab, and who may do what there."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Annotated, Any, Final

import typer

from jmp.cli import install, labs, output
from jmp.cli.labs import CLIENT, EXPORTER, POLICY, TOKEN, Client, Kind
from jmp.cli.output import Wide
from jmp.cli.places import Data, Kubeconfig, Namespace, Where
from jmp.cli.typed import Output, WideOutput, new_app
from jmp.client.config import ClientConfig
from jmp.errors import NotFound, UsageError
from jmp.wire import duration, selector

app = new_app("Administer a lab: clients, exporters, policies, tokens.")
create = new_app("Add a client, an exporter, a policy; or make a token.")
update = new_app("Change a client, an exporter, a policy.")
delete = new_app("Remove a client, an exporter, a policy; or revoke a token.")
disable = new_app("Lock a client out, or keep an exporter for maintenance.")
enable = new_app("Undo what disable did.")
rotate = new_app("Make a new key or token in place of the present one.")
revoke = new_app("Let a token be good for nothing.")
app.add_typer(install.app, name="install")
for _name, _group in {
    "create": create,
    "update": update,
    "delete": delete,
    "disable": disable,
    "enable": enable,
    "rotate": rotate,
    "revoke": revoke,
}.items():
    app.add_typer(_group, name=_name)

TOKEN_DAYS: Final = 365
POD_TOKEN: Final = "/var/run/secrets/jmp/token"
"""Where a pod has its own token for the lab, if it is projected as the documentation says."""
EVERYTHING_POLICY: Final = "default"
"""The policy that a new lab begins with; it allows everybody everything."""

Name = Annotated[str, typer.Argument(metavar="NAME")]
Some = Annotated[list[str], typer.Argument(metavar="NAME...")]
Holder = Annotated[
    str, typer.Argument(metavar="ROLE/NAME", help="client/NAME, exporter/NAME, router/NAME or admin/NAME.")
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="A label; repeatable.")]
NewLabels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE|NAME-", help="Set a label, or remove one; repeatable."),
]
Days = Annotated[
    float, typer.Option("--token-days", metavar="DAYS", min=0.001, max=3650, help="How long its token is good.")
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; users are told.")]
Clients = Annotated[str | None, typer.Option(metavar="SELECTOR", help="Labels of the clients; '' for all.")]
Exporters = Annotated[str | None, typer.Option(metavar="SELECTOR", help="Labels of the exporters; '' for all.")]
MayLease = Annotated[bool | None, typer.Option("--lease/--no-lease", help="May lease them.")]
MaySee = Annotated[bool | None, typer.Option("--see/--no-see", help="May see who holds them.")]
MayManage = Annotated[
    bool | None, typer.Option("--manage/--no-manage", help="May end and extend others' leases, and use maintenance.")
]
Priority = Annotated[int | None, typer.Option(metavar="N", help="The priority of requests, and the highest allowed.")]
Longest = Annotated[str | None, typer.Option(metavar="DURATION|any", help="Longest lease, extensions included.")]
Allow = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Methods that may be called: 'power.*'; repeatable.")
]
Deny = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Methods that may not, whatever is allowed; repeatable.")
]
Packages = Annotated[
    list[str] | None,
    typer.Option("--package", metavar="NAME|any", help="Package whose drivers may be used; repeatable."),
]


File = Annotated[str, typer.Argument(metavar="FILE", help="- is standard output, or input.")]
StoreKind = Annotated[
    Where,
    typer.Option(
        "--store", metavar="sqlite|kubernetes", help="Where its records are: a file below --data, or a cluster."
    ),
]


# ---- create


@create.command("client")
def create_client(
    name: Name,
    labels: Labels = None,
    accounts: Annotated[
        list[str] | None,
        typer.Option(
            "--service-account",
            metavar="NAMESPACE/NAME",
            help="Whose pods log in as this client, instead of a token; repeatable.",
        ),
    ] = None,
    token_days: Days = TOKEN_DAYS,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Add somebody who may lease, a person or a CI job, and print the command with which to join."""
    values: dict[str, Any] = {"labels": labs.pairs(labels, "--label")}
    if not accounts:
        _create_with_token(CLIENT, name, values, token_days, client, form)
        return
    with labs.as_admin(client) as (config, lab):
        record = lab.call("create", "client", name, {**values, "service_accounts": accounts})
    print_changed(CLIENT, record, form, "created")
    _print_login(config, form)


@create.command("exporter")
def create_exporter(
    name: Name,
    labels: Labels = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is.")] = "",
    token_days: Days = TOKEN_DAYS,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Add a device's exporter, and print the command with which it joins.

    Labels given here are added to those of its own configuration, and win over them.
    """
    values: dict[str, Any] = {"labels": labs.pairs(labels, "--label")}
    if description:
        values["description"] = description
    _create_with_token(EXPORTER, name, values, token_days, client, form)


@create.command("policy")
def create_policy(
    name: Name,
    clients: Clients = None,
    exporters: Exporters = None,
    lease: MayLease = None,
    see: MaySee = None,
    manage: MayManage = None,
    priority: Priority = None,
    longest: Longest = None,
    allow: Allow = None,
    deny: Deny = None,
    packages: Packages = None,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Let the clients that match do something with the exporters that match. Policies add up; what one denies is denied."""
    values = _policy(clients, exporters, lease, see, manage, priority, longest, allow, deny, packages)
    with labs.as_admin(client) as (_, lab):
        record = lab.call("create", "policy", name, values)
        others = lab.call("list", "policy")
    print_changed(POLICY, record, form, "created")
    everything = next((policy for policy in others if policy["name"] == EVERYTHING_POLICY != name), None)
    if everything is not None and not everything["clients"] and not everything["exporters"] and form == "table":
        output.note(
            f"policy {EVERYTHING_POLICY} still lets every client use every exporter;"
            f" when the others say enough: jmp admin delete policy {EVERYTHING_POLICY}"
        )


@create.command("router")
def create_router(name: Name, token_days: Days = TOKEN_DAYS, client: Client = None, form: Output = "table") -> None:
    """Make the token of a router, and print the command with which it joins."""
    _issue(f"router/{name}", token_days, client, form, revoke_others=False)


@create.command("admin")
def create_admin(name: Name, token_days: Days = TOKEN_DAYS, client: Client = None, form: Output = "table") -> None:
    """Make the token of another admin, and print the command with which to join."""
    _issue(f"admin/{name}", token_days, client, form, revoke_others=False)


@create.command("token")
def create_token(holder: Holder, token_days: Days = TOKEN_DAYS, client: Client = None, form: Output = "table") -> None:
    """Make one more token, and print the command that uses it. Those before it stay good."""
    _issue(holder, token_days, client, form, revoke_others=False)


# ---- get


@app.command("get")
def get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="clients, exporters, policies or tokens.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]")] = None,
    matching: Annotated[
        str | None, typer.Option("-l", "--selector", metavar="SELECTOR", help="Only those with these labels.")
    ] = None,
    client: Client = None,
    form: WideOutput = "table",
) -> None:
    """List clients, exporters, policies or tokens.

    Of tokens their ids are shown, to revoke them by; a token itself is told only when it is made.
    """
    chosen = labs.kind_of(kind, (CLIENT, EXPORTER, POLICY, TOKEN))
    with labs.as_admin(client) as (_, lab):
        print_found(chosen, records(lab, chosen), names, matching, form)


app.command("list", hidden=True)(get)


def records(lab: Any, kind: Kind) -> list[dict[str, Any]]:
    """All of a kind; exporters with what they are doing."""
    found: list[dict[str, Any]] = lab.call("exporters") if kind is EXPORTER else lab.call("list", kind.name)
    return found


def print_found(
    kind: Kind, found: list[dict[str, Any]], names: list[str] | None, matching: str | None, form: Wide
) -> None:
    """Print those of these names and labels. Raises ``NotFound``."""
    if matching is not None:
        if kind not in (CLIENT, EXPORTER):
            raise UsageError(f"{kind.plural} have no labels to select by")
        chosen = selector.parse(matching)
        found = [record for record in found if chosen.matches(record["labels"])]
    if names:
        found = [_called(kind, found, name) for name in names]
    if names and len(names) == 1 and form in ("json", "yaml"):
        labs.print_record(kind, found[0], form)
        return
    empty = f"no {kind.name} matches {matching}" if matching is not None else None
    labs.print_records(kind, found, form, empty=empty)


# ---- update


@update.command("client")
def update_client(
    name: Name,
    labels: NewLabels = None,
    accounts: Annotated[
        list[str] | None,
        typer.Option(
            "--service-account",
            metavar="NAMESPACE/NAME|none",
            help="Whose pods log in as this client, in place of those before; repeatable.",
        ),
    ] = None,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Change a client's labels, and whose pods log in as it."""
    values = {} if not accounts else {"service_accounts": [] if accounts == ["none"] else accounts}
    _update_labels(CLIENT, name, labels, values, client, form)


@update.command("exporter")
def update_exporter(
    name: Name,
    labels: NewLabels = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is.")] = None,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Change what the lab says of an exporter; what its own configuration says is changed there."""
    _update_labels(EXPORTER, name, labels, {} if description is None else {"description": description}, client, form)


@update.command("policy")
def update_policy(
    name: Name,
    clients: Clients = None,
    exporters: Exporters = None,
    lease: MayLease = None,
    see: MaySee = None,
    manage: MayManage = None,
    priority: Priority = None,
    longest: Longest = None,
    allow: Allow = None,
    deny: Deny = None,
    packages: Packages = None,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Change what is given, and leave the rest. It holds at once, for present leases, too."""
    values = _policy(clients, exporters, lease, see, manage, priority, longest, allow, deny, packages)
    _check_some(values)
    with labs.as_admin(client) as (_, lab):
        print_changed(POLICY, lab.call("update", "policy", name, values), form, "changed")


# ---- delete


@delete.command("client")
def delete_client(names: Some, client: Client = None) -> int:
    """Remove clients. Their tokens are revoked, their leases end."""
    return _delete(CLIENT, names, client)


@delete.command("exporter")
def delete_exporter(names: Some, client: Client = None) -> int:
    """Remove exporters. Their tokens are revoked, their leases end."""
    return _delete(EXPORTER, names, client)


@delete.command("policy")
def delete_policy(names: Some, client: Client = None) -> int:
    """Remove policies."""
    return _delete(POLICY, names, client)


@delete.command("token")
@revoke.command("token")
def revoke_token(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As jmp admin get tokens lists them.")],
    client: Client = None,
) -> int:
    """Let tokens be good for nothing from now on. Connections made with them end."""
    with labs.as_admin(client) as (_, lab):

        def end(id: str) -> None:
            lab.call("revoke", id)
            output.note(f"token {id} is revoked")

        return labs.each(ids, end)


# ---- disable and enable


@disable.command("client")
def disable_client(name: Name, reason: Reason, client: Client = None, form: Output = "table") -> None:
    """Keep a client from doing anything. Its leases end."""
    with labs.as_admin(client) as (_, lab):
        print_changed(CLIENT, lab.call("disable", "client", name, reason), form, "disabled")


@disable.command("exporter")
def disable_exporter(
    name: Name,
    reason: Reason,
    now: Annotated[bool, typer.Option("--now", help="End its present lease, too.")] = False,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Take an exporter for maintenance: it is not leased, but to those who manage it and say --allow-disabled."""
    with labs.as_admin(client) as (_, lab):
        print_changed(EXPORTER, lab.call("disable", "exporter", name, reason, now=now), form, "disabled")
        holder = next((item for item in lab.call("exporters") if item["name"] == name and item.get("lease")), None)
    if holder is not None and not now and form == "table":
        output.note(f"lease {holder['lease']} of {holder['client']} goes on; --now would have ended it")


@enable.command("client")
def enable_client(name: Name, client: Client = None, form: Output = "table") -> None:
    """Let a client work again."""
    with labs.as_admin(client) as (_, lab):
        print_changed(CLIENT, lab.call("enable", "client", name), form, "enabled")


@enable.command("exporter")
def enable_exporter(name: Name, client: Client = None, form: Output = "table") -> None:
    """Let an exporter be leased again."""
    with labs.as_admin(client) as (_, lab):
        print_changed(EXPORTER, lab.call("enable", "exporter", name), form, "enabled")


# ---- rotate


@rotate.command("key")
def rotate_key(client: Client = None) -> None:
    """Sign with a new key from now on. Tokens that were signed with older ones stay good until they expire."""
    with labs.as_admin(client) as (_, lab):
        output.note(f"the lab signs with key {lab.call('rotate')} now")


@rotate.command("token")
def rotate_token(
    holder: Holder,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the present ones good, to be revoked later.")] = False,
    token_days: Days = TOKEN_DAYS,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Make a new token, print the command that uses it, and revoke those before it."""
    _issue(holder, token_days, client, form, revoke_others=not keep)


# ---- move


@app.command("export")
def export(
    file: File,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Also its keys and CA, by which all tokens stay good: a secret.")
    ] = False,
    store: StoreKind = Where.sqlite,
    data: Data = None,
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
) -> None:
    """Write a lab to a file: clients, exporters, policies, ids of tokens, leases and their history.

    The store itself is read; a controller that runs goes on, and what it does from then on is not in the file.
    """
    from jmp.cli import move

    move.export_lab(file, with_keys, move.place_of(store, data, kubeconfig, namespace))


@app.command("import")
def import_(
    file: File,
    store: StoreKind = Where.sqlite,
    data: Data = None,
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
) -> None:
    """Bring a lab from a file to where none is yet, before a controller starts there; interrupted, run it again."""
    from jmp.cli import move

    move.import_lab(file, move.place_of(store, data, kubeconfig, namespace))


# ---- how


def _create_with_token(
    kind: Kind, name: str, values: dict[str, Any], days: float, client: str | None, form: Wide
) -> None:
    with labs.as_admin(client) as (config, lab):
        lab.call("create", kind.name, name, values)
        answer = lab.call("issue", name, kind.name, days)
    output.note(f"{kind.name} {name} is created")
    _print_join(config, answer, form)


def _issue(holder: str, days: float, client: str | None, form: Wide, *, revoke_others: bool) -> None:
    role, slash, name = holder.partition("/")
    if not slash or not name or role not in ("client", "exporter", "router", "admin"):
        raise UsageError(f"whose token? client/NAME, exporter/NAME, router/NAME or admin/NAME, not {holder!r}")
    with labs.as_admin(client) as (config, lab):
        before = [
            token["id"]
            for token in lab.call("list", "token")
            if (token["role"], token["subject"], token["revoked"]) == (role, name, None)
        ]
        if revoke_others and not before:
            raise NotFound(f"there is no token of {holder} to rotate; jmp admin create makes the first one")
        answer = lab.call("issue", name, role, days)
        _print_join(config, answer, form)
        sys.stdout.flush()
        own = _own_token(lab) if revoke_others else None
        for id in before if revoke_others else ():
            if id == own:
                output.note(
                    f"token {id} is the one in use here; when you have joined anew: jmp admin revoke token {id}"
                )
            else:
                lab.call("revoke", id)


def _own_token(lab: Any) -> str:
    """The id of the token in use."""
    return str(lab.call("whoami")["token"])


def _print_join(config: ClientConfig, answer: dict[str, Any], form: Wide) -> None:
    """The only place where a token is printed, once, to whom it was made for."""
    fingerprint = labs.ca_fingerprint(config)
    name, role = answer["name"], answer["role"]
    if role == "router":
        command = labs.router_command(name, config.endpoint, fingerprint, answer["token"])
    else:
        kind = "exporter" if role == "exporter" else "client"
        command = labs.join_command(kind, name, config.endpoint, fingerprint, answer["token"])
    if form in ("json", "yaml"):
        more = {"endpoint": config.endpoint, "ca_fingerprint": fingerprint, "join": command}
        output.print_value(labs.as_data({**answer, **more}), form)
    elif form == "name":
        sys.stdout.write(f"{name}\n")
    else:
        expires = labs.relative(answer["expires"], time.time())
        output.note(f"where it belongs, run this; it holds a secret, which is told only now and expires {expires}:\n")
        sys.stdout.write(f"{command}\n")


def _print_login(config: ClientConfig, form: Wide) -> None:
    """How a pod becomes a client that it may log in as."""
    if form == "table":
        fingerprint = labs.ca_fingerprint(config)
        output.note("in a pod with a token of its service account for this lab (docs/kubernetes.md):\n")
        words = ["jmp", "login", "--endpoint", config.endpoint]
        words += ["--ca-fingerprint", fingerprint] if fingerprint is not None else []
        sys.stdout.write(f"{shlex.join([*words, '--token-file', POD_TOKEN])}\n")


def print_changed(kind: Kind, record: dict[str, Any], form: Wide, what: str) -> None:
    """Tell of a change."""
    if form == "table":
        output.note(f"{kind.name} {record[kind.key]} is {what}")
    else:
        labs.print_record(kind, record, form)


def _called(kind: Kind, found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for record in found:
        if record[kind.key] == name:
            return record
    from jmp.driver.schema import did_you_mean

    raise NotFound(f"there is no {kind.name} {name!r}{did_you_mean(name, [record[kind.key] for record in found])}")


def _update_labels(
    kind: Kind, name: str, labels: list[str] | None, values: dict[str, Any], client: str | None, form: Wide
) -> None:
    with labs.as_admin(client) as (_, lab):
        if labels:
            present = _called(kind, lab.call("list", kind.name), name)
            values = {**values, "labels": changed(present["own_labels" if kind is EXPORTER else "labels"], labels)}
        _check_some(values)
        print_changed(kind, lab.call("update", kind.name, name, values), form, "changed")


def changed(labels: dict[str, str], changes: list[str]) -> dict[str, str]:
    """Labels after ``NAME=VALUE`` (set) and ``NAME-`` (remove). Raises ``UsageError``, ``NotFound``."""
    after = dict(labels)
    for change in changes:
        if "=" not in change and change.endswith("-"):
            if change[:-1] not in after:
                raise NotFound(f"the lab sets no label {change[:-1]!r} here, so there is none to remove")
            del after[change[:-1]]
        else:
            after |= labs.pairs([change], "--label")
    return after


def _check_some(values: dict[str, Any]) -> None:
    if not values:
        raise UsageError("nothing to change was given; --help lists what can be")


def _delete(kind: Kind, names: list[str], client: str | None) -> int:
    with labs.as_admin(client) as (_, lab):

        def remove(name: str) -> None:
            ended = lab.call("delete", kind.name, name)
            output.note(f"{kind.name} {name} is deleted")
            for lease in ended:
                output.note(f"lease {lease['id']} of {lease['client']} ends with it")

        return labs.each(names, remove)


def _policy(
    clients: str | None,
    exporters: str | None,
    lease: bool | None,
    see: bool | None,
    manage: bool | None,
    priority: int | None,
    longest: str | None,
    allow: list[str] | None,
    deny: list[str] | None,
    packages: list[str] | None,
) -> dict[str, Any]:
    """What was given of a policy's fields."""
    given: dict[str, Any] = {
        "clients": clients,
        "exporters": exporters,
        "lease": lease,
        "see": see,
        "manage": manage,
        "priority": priority,
        "allow": allow or None,
        "deny": deny or None,
    }
    values = {key: value for key, value in given.items() if value is not None}
    if longest is not None:
        values["longest"] = None if longest == "any" else duration.parse(longest)
    if packages:
        values["packages"] = None if packages == ["any"] else packages
    return values
