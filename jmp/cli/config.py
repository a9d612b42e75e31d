"""``jmp config``, ``login``, ``logout``, ``whoami``: which labs there are for this user, and who one is there."""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Final

import typer

from jmp.cli import labs, output
from jmp.cli.typed import Output, new_app
from jmp.client import config as configuration
from jmp.client.config import CHOICE, ENDPOINT, TOKEN, ClientConfig, Metadata, Store, Tls, clients, credentials
from jmp.client.lab import log_in, open_lab
from jmp.errors import ConfigError, JmpError, Refused, UsageError
from jmp.link.address import parse
from jmp.private import read_secret
from jmp.wire import tokens

app = new_app("Labs that you use, and the exporters of this machine that serve in one.")
client = new_app("Who you are, in which lab.")
exporter = new_app("Who this machine's exporters are in their lab.")
app.add_typer(client, name="client")
app.add_typer(exporter, name="exporter")
login_app = new_app("Become somebody in a lab.")
login_app.info.no_args_is_help = False
logout_app = new_app("Forget who you are in a lab.")
logout_app.info.no_args_is_help = False
whoami_app = new_app("Who you are in the lab.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What to call it here.")]
Endpoint = Annotated[str, typer.Option(metavar="URL", help="The controller: wss://HOST:PORT.")]
CaFingerprint = Annotated[
    str | None, typer.Option(metavar="HEX", help="SHA-256 of the lab's own CA, which is then fetched and kept.")
]
Ca = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Certificates (PEM) to trust. Without both, those that the system trusts."),
]
TokenFile = Annotated[
    str | None, typer.Option(metavar="FILE", help=f"File with the token, - for standard input (default: ${TOKEN}).")
]
Replace = Annotated[bool, typer.Option("--replace", help="Even if there is one of this name, for another lab.")]
Existing = Annotated[str, typer.Argument(metavar="NAME")]

KINDS: Final = {"Client": ("client", "admin"), "Exporter": ("exporter",)}
"""The roles that a token in such a file may have."""


# ---- clients


@client.command("create")
def create_client(
    name: Name,
    endpoint: Endpoint,
    ca_fingerprint: CaFingerprint = None,
    ca: Ca = None,
    token_file: TokenFile = None,
    replace: Replace = False,
) -> None:
    """Join a lab as its client or admin: the command that `jmp admin create client` prints.

    The token is asked of the controller before anything is kept. The first lab is the one in use from then on.
    """
    store = clients()
    used = store.current()
    who = _join(store, name, endpoint, ca_fingerprint, ca, token_file, replace)
    output.note(f"you are {who['name']} ({who['role']}) at {endpoint}, kept as {name}")
    if used in (None, name):
        store.use(name)
    else:
        output.note(f"{used} stays in use; to use this one: jmp config client use {name}")


@client.command("list")
def list_clients(form: Output = "table") -> None:
    """List the labs that you can use; the one in use is marked."""
    chosen = _chosen()
    _list(clients(), form, chosen, configuration.NO_LAB)
    if chosen == "":
        output.note(f"{ENDPOINT} and {TOKEN} are set: they are used, whatever is listed here")


@client.command("use")
def use(name: Existing) -> None:
    """Use this one from now on."""
    store = clients()
    store.use(name)
    output.note(f"{name} is in use now, for the lab at {store.load(name).endpoint}")
    _warn_choice(name)


@client.command("show")
def show_client(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the one in use.")] = None,
    form: Output = "table",
) -> None:
    """Show one, without its token."""
    config = configuration.current(name=name) if name is None else clients().load(name)
    _show(clients(), config, form)


@client.command("renew")
def renew_client(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the one in use.")] = None,
) -> None:
    """Get a new token in place of one that is still good."""
    store = clients()
    name = name or os.environ.get(CHOICE) or store.current()
    if name is None:
        raise UsageError(configuration.NO_LAB)
    _renew(store, name)


