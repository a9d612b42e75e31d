"""Who one is in which lab: client configurations, as files and in the environment.

A file is ``$XDG_CONFIG_HOME/jmp/clients/NAME.yaml``, readable by its owner only; ``current`` beside them holds the name of the
one in use. ``JMP_ENDPOINT``, ``JMP_TOKEN`` and ``JMP_CA`` override what a file says and do without one; ``JMP_CLIENT_CONFIG``
names another.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from jmp.driver.schema import did_you_mean
from jmp.errors import BadValue, ConfigError, NotFound, UsageError
from jmp.private import read_private, write_private

_log = logging.getLogger(__name__)

ENDPOINT: Final = "JMP_ENDPOINT"
TOKEN: Final = "JMP_TOKEN"  # a name
CA: Final = "JMP_CA"
CHOICE: Final = "JMP_CLIENT_CONFIG"

NO_LAB: Final = (
    "no lab is configured: an admin of one can give you the command that does it (jmp config client create …),"
    f" or set {ENDPOINT} and {TOKEN}"
)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Whose file it is."""

    name: str = field(metadata={"doc": "what `jmp config client use` calls it"})


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the controller is trusted."""

    ca: Path | None = field(default=None, metadata={"doc": "certificates to trust instead of the system's"})


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """One lab and who one is there."""

    api_version: Literal["jmp/v1"] = field(
        default="jmp/v1", metadata={"key": "apiVersion", "doc": "the version of this format"}
    )
    kind: Literal["Client", "Exporter"] = field(default="Client", metadata={"doc": "what this file configures"})
    metadata: Metadata
    endpoint: str = field(metadata={"doc": "URL of the controller: wss://HOST:PORT"})
    token: str = field(repr=False, metadata={"secret": True, "doc": "proves who one is; keep the file 0600"})
    tls: Tls = field(default_factory=Tls, metadata={"doc": "TLS towards the controller and routers"})
    account_token: Path | None = field(
        default=None,
        metadata={
            "key": "serviceAccountToken",
            "doc": "file with a pod's own token, with which the next token is got when this one ends",
        },
    )

    @property
    def name(self) -> str:
        """The name of the configuration; on this machine only, the token says who one is in the lab."""
        return self.metadata.name


def directory() -> Path:
    """Where jmp keeps a user's configuration."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home, "jmp")


class Store:
    """A folder of such files; clients and the exporters' credentials have one each."""

    def __init__(self, folder: Path, kind: Literal["Client", "Exporter"]) -> None:
        self.folder = folder
        self.kind = kind

    def names(self) -> list[str]:
        """Those that there are."""
        return sorted(path.stem for path in self.folder.glob("*.yaml")) if self.folder.is_dir() else []

    def path(self, name: str) -> Path:
        """The file of one, whether it exists or not. Raises ``BadValue`` for what cannot be a name."""
        if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._@-]*[A-Za-z0-9])?", name) is None:
            raise BadValue(f"{name!r} is no name: letters, digits, and inside also '.', '_', '@', '-'")
        return self.folder / f"{name}.yaml"

    def load(self, name: str) -> ClientConfig:
        """Raises ``NotFound`` with the nearest name, ``ConfigError`` with file, line and place."""
        return read(self._present(name))

    def save(self, name: str, endpoint: str, token: str, ca: str | None, account_token: Path | None = None) -> Path:
        """Write one; ``ca`` is PEM text, kept in a file beside it. Raises ``ConfigError``."""
        import yaml

        path = self.path(name)
        values: dict[str, Any] = {
            "apiVersion": "jmp/v1",
            "kind": self.kind,
            "metadata": {"name": name},
            "endpoint": endpoint,
            "token": token,
        }
        if ca is not None:
            values["tls"] = {"ca": f"{name}.ca.pem"}
            write_private(path.with_name(f"{name}.ca.pem"), ca.encode())
        if account_token is not None:
            values["serviceAccountToken"] = str(account_token)
        write_private(path, yaml.safe_dump(values, sort_keys=False).encode())
        return path

    def delete(self, name: str) -> None:
        """Remove one, also one that cannot be read. Raises ``NotFound``, ``ConfigError``."""
        path, used = self._present(name), self.current() == name
        try:
            path.unlink()
            path.with_name(f"{name}.ca.pem").unlink(missing_ok=True)
            if used:
                (self.folder / "current").unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be removed: {error.strerror}") from error

    def current(self) -> str | None:
        """The one in use: what :meth:`use` said, else the only one there is."""
        try:
            chosen = (self.folder / "current").read_text().strip()
        except OSError:
            chosen = ""
        names = self.names()
        if chosen in names:
            return chosen
        return names[0] if len(names) == 1 else None

    def use(self, name: str) -> None:
        """Use this one from now on. Raises ``NotFound``."""
        self.load(name)
        write_private(self.folder / "current", f"{name}\n".encode())

    def _present(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            raise NotFound(f"there is no {self.kind.lower()} configuration {name!r}{did_you_mean(name, self.names())}")
        return path


def clients() -> Store:
    """The user's client configurations."""
    return Store(directory() / "clients", "Client")


def credentials() -> Store:
    """What exporters on this machine show their labs."""
    return Store(directory() / "credentials", "Exporter")


def read(path: Path) -> ClientConfig:
    """Read one file. Raises ``ConfigError`` with file, line and place."""
    from jmp.driver import schema, yamlfile

    content = read_private(path)
    if content is None:
        raise ConfigError(f"{path} cannot be read: there is no such file")
    try:
        document = yamlfile.read(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    problems = document.problems
    config: ClientConfig | None = None
    if not problems:
        config, problems = schema.load(ClientConfig, document.data or {}, base=path.parent)
    if config is None or problems:
        problem = problems[0]
        where = f"{problem.where}: " if problem.where else ""
        raise ConfigError(f"{path}:{document.line(problem.where)}: {where}{problem.message}")
    return config


def current(environ: Mapping[str, str] = os.environ, *, name: str | None = None) -> ClientConfig:
    """Who one is: ``name``, else what the environment says, else the configuration in use. Raises ``UsageError``."""
    store = clients()
    name = name or environ.get(CHOICE) or None
    endpoint, token, ca = (environ.get(key) or None for key in (ENDPOINT, TOKEN, CA))
    if name is None and endpoint is not None and token is not None:
        chosen = ClientConfig(metadata=Metadata(name="environment"), endpoint=endpoint, token=token)
    else:
        name = name or store.current()
        if name is None:
            if names := store.names():
                raise UsageError(f"there are several labs: jmp config client use {'|'.join(names)}")
            raise UsageError(NO_LAB)
        chosen = store.load(name)
        chosen = replace(chosen, endpoint=endpoint or chosen.endpoint)
        if token is not None:
            chosen = replace(chosen, token=token, account_token=None)
    return chosen if ca is None else replace(chosen, tls=Tls(ca=Path(ca)))
