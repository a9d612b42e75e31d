"""Records as custom resources, and back; and the definitions of these, made from the records.

What a person may say of a thing is in ``spec``, what the lab says of it in ``status``; labels are the object's own labels. A name
that Kubernetes would not take is told by an annotation, and the object's name is made of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from jmp.controller import policies
from jmp.controller.kubernetes_api import GROUP, VERSION, Object
from jmp.controller.store import Key, Record
from jmp.errors import JmpError, LabError
from jmp.wire.records import (
    SERVICE_ACCOUNT,
    Client,
    Exporter,
    Lease,
    Policy,
    Presence,
    Replica,
    Token,
    from_wire,
    to_wire,
)

NAME: Final = f"{GROUP}/name"
CREATED: Final = f"{GROUP}/created"
_TIMES: Final = frozenset(
    {
        "created",
        "begin",
        "give_up",
        "granted",
        "ready",
        "ends",
        "ended",
        "used",
        "since",
        "issued",
        "expires",
        "revoked",
    }
)
"""Fields that are points in time: text in RFC 3339, as everywhere in Kubernetes, to the microsecond."""
_SECONDS: Final = frozenset({"duration", "idle_limit", "longest"})
_FINE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Resource:
    """How one kind of record is kept."""

    kind: str
    cls: type[Any]
    name: str
    plural: str
    short: tuple[str, ...]
    spec: tuple[str, ...]
    status: tuple[str, ...] = ()
    """Once it has one the status is right, also where the spec has the same: that is what was asked for."""
    fixed: str = ""
    """Why the spec of an object that is there cannot be changed."""
    labels: str | None = None
    """The field that is the object's labels."""
    columns: tuple[tuple[str, str, str], ...] = ()
    """Name, type and path of what ``kubectl get`` shows."""
    category: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """Of all objects, of one, or of a part of it."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{self.plural}"
        return "/".join(item for item in (path, name, part) if item)

    def key(self, item: str) -> str:
        """What a field is called in the object."""
        return self.renamed.get(item) or _camel(item) + ("Seconds" if item in _SECONDS else "")

    @cached_property
    def keys(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The fields of the spec and of the status, and what they are called: much of a start is reading objects."""
        return [(item, self.key(item)) for item in self.spec], [(item, self.key(item)) for item in self.status]

    @cached_property
    def has_created(self) -> bool:
        """Whether the record tells when it was made."""
        return any(one.name == "created" for one in fields(self.cls))


REQUEST: Final = (
    "client",
    "wants",
    "duration",
    "created",
    "priority",
    "begin",
    "give_up",
    "tied",
    "idle_limit",
    "allow_disabled",
    "tags",
    "context",
)
"""What is asked for when a lease is. It is in the spec, which stays as it was made; the status says what it has become."""

RESOURCES: Final = {
    resource.kind: resource
    for resource in (
        Resource(
            "client",
            Client,
            "Client",
            "clients",
            ("jc",),
            spec=("disabled", "service_accounts"),
            labels="labels",
            columns=(
                ("Disabled", "string", ".spec.disabled"),
                ("Accounts", "string", ".spec.serviceAccounts[*]"),
            ),
        ),
        Resource(
            "exporter",
            Exporter,
            "Exporter",
            "exporters",
            ("je",),
            spec=("own_labels", "disabled"),
            status=("description", "epoch", "used", "lease"),
            labels="labels",
            renamed={"own_labels": "labels"},
            columns=(
                ("Phase", "string", ".status.presence.observed.phase"),
                ("Lease", "string", ".status.presence.observed.lease"),
                ("Controller", "string", ".status.presence.replica"),
                ("Disabled", "string", ".spec.disabled"),
                ("Description", "string", ".status.description"),
            ),
        ),
        Resource(
            "policy",
            Policy,
            "AccessPolicy",
            "accesspolicies",
            ("jp",),
            spec=(
                "clients",
                "exporters",
                "lease",
                "see",
                "manage",
                "priority",
                "longest",
                "allow",
                "deny",
                "packages",
            ),
            columns=(
                ("Clients", "string", ".spec.clients"),
                ("Exporters", "string", ".spec.exporters"),
                ("Priority", "integer", ".spec.priority"),
            ),
        ),
        Resource(
            "lease",
            Lease,
            "DeviceLease",
            "deviceleases",
            ("jl",),
            spec=REQUEST,
            status=(
                *REQUEST,
                "state",
                "number",
                "devices",
                "granted",
                "ready",
                "ends",
                "ended",
                "reason",
            ),
            columns=(
                ("State", "string", ".status.state"),
                ("Client", "string", ".spec.client"),
                ("Exporters", "string", ".status.devices[*].exporter"),
                ("Ends", "date", ".status.ends"),
                ("Reason", "string", ".status.reason"),
            ),
            fixed="what a lease was asked for stays as it is: jmp lease extend, transfer and release change the lease",
        ),
        Resource(
            "token",
            Token,
            "IdentityToken",
            "identitytokens",
            ("jtok",),
            spec=("subject", "role", "issued", "expires", "revoked", "service_account"),
            columns=(
                ("Subject", "string", ".spec.subject"),
                ("Role", "string", ".spec.role"),
                ("Expires", "string", ".spec.expires"),
                ("Revoked", "string", ".spec.revoked"),
            ),
        ),
        Resource(
            "replica",
            Replica,
            "ControllerReplica",
            "controllerreplicas",
            (),
            spec=("beat", "holds", "routers", "dials"),
            category=False,
        ),
    )
}
PRESENCE: Final = tuple(item.name for item in fields(Presence) if item.name not in ("name", "version"))


