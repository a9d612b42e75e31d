"""``jmp login`` of a pod: the token of its service account, made by a real API server, gets one of the lab's."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from jmp.client import lab as client_lab
from jmp.client.config import ClientConfig, clients, read
from jmp.client.lab import open_lab, up_to_date
from tests.controller.test_tokens import read as claims_of
from tests.fakes.kube import Cluster
from tests.fakes.lab import JMP, ServedLab, served_lab
from tests.fakes.replicas import Replica, replicas

pytestmark = pytest.mark.real


class Pods:
    """Those of a namespace, as their commands see it; and the lab's admin."""

    def __init__(self, cluster: Cluster, namespace: str, controller: Replica, directory: Path) -> None:
        self.cluster, self.namespace, self.controller, self.directory = cluster, namespace, controller, directory
        self.shown: list[str] = []
        """All tokens that were shown to the controller."""
        join = cluster.kubectl("-n", namespace, "get", "secret", "jmp-admin-join", "-o", "jsonpath={.data.join}")
        token, _, *words = base64.b64decode(join).decode().split()
        self.jmp("admin", *words, JMP_TOKEN=token.removeprefix("JMP_TOKEN="))

    def token(self, account: str, audience: str = "localhost") -> Path:
        """The file with the token of a pod's service account, as the kubelet would have it."""
        text = self.cluster.kubectl("-n", self.namespace, "create", "token", account, f"--audience={audience}")
        file = self.directory / f"{account}.token"
        file.write_text(text)
        self.shown.append(text.strip())
        return file

    def account(self, name: str) -> str:
        """A service account that is new."""
        self.cluster.kubectl("-n", self.namespace, "create", "serviceaccount", name)
        return f"{self.namespace}/{name}"

    def jmp(self, user: str, *arguments: str, **environment: str) -> str:
        """What a command says that succeeds."""
        done = self.run(user, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def run(self, user: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command, however it ends."""
        home = self.home(user)
        more = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.getcwd(), **environment}
        return subprocess.run(
            [*JMP, *arguments], env=more, cwd=home, capture_output=True, text=True, timeout=60, check=False
        )

    def login(self, user: str, token: Path) -> subprocess.CompletedProcess[str]:
        """The command of a pod."""
        where = ("--endpoint", self.controller.url, "--ca", str(self.ca))
        return self.run(user, "login", *where, "--token-file", str(token))

    @property
    def ca(self) -> Path:
        return self.controller.ca

    @property
    def audit(self) -> Path:
        return self.directory / self.controller.name / "audit.jsonl"

    def home(self, user: str) -> Path:
        home = self.directory / user
        home.mkdir(exist_ok=True)
        return home


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    directory = tmp_path_factory.mktemp("pods")
    access = cluster.namespace()
    with replicas(cluster, access, directory, "a", "--log-level", "debug") as [controller]:
        made = Pods(cluster, access.namespace, controller, directory)
        yield made
        out, said = controller.stop()
        audit = (
            made.audit.read_text() if made.audit.exists() else ""
        )  # other workers may have taken the tests that log in
        for token in made.shown:
            for part in (token, *token.split(".")):
                assert part not in said + out + audit, "a token is in a log"


def config_of(pods: Pods, user: str, name: str) -> ClientConfig:
    return read(Path(pods.home(user), f".config/jmp/clients/{name}.yaml"))


def test_a_pod_logs_in_as_the_client_that_its_account_may_be(pods: Pods) -> None:
    account = pods.account("builder")
    said = pods.jmp("admin", "admin", "create", "client", "ci", "--service-account", account)
    assert "client ci is created\n" in said
    command = said.splitlines()[0]
    assert re.fullmatch(
        r"jmp login --endpoint \S+ --ca-fingerprint [0-9a-f]{64} --token-file /var/run/secrets/jmp/token", command
    )
    token = pods.token("builder")
    words = command.replace("/var/run/secrets/jmp/token", str(token)).split()
    words[3] = pods.controller.url
    assert pods.jmp("builder", *words[1:]) == f"you are ci (client) at {pods.controller.url}, kept as ci\n"
    assert '"login"' in pods.audit.read_text()
    assert re.search(r"the token expires in (1h|5\dm \d+s)\n$", pods.jmp("builder", "whoami"))
    kept = config_of(pods, "builder", "ci")
    assert kept.account_token == token
    assert token.read_text().strip() not in kept.token
    assert pods.jmp("admin", "admin", "get", "clients", "-o", "wide").count(account) == 1
    [issued] = [one for one in json.loads(pods.jmp("admin", "get", "tokens", "-o", "json")) if one["subject"] == "ci"]
    assert (issued["service_account"], issued["role"]) == (account, "client")


def test_the_next_token_is_got_with_what_the_file_holds_then(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    account = pods.account("renewed")
    pods.jmp("admin", "admin", "create", "client", "renewed", "--service-account", account)
    assert pods.login("renewed", pods.token("renewed")).returncode == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(pods.home("renewed") / ".config"))
    config = clients().load("renewed")
    assert up_to_date(config) is config
    pods.token("renewed")
    with monkeypatch.context() as patch:
        patch.setattr(client_lab, "RENEW_SECONDS", 7200.0)
        later = up_to_date(config)
    assert later.token != config.token
    assert clients().load("renewed").token == later.token
    with open_lab(later) as lab:
        assert lab.call("whoami")["name"] == "renewed"
    # One that has been renewed by another command is taken as it is.
    monkeypatch.setattr(client_lab, "_is_good", lambda one: one.token == later.token)
    assert up_to_date(config).token == later.token
    pods.jmp("renewed", "login")
    assert clients().load("renewed").token != later.token
    pods.jmp("renewed", "config", "client", "renew")


def test_whoever_is_not_meant_is_told_why_in_one_line(pods: Pods, tmp_path: Path) -> None:
    account = pods.account("stranger")
    good = pods.token("stranger")
    forged = claims_of(good.read_text().strip())
    wrong = pods.directory / "wrong.token"

    def refused(token: Path, why: str, user: str = "stranger") -> None:
        done = pods.login(user, token)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77, "", 1), done.stderr
        assert why in done.stderr
        assert not any(part in done.stderr for part in token.read_text().strip().split("."))

    refused(good, f"service account {account} logs in as no client here; jmp admin update client NAME")
    refused(pods.token("stranger", "elsewhere"), "its audience has to be localhost")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    header = {"kid": jwt.get_unverified_header(good.read_text().strip())["kid"]}
    wrong.write_text(jwt.encode({**forged, "aud": ["localhost"]}, key, "RS256", header))
    refused(wrong, "the cluster does not know this token")
    wrong.write_text(jwt.encode({**forged, "aud": ["localhost"], "exp": forged["iat"] - 100}, key, "RS256", header))
    refused(wrong, "the service account's token has expired")
    pods.jmp("admin", "admin", "create", "client", "strange", "--service-account", account)
    good = pods.token("stranger")
    assert pods.login("stranger", good).returncode == 0
    pods.jmp("admin", "admin", "disable", "client", "strange", "--reason", "too many")
    refused(good, "client strange is disabled: too many")
    pods.jmp("admin", "admin", "enable", "client", "strange")
    good = pods.token("stranger")
    pods.cluster.kubectl("-n", pods.namespace, "delete", "serviceaccount", "stranger")
    while pods.login("stranger", good).returncode == 0:
        pass  # the server hears of it in a moment, and remembers for 10 s what it has said of a token
    refused(good, "the cluster does not know this token: its pod or account is gone")


def test_an_account_that_may_no_more_is_out_at_once(pods: Pods) -> None:
    account = pods.account("former")
    pods.jmp("admin", "admin", "create", "client", "former", "--service-account", account)
    assert pods.login("former", pods.token("former")).returncode == 0
    pods.jmp("former", "whoami")
    pods.jmp("admin", "admin", "update", "client", "former", "--service-account", "none")
    done = pods.run("former", "whoami")
    assert done.returncode == 77
    assert f"service account {account} does not log in as client former any more" in done.stderr


def test_its_token_is_for_that_alone(pods: Pods) -> None:
    account = pods.account("only")
    pods.jmp("admin", "admin", "create", "client", "only", "--service-account", account)
    token = pods.token("only").read_text().strip()
    assert pods.login("only", pods.directory / "only.token").returncode == 0
    kept = config_of(pods, "only", "only")
    with open_lab(kept) as lab, pytest.raises(Exception, match="jmp login"):
        lab.call("renew")
    own = ClientConfig(metadata=kept.metadata, endpoint=kept.endpoint, token=token, tls=kept.tls)
    with open_lab(own) as lab, pytest.raises(Exception, match="gets one of the lab, no more"):
        lab.call("whoami")


@pytest.mark.parametrize(
    ("given", "why"),
    [("builder", "'builder' is no service account: NAMESPACE/NAME"), ("x/y", "service account x/y logs in as client")],
)
def test_what_an_admin_may_not_say(pods: Pods, given: str, why: str) -> None:
    pods.run("admin", "admin", "create", "client", "has-it", "--service-account", "x/y")
    done = pods.run("admin", "admin", "create", "client", "odd", "--service-account", given)
    assert done.returncode == 64
    assert why in done.stderr
    made = {"apiVersion": "jmp.dev/v1alpha1", "kind": "Client", "metadata": {"name": "odd"}}
    said = pods.cluster.kubectl(
        *("-n", pods.namespace, "apply", "-f", "-"), input={**made, "spec": {"serviceAccounts": ["odd"]}}, check=False
    )
    assert "spec.serviceAccounts" in said


def test_two_clients_that_kubectl_gave_one_account(pods: Pods) -> None:
    account = pods.account("both")
    for name in ("both-1", "both-2"):
        made = {"apiVersion": "jmp.dev/v1alpha1", "kind": "Client", "metadata": {"name": name}}
        pods.cluster.kubectl(
            *("-n", pods.namespace, "apply", "-f", "-"), input={**made, "spec": {"serviceAccounts": [account]}}
        )
    while "both-2" not in pods.jmp("admin", "admin", "get", "clients", "-o", "name"):
        pass
    done = pods.login("both", pods.token("both"))
    assert done.returncode == 77
    assert f"service account {account} is to log in as one client, and here that is both-1, both-2" in done.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLab]:
    with served_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def test_a_controller_outside_of_a_cluster_says_so(pods: Pods, elsewhere: ServedLab) -> None:
    pods.account("lost")
    where = ("--endpoint", elsewhere.url, "--ca-fingerprint", elsewhere.fingerprint)
    done = elsewhere.run("lost", "login", *where, "--token-file", str(pods.token("lost")))
    assert done.returncode == 77
    assert "this controller has no cluster to ask about it: one with --store kubernetes does" in done.stderr