@client.command("delete")
def delete_client(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> int:
    """Forget one. Its token stays good: an admin revokes it with jmp admin revoke token."""
    return labs.each(names, clients().delete)


# ---- logging in and out


@login_app.command()
def login(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="What to call it here. Default: with --endpoint as the token says."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"The controller: wss://HOST:PORT (default: ${ENDPOINT}, the lab in use)."),
    ] = None,
    ca_fingerprint: CaFingerprint = None,
    ca: Ca = None,
    token_file: TokenFile = None,
    replace: Replace = False,
) -> None:
    """Become somebody in a lab, and use that lab from now on; or give a new token to one that you use.

    The token is in a file, comes by standard input or the environment, or is asked for on a terminal; with nothing but a new CA
    for the lab in use, it is the one that is kept. The controller is asked who you are before anything is kept.

    In a pod the file may hold the token of its service account: that gets one of the lab's, and the next one whenever it ends.
    """
    store = clients()
    endpoint = endpoint or os.environ.get(ENDPOINT) or None
    kept: str | None = None
    if endpoint is None:
        name = name or os.environ.get(CHOICE) or store.current()
        if name is None or name not in store.names():
            raise UsageError(
                "which lab? jmp login --endpoint wss://HOST:PORT --ca-fingerprint HEX; its admin knows both"
            )
        known = store.load(name)
        endpoint, kept = known.endpoint, known.token if ca or ca_fingerprint else None
        if token_file is None and not os.environ.get(TOKEN) and known.account_token is not None:
            token_file = str(known.account_token)
    if name is not None:
        store.path(name)  # raises for what is no name, before anything is asked
    parse(endpoint)
    given = token_file is not None or bool(os.environ.get(TOKEN))
    token = read_token(token_file) if given else kept or _ask_token()
    _check_role(store, token)
    if name is None and tokens.account_of(token) is None:
        name = tokens.peek(token)["name"]
    if name is not None:
        _check_free(store, name, endpoint, replace)
    pem = _ca(endpoint, ca_fingerprint, ca)
    if pem is None and name is not None:
        pem = _kept_ca(store, name, endpoint)
    name, who = _keep(store, name, endpoint, token, token_file, pem, replace)
    store.use(name)
    output.note(f"you are {who['name']} ({who['role']}) at {endpoint}, kept as {name}")
    _warn_choice(name)


@logout_app.command()
def logout(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the one in use.")] = None,
) -> None:
    """Forget a lab and who you are there. The token stays good: an admin revokes it with jmp admin revoke token."""
    store = clients()
    name = name or os.environ.get(CHOICE) or store.current()
    if name is None:
        raise UsageError(f"which lab? jmp logout {'|'.join(store.names())}" if store.names() else "you are in no lab")
    store.delete(name)
    left = store.current()
    output.note(f"{name} is forgotten" + (f"; {left} is in use now" if left else ""))
    if os.environ.get(TOKEN):
        output.note(f"but in this environment {TOKEN} still says who you are")


# ---- exporters


@exporter.command("create")
def create_exporter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As its configuration on this machine says.")],
    endpoint: Endpoint,
    ca_fingerprint: CaFingerprint = None,
    ca: Ca = None,
    token_file: TokenFile = None,
    replace: Replace = False,
) -> None:
    """Let an exporter of this machine join a lab: the command that `jmp admin create exporter` prints.

    From then on `jmp exporter serve NAME` serves those who have leased it there.
    """
    who = _join(credentials(), name, endpoint, ca_fingerprint, ca, token_file, replace)
    as_whom = "" if who["name"] == name else f" as {who['name']}"
    output.note(f"exporter {name} is in the lab at {endpoint}{as_whom}. Serve it:\n\n  jmp exporter serve {name}")
    file = _configuration_file(name)
    if file is not None:
        output.note(
            f"\nThere is no configuration called {name} on this machine yet. Begin with an example, with this name in it,"
            f" then edit it (jmp exporter example lists others):\n\n  mkdir -p {quote(str(file.parent))}\n"
            f"  jmp exporter example virtual-board | sed 's/^  name: .*/  name: {name}/' > {quote(str(file))}"
        )


@exporter.command("list")
def list_exporters(form: Output = "table") -> None:
    """List the exporters of this machine that have joined a lab."""
    empty = "no exporter of this machine has joined a lab; jmp admin create exporter prints the command that does it"
    _list(credentials(), form, None, empty)


@exporter.command("show")
def show_exporter(name: Existing, form: Output = "table") -> None:
    """Show one, without its token."""
    _show(credentials(), credentials().load(name), form)