def object_name(name: str) -> str:
    """The name of the object of a record."""
    if _FINE.fullmatch(name) and not re.search(r"-[0-9a-f]{10}$", name):
        return name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:10]}".lstrip("-")


# ---- records → objects


def to_object(resource: Resource, name: str, record: Any, present: Object | None = None) -> Object:
    """The object of a record: ``present`` with the record's values, or a new one."""
    values = _values(record)
    metadata: Object = dict(present["metadata"]) if present is not None else {"name": object_name(name)}
    notes = dict(metadata.get("annotations") or {})
    if metadata["name"] != name:
        notes[NAME] = name
    if "created" not in resource.spec and values.get("created"):
        notes[CREATED] = values["created"]
    if notes:
        metadata["annotations"] = notes
    if resource.labels is not None:
        metadata["labels"] = dict(values.get(resource.labels) or {})
    before: Object = present if present is not None else {}
    spec = dict(before.get("spec") or {})
    for item in resource.spec:
        if present is not None and item in resource.status:
            continue  # what was asked for stays as it was
        _set(spec, resource.key(item), values.get(item))
    return {
        **before,
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": resource.name,
        "metadata": metadata,
        "spec": spec,
    }


def to_status(resource: Resource, record: Any, present: Object) -> Object:
    """The status of an object with a record's values."""
    values = _values(record)
    status = dict(present.get("status") or {})
    for item in resource.status:
        _set(status, resource.key(item), values.get(item))
    return status


def to_presence(record: Presence | None) -> Object | None:
    """The part of an exporter's status that is a presence."""
    if record is None:
        return None
    values = _values(record)
    return {_camel(item): values[item] for item in PRESENCE if item in values}


def _values(record: Any) -> Object:
    """A record's fields as plain values, without those that say nothing: Kubernetes keeps no nulls."""
    values = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if item.name in _TIMES and value is not None:
            value = _time(value)
        elif is_dataclass(value):
            value = _values(value)
        elif isinstance(value, tuple):
            value = [_values(one) if is_dataclass(one) else one for one in value]
        else:
            value = to_wire(value)
        if value is not None and value != "":
            values[item.name] = value
    return values


def _set(target: Object, key: str, value: Any) -> None:
    if value is None:
        target.pop(key, None)
    else:
        target[key] = value


