"""The admission policy for leases: its expressions, evaluated as CEL, for who may make or delete whose lease by kubectl.

The API server of these tests is too old to know such policies; the library is that of CEL's own authors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

POLICY = next(
    yaml.safe_load_all((Path(__file__).parents[2] / "deploy/kubernetes/components/own-leases/policy.yaml").read_text())
)["spec"]
DYN, STRING, BOOL = cel.Type.DYN, cel.Type.STRING, cel.Type.BOOL
NAMES = ("object", "oldObject", "request", "params", "variables", "authorizer")
ASKED: list[str] = []


def step(authorizer: str, word: str) -> str:
    """A method of the authorizer, which notes what it is asked; here that is a text: its user may do all, or nothing."""
    ASKED.append(word)
    return authorizer


def method(name: str, impl: Callable[..., Any], *parameters: Any, result: Any = STRING) -> cel.FunctionDecl:
    overload = cel.Overload(f"authorizer_{name}", result, [STRING, *parameters], is_member=True, impl=impl)
    return cel.FunctionDecl(name, [overload])


ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys(NAMES, DYN),
    extensions=[ext_strings.ExtStrings()],
    functions=[
        *(method(name, step, STRING) for name in ("group", "resource", "namespace", "check")),
        method("allowed", lambda authorizer: authorizer == "admin", result=BOOL),
    ],
)


def value(expression: str, **data: Any) -> Any:
    found = ENVIRONMENT.compile(expression).eval(data=data)
    assert found.type() not in (cel.Type.ERROR, cel.Type.UNKNOWN), found.plain_value()
    return found.plain_value()


def refusal(user: str, operation: str, lease: dict[str, Any], clients: list[dict[str, Any]], admin: bool) -> str | None:
    """What the API server says to that, which goes through the parts of a policy in this order."""
    there = {"spec": lease}
    data: dict[str, Any] = {
        "request": {"userInfo": {"username": user}, "namespace": "jmp", "operation": operation},
        "object": None if operation == "DELETE" else there,
        "oldObject": None if operation == "CREATE" else there,
        "authorizer": "admin" if admin else "nobody",
    }
    if not all(value(condition["expression"], **data) for condition in POLICY["matchConditions"]):
        return None
    if not clients:
        return "no clients"
    for client in clients:
        found = {**data, "params": client, "variables": dict[str, Any]()}
        for variable in POLICY["variables"]:
            found["variables"][variable["name"]] = value(variable["expression"], **found)
        for validation in POLICY["validations"]:
            if not value(validation["expression"], **found):
                return str(value(validation["messageExpression"], **found))
    return None


CLIENTS: list[dict[str, Any]] = [
    {"metadata": {"name": "alice"}},
    {"metadata": {"name": "bob", "annotations": {"other": "x"}}, "spec": {"disabled": "ill"}},
    {"metadata": {"name": "ci"}, "spec": {"serviceAccounts": ["ci/deployer", "ci/builder"]}},
    {
        "metadata": {"name": "ci-x-0123456789", "annotations": {"jmp.dev/name": "CI_x"}},
        "spec": {"serviceAccounts": ["x/y"]},
    },
]
POD = "system:serviceaccount:ci:builder"


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE", "DELETE"])
@pytest.mark.parametrize(
    ("user", "client", "may"),
    [
        (POD, "ci", True),
        ("system:serviceaccount:x:y", "CI_x", True),
        (POD, "alice", False),
        (POD, "bob", False),
        (POD, "CI_x", False),
        ("system:serviceaccount:ci:other", "ci", False),
        ("system:serviceaccount:other:jmp-controller", "alice", False),
        ("mallory", "alice", False),
        ("ci/builder", "ci", False),
        ("system:serviceaccount:jmp:jmp-controller", "alice", True),
        ("system:serviceaccount:kube-system:namespace-controller", "alice", True),
        ("system:kube-controller-manager", "alice", True),
        (POD, "nobody", True),  # the lab says that there is none
    ],
)
def test_who_may_whose(user: str, client: str, may: bool, operation: str) -> None:
    said = refusal(user, operation, {"client": client}, CLIENTS, admin=False)
    assert said == (None if may else f"{user} does not log in as client {client}, whose lease this is")


def test_who_may_write_clients_may_everything() -> None:
    ASKED.clear()
    assert refusal("olga", "CREATE", {"client": "alice"}, CLIENTS, admin=True) is None
    assert ASKED == ["jmp.dev", "clients", "jmp", "update"]
