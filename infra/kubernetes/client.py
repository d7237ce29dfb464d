"""Requests to a Kubernetes cluster, by the user's kubectl."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from scorers.errors import UserError
from scorers.printing import printable, without_secrets

_TIMEOUT_S = 60
_NO_ANSWER = re.compile(
    "was refused|Unable to connect|no such host|i/o timeout|TLS handshake|Client.Timeout|deadline exceeded"
)


@dataclass(frozen=True)
class Cluster:
    """A namespace of the cluster that a context of the user's kubeconfig names; without a context, of kubectl's own."""

    context: str
    namespace: str

    def run(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl, and return what it prints.

        Raises:
            UserError: there is no kubectl, the cluster does not answer, or it refuses; in one sentence.
        """
        # No folder of the working directory may stand in for it.
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise UserError("kubectl is not installed, or not on PATH: https://kubernetes.io/docs/tasks/tools")
        where = [f"--context={self.context}"] if self.context else []
        try:
            done = subprocess.run(  # noqa: S603 - the user's own kubectl, and words without a shell
                [kubectl, *where, f"--namespace={self.namespace}", "--request-timeout=30s", *words],
                input=stdin or "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"kubectl has not answered for {_TIMEOUT_S} s. Does `kubectl get pods` answer?") from None
        if done.returncode == 0:
            return done.stdout
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        problem = printable(without_secrets(lines[-1] if lines else "it gives no reason"))[:500]
        if _NO_ANSWER.search(done.stderr):
            raise UserError(f"No Kubernetes cluster answers. kubectl says: {problem}")
        raise Refused(f"kubectl refuses: {problem}")

    def read(self, *words: str) -> Any:
        """Return what kubectl prints as JSON; None if it prints nothing."""
        text = self.run(*words, "--output=json")
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            raise UserError("kubectl prints no JSON. Is another program named kubectl on PATH?") from None

    def has(self, kind: str, name: str) -> bool | None:
        """Whether an object is there; None if this user may not know."""
        try:
            return bool(self.run("get", kind, name, "--ignore-not-found", "--output=name").strip())
        except Refused as error:
            if "forbidden" in str(error).lower():
                return None
            raise


class Refused(UserError):  # noqa: N818 - named for what happened
    """The cluster, or kubectl, refused a request."""


def current(namespace: str) -> Cluster:
    """Return the cluster of the user's current context."""
    try:
        context = Cluster("", namespace).run("config", "current-context").strip()
    except Refused:
        # In a pod, kubectl finds the cluster without a kubeconfig.
        context = ""
    return Cluster(context, namespace)