def _time(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# ---- objects → records


def key_of(resource: Resource, item: Object) -> Key:
    """Kind and name of the record of an object."""
    metadata = item["metadata"]
    name = (metadata.get("annotations") or {}).get(NAME)
    return resource.kind, name if name is not None and object_name(name) == metadata["name"] else metadata["name"]


def version_of(item: Object) -> int:
    """The version of an object. Kubernetes promises that of two the larger one is the later one."""
    return int(item["metadata"]["resourceVersion"])


def read(resource: Resource, item: Object) -> Record:
    """The record of an object. Raises :class:`~jmp.errors.LabError` if it is none."""
    _, name = key_of(resource, item)
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    values: Object = {"id" if resource.kind in ("lease", "token") else "name": name, "version": version_of(item)}
    taken_over = resource.fixed and "wants" in status  # in whole, so what is missing there is nothing
    spec_keys, status_keys = resource.keys
    if not taken_over:
        values.update((name, spec[key]) for name, key in spec_keys if key in spec)
    values.update((name, status[key]) for name, key in status_keys if key in status)
    if resource.labels is not None:
        values[resource.labels] = metadata.get("labels") or {}
    if "created" not in values and resource.has_created:
        given = (metadata.get("annotations") or {}).get(CREATED)
        values["created"] = given or metadata.get("creationTimestamp")
    if resource.kind == "lease":
        # Until it has one, it is to be looked at first: by the controller that made it, if one has.
        values.setdefault("number", -1 if "created" in spec else 0)
    what = f"{resource.plural}/{metadata['name']}"
    record: Record = _record(resource.cls, values, what)
    if isinstance(record, Policy):
        try:
            policies.check(record)
        except JmpError as error:
            raise LabError(f"{what}.{GROUP} counts for nothing: {error}") from error
    return record


def read_presence(item: Object) -> Presence | None:
    """The presence that an exporter's object tells of."""
    status = (item.get("status") or {}).get("presence")
    if not status:
        return None
    _, name = key_of(RESOURCES["exporter"], item)
    values = {one: status[_camel(one)] for one in PRESENCE if _camel(one) in status}
    record: Presence = _record(Presence, {**values, "name": name, "version": version_of(item)}, f"exporters/{name}")
    return record


def _record(cls: type[Any], values: Object, what: str) -> Any:
    try:
        for item in _TIMES & values.keys():
            if values[item] is not None:
                values[item] = datetime.fromisoformat(values[item]).timestamp()
        return from_wire(cls, values)
    except (JmpError, ValueError, TypeError) as error:
        raise LabError(f"{what}.{GROUP} cannot be read: {error}") from error


# ---- definitions


def definitions() -> list[Object]:
    """The CustomResourceDefinitions of all kinds."""
    return [_definition(resource) for resource in RESOURCES.values()]


def _definition(resource: Resource) -> Object:
    hints = get_type_hints(resource.cls)
    required = [item.name for item in fields(resource.cls) if item.default is MISSING is item.default_factory]
    spec = _properties(resource, resource.spec, hints)
    schema: Object = {"type": "object", "properties": {"spec": spec}}
    needed = [resource.key(item) for item in resource.spec if item in required and item not in ("created", "number")]
    if needed:
        spec["required"] = needed
        schema["required"] = ["spec"]
    if resource.fixed:
        spec["x-kubernetes-validations"] = [{"rule": "self == oldSelf", "message": resource.fixed}]
    version: Object = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [
            *({"name": name, "type": type, "jsonPath": path} for name, type, path in resource.columns),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    if resource.status:
        status = _properties(resource, resource.status, hints)
        if resource.kind == "exporter":
            presence = get_type_hints(Presence)
            own = {_camel(item): _schema(item, presence[item]) for item in PRESENCE}
            status["properties"] |= {"attempt": {"type": "integer"}, "presence": {"type": "object", "properties": own}}
        elif resource.kind == "lease":
            status["properties"] |= {"attempt": {"type": "integer"}}
        schema["properties"]["status"] = status
        version["subresources"] = {"status": {}}
    names: Object = {"kind": resource.name, "plural": resource.plural, "singular": resource.name.lower()}
    if resource.short:
        names["shortNames"] = list(resource.short)
    if resource.category:
        names["categories"] = ["jmp"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _properties(resource: Resource, names: tuple[str, ...], hints: Mapping[str, Any]) -> Object:
    return {"type": "object", "properties": {resource.key(name): _schema(name, hints[name]) for name in names}}


_SCALARS: Final[Mapping[Any, Object]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
}


def _schema(name: str, hint: Any) -> Object:
    if name in _TIMES:
        return {"type": "string", "format": "date-time"}
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _schema(name, next(item for item in get_args(hint) if item is not NoneType))
    if name == "service_accounts":
        return {"type": "array", "items": {"type": "string", "pattern": f"^{SERVICE_ACCOUNT}$"}}
    if origin is tuple:
        return {"type": "array", "items": _schema("", get_args(hint)[0])}
    if origin is dict and get_args(hint)[1] is str:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if origin is dict:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return {"type": "object", "properties": {one.name: _schema(one.name, hints[one.name]) for one in fields(hint)}}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [str(item) for item in hint]}
    schema = dict(_SCALARS[hint])
    if name in _SECONDS:
        schema |= {"minimum": 0, "exclusiveMinimum": True}
    return schema


@cache
def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


if __name__ == "__main__":
    import sys

    import yaml

    sys.stdout.write("# Made by `python3 -m jmp.controller.kubernetes_objects`.\n")
    yaml.safe_dump_all(definitions(), sys.stdout, sort_keys=False)
