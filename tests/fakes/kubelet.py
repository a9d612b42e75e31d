"""What runs the pods of a lab's namespace, where no node is: each container is a process of this machine."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakes.kube import Cluster, select_nothing
from tests.fakes.lab import Program
from tests.fakes.ports import free_port


class Kubelet:
    """Made by :func:`kubelet`. The lab is at ``port`` of localhost, where the first controller is."""

    def __init__(self, cluster: Cluster, namespace: str, port: int, directory: Path) -> None:
        self.namespace, self.port = namespace, port
        self._cluster, self._directory = cluster, directory
        self._controllers: list[Program] = []
        self._routers: list[Program] = []

    def sync(self) -> None:
        """Run what the namespace has, and say that it is available."""
        found = self._get("deployment", "jmp-controller")
        wanted = found["spec"]["replicas"]
        for program in self._controllers[wanted:]:
            _end(program)
        del self._controllers[wanted:]
        while len(self._controllers) < wanted:
            self._controllers.append(self._controller(found, len(self._controllers)))
        if wanted and not self._routers:
            self._routers.append(self._router(self._get("statefulset", "jmp-router")))
        condition = {"type": "Available", "status": "True" if wanted else "False", "reason": "Test", "message": ""}
        figures = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), wanted)
        found = self._get("deployment", "jmp-controller")
        generation = found["metadata"]["generation"]
        found["status"] = {**figures, "observedGeneration": generation, "conditions": [condition]}
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/jmp-controller/status"
        self._cluster.kubectl("replace", "--raw", path, "-f", "-", input=found)

    def end(self) -> None:
        """End all of it."""
        for program in (*self._routers, *self._controllers):
            _end(program)

    def _get(self, kind: str, name: str) -> Any:
        return json.loads(self._cluster.kubectl("-n", self.namespace, "get", kind, name, "-o", "json"))

    def _controller(self, found: Any, number: int) -> Program:
        name = f"jmp-controller-{number}"
        port, http = self.port if number == 0 else free_port(), free_port()
        kubeconfig = self._cluster.kubeconfig_of(
            self.namespace, found["spec"]["template"]["spec"]["serviceAccountName"]
        )
        data = self._directory / name
        data.mkdir()
        arguments = self._arguments(found, name, port, http, {"/data": str(data)})
        program = self._start([*arguments, f"--replica={name}"], KUBECONFIG=str(kubeconfig))
        program.until("controller is ready")
        probe(found, http)
        return program

    def _router(self, found: Any) -> Program:
        lab, http = self._directory / "lab", free_port()
        lab.mkdir()
        [name] = [volume["secret"]["secretName"] for volume in found["spec"]["template"]["spec"]["volumes"][:1]]
        while not (data := self._secret(name)):
            select_nothing(0.1)
        for item, content in data.items():
            (lab / item).write_bytes(base64.b64decode(content))
        port = free_port()
        places = {"wss://jmp-controller:443": f"wss://localhost:{self.port}", "/lab": str(lab)}
        program = self._start(self._arguments(found, f"{found['metadata']['name']}-0", port, http, places))
        program.until("router is ready")
        probe(found, http)
        return program

    def _secret(self, name: str) -> dict[str, str]:
        got = self._cluster.kubectl("-n", self.namespace, "get", "secrets", "-o", "json")
        return next((one["data"] for one in json.loads(got)["items"] if one["metadata"]["name"] == name), {})

    def _arguments(self, found: Any, pod: str, port: int, http: int, places: dict[str, str]) -> list[str]:
        """A container's arguments, with the names, ports and folders that it has here."""
        [container] = found["spec"]["template"]["spec"]["containers"]
        values = {"NAMESPACE": self.namespace, "POD_NAME": pod}
        arguments = []
        for argument in container["args"]:
            text = re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], "localhost"), argument)
            text = text.replace("0.0.0.0:8443", f"127.0.0.1:{port}").replace("0.0.0.0:8080", f"127.0.0.1:{http}")
            if text.startswith("--url="):
                text = f"--url=wss://localhost:{port}"
            for there, here in places.items():
                text = text.replace(there, here)
            arguments.append(text)
        return arguments

    def _start(self, arguments: list[str], **more: str) -> Program:
        home = self._directory / "tmp"
        home.mkdir(exist_ok=True)
        return Program(arguments, {"PATH": os.environ["PATH"], "HOME": str(home), **more}, self._directory)


def probe(found: Any, port: int) -> None:
    """Wait until a container is ready, as its probe says."""
    [container] = found["spec"]["template"]["spec"]["containers"]
    url = f"http://127.0.0.1:{port}{container['readinessProbe']['httpGet']['path']}"
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
            return
        select_nothing(0.1)


def _end(program: Program) -> None:
    code, _, said = program.interrupt(signal.SIGTERM)
    assert code == 0, said


@contextmanager
def kubelet(cluster: Cluster, namespace: str, port: int, directory: Path) -> Iterator[Kubelet]:
    """Runs pods for the length of a block."""
    directory.mkdir()
    made = Kubelet(cluster, namespace, port, directory)
    try:
        yield made
        made.end()
    finally:
        for program in (*made._routers, *made._controllers):
            program.process.kill()
            program.finish()