@exporter.command("renew")
def renew_exporter(name: Existing) -> None:
    """Get a new token in place of one that is still good."""
    _renew(credentials(), name)


@exporter.command("delete")
def delete_exporter(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> int:
    """Let exporters leave their lab; their own configuration stays."""
    return labs.each(names, credentials().delete)


# ---- who one is


@whoami_app.command()
def whoami(client: labs.Client = None, form: Output = "table") -> None:
    """Ask the controller who you are."""
    config = configuration.current(name=client)
    with open_lab(config) as lab:
        who = lab.call("whoami")
    told = {**who, "endpoint": config.endpoint}
    if form in ("json", "yaml"):
        output.print_value(labs.as_data(told), form)
    elif form == "name":
        sys.stdout.write(f"{who['name']}\n")
    else:
        ends = labs.relative(who["expires"], time.time())
        sys.stdout.write(f"{who['name']} ({who['role']}) at {config.endpoint}; the token expires {ends}\n")


# ---- both


def read_token(file: str | None) -> str:
    """The token: what the file or standard input holds, else the environment. Raises ``UsageError``, ``ConfigError``."""
    if file is None:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise UsageError(f"a token is needed: in {TOKEN}, in a file (--token-file FILE), or by --token-file -")
        return token
    return read_secret(file, "token")


def _join(
    store: Store,
    name: str,
    endpoint: str,
    ca_fingerprint: str | None,
    ca: Path | None,
    token_file: str | None,
    replace: bool,
) -> dict[str, Any]:
    """Check all that can be checked here, then ask the controller and keep it. Returns what it said."""
    store.path(name)  # raises for what is no name, before anything is asked
    parse(endpoint)
    _check_free(store, name, endpoint, replace)
    token = read_token(token_file)
    _check_role(store, token)
    pem = _ca(endpoint, ca_fingerprint, ca)
    _, who = _keep(store, name, endpoint, token, token_file, pem, replace)
    return who


def _keep(
    store: Store,
    name: str | None,
    endpoint: str,
    token: str,
    token_file: str | None,
    pem: str | None,
    replace: bool,
) -> tuple[str, dict[str, Any]]:
    """Ask the controller who one is, then keep that. Returns as what, and what it said.

    A service account's token gets one of the lab's first; if it comes from a file it gets those that follow, too.
    """
    own: Path | None = None
    with ExitStack() as stack:
        file = None
        if pem is not None:
            kept = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem"))
            kept.write(pem)
            kept.flush()
            file = Path(kept.name)
        config = ClientConfig(metadata=Metadata(name=name or "new"), endpoint=endpoint, token=token, tls=Tls(ca=file))
        if tokens.account_of(token) is not None:
            config = dataclasses.replace(config, token=log_in(config)["token"])
            own = Path(token_file).absolute() if token_file not in (None, "-") else None
        lab = stack.enter_context(open_lab(config))
        who: dict[str, Any] = lab.call("whoami")
    if name is None:
        name = str(who["name"])
        _check_free(store, name, endpoint, replace)
    store.save(name, endpoint, config.token, pem, own)
    return name, who


def _ask_token() -> str:
    """The token, typed or pasted unseen; without a terminal there is nobody to ask. Raises ``UsageError``."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return read_token(None)
    try:
        token = getpass.getpass("token: ", sys.stderr).strip()
    except EOFError:
        token = ""
    if not token:
        raise UsageError("no token was given")
    return token


def _kept_ca(store: Store, name: str, endpoint: str) -> str | None:
    """The CA that was kept with a configuration for the same lab."""
    try:
        present = store.load(name)
        if present.endpoint != endpoint or present.tls.ca is None:
            return None
        return present.tls.ca.read_text()
    except (JmpError, OSError):
        return None  # there is none, or none that can be read


def _warn_choice(name: str) -> None:
    if os.environ.get(CHOICE, name) not in ("", name):
        output.note(f"but in this environment {CHOICE} names {os.environ[CHOICE]}")


def _check_free(store: Store, name: str, endpoint: str, replace: bool) -> None:
    if replace or name not in store.names():
        return
    try:
        present = store.load(name).endpoint
    except ConfigError:
        return  # nothing is lost with it
    if present != endpoint:
        raise UsageError(f"{name} is in another lab already ({present}): take another name, or add --replace")


def _check_role(store: Store, token: str) -> None:
    roles = KINDS[store.kind]
    if tokens.account_of(token) is not None:
        if "client" in roles:
            return
        raise Refused("the token is a service account's, which logs in as a client: jmp login")
    says = tokens.peek(token)
    if says["role"] in roles:
        return
    fitting = next((kind.lower() for kind, of in KINDS.items() if says["role"] in of), None)
    hint = f": jmp config {fitting} create" if fitting is not None else ""
    raise Refused(f"the token is for {says['role']} {says['name']}, not for a {roles[0]}{hint}")


def _ca(endpoint: str, fingerprint: str | None, file: Path | None) -> str | None:
    """The CA's certificate: fetched and compared with its fingerprint, or from a file; None to trust those of the system."""
    if fingerprint is not None and file is not None:
        raise UsageError("--ca-fingerprint and --ca are two ways to say the same: give one")
    if file is not None:
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if fingerprint is None:
        return None
    from jmp.link.tls import fetch_ca

    return fetch_ca(endpoint, fingerprint)


def _renew(store: Store, name: str) -> None:
    config = store.load(name)
    if config.account_token is not None:
        answer = log_in(dataclasses.replace(config, token=read_secret(config.account_token, "token")))
    else:
        with open_lab(config) as lab:
            answer = lab.call("renew")
    pem = config.tls.ca.read_text() if config.tls.ca is not None else None
    store.save(name, config.endpoint, answer["token"], pem, config.account_token)
    output.note(f"the new token of {name} expires {labs.relative(answer['expires'], time.time())}")


def _chosen() -> str | None:
    """The client configuration in use; empty if it is the environment that says all."""
    if choice := os.environ.get(CHOICE):
        return choice
    return "" if os.environ.get(ENDPOINT) and os.environ.get(TOKEN) else clients().current()


def _list(store: Store, form: output.Format, chosen: str | None, empty: str) -> None:
    rows: list[dict[str, Any]] = []
    for name in store.names():
        try:
            rows.append(_about(store, store.load(name)))
        except JmpError as error:
            output.note(f"jmp: {error.message}")
        else:
            if store.kind == "Client":
                rows[-1]["current"] = name == chosen
    if form in ("json", "yaml", "name"):
        output.print_listing([labs.as_data(row) for row in rows], form, (), key="name", empty=empty)
        return
    output.print_table(*_table(rows, time.time()), empty=empty)


def _table(rows: Sequence[dict[str, Any]], now: float) -> tuple[list[str], list[list[str]]]:
    shown = [
        [
            row["name"],
            f"{row['identity']} ({row['role']})",
            row["endpoint"],
            labs.relative(row["expires"], now) if row["expires"] else "never",
            *(["in use" if row["current"] else ""] if "current" in row else []),
        ]
        for row in rows
    ]
    return ["name", "identity", "endpoint", "expires", *(["current"] if rows and "current" in rows[0] else [])], shown


def _about(store: Store, config: ClientConfig) -> dict[str, Any]:
    """What may be told of a configuration: never the token, only what it says of itself."""
    says = tokens.peek(config.token)
    return {
        "name": config.name,
        "endpoint": config.endpoint,
        "identity": says["name"],
        "role": says["role"],
        "expires": says["expires"],
    }


def _show(store: Store, config: ClientConfig, form: output.Format) -> None:
    about = _about(store, config)
    file = store.path(config.name) if config.name in store.names() else None
    about["file"] = str(file) if file is not None else None
    about["ca"] = str(config.tls.ca) if config.tls.ca is not None else None
    about["ca_fingerprint"] = labs.ca_fingerprint(config)
    if form in ("json", "yaml"):
        output.print_value(labs.as_data(about), form)
    elif form == "name":
        sys.stdout.write(f"{config.name}\n")
    else:
        output.print_details(labs.details(about, time.time()))


def _configuration_file(name: str) -> Path | None:
    """Where the configuration of an exporter would be, if it is missing."""
    from jmp.exporter.config import list_configs

    return None if name in list_configs() else configuration.directory() / "exporters" / f"{name}.yaml"
