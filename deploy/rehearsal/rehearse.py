# SPDX-License-Identifier: Apache-2.0
"""An upgrade and a crash of two servers behind the proxy, under load, on this machine.

python -m deploy.rehearsal.rehearse REPOSITORY --nginx NGINX [--quicker 10] [--record]
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import record
from predict2_client import Client

from .load import MOST_STEPS, Asked, Callers, steps_that_take, wait_for
from .proxy import Proxy
from .replica import START_S, Replica
from .rules import Rules, read_rules

QUICK_STEPS = 10
LONG_S = 6.0  # of a request by itself, at least: it runs through a drain
# Shorter than the long request: a server that is added takes over a share of all ids, and renewals with them, but a
# lease begins only when the call itself is lost.
LEASE_S = 4
# An instance a caller, as two servers are meant to have: what waits for one when a server stops is refused.
OPTIONS = (
    f"--limit=num_steps={MOST_STEPS}",
    "--instances=text2image=3",
    "--instances=generate=3",
)
NOBODY = "server 127.0.0.1:9 down;\n"


@dataclass(frozen=True)
class Phase:
    """What happened, from when to when, and the requests that ended meanwhile."""

    name: str
    seconds: float
    asked: tuple[Asked, ...]
    killed_at: float = 0.0  # of time.monotonic(); 0: nothing was killed

    @property
    def failed(self) -> list[Asked]:
        """Requests whose caller got an error."""
        return [a for a in self.asked if a.error]

    @property
    def retried(self) -> list[Asked]:
        """Requests that the client sent more than once."""
        return [a for a in self.asked if a.retries]

    def row(self) -> str:
        """Of the table."""
        slowest = max((a.ended - a.began for a in self.asked), default=0.0)
        cells = (self.name, f"{self.seconds:.1f}", len(self.asked), len(self.retried), len(self.failed), f"{slowest:.1f}")  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def table(phases: Sequence[Phase]) -> str:
    """All phases as Markdown."""
    head = "| phase | seconds | requests | sent again | failed | slowest, s |"
    return "\n".join([head, "|---" * 6 + "|", *(phase.row() for phase in phases)])


class Service:
    """Keeps the proxy's list of servers to those that are ready, as Kubernetes keeps a service's endpoints."""

    def __init__(self, proxy: Proxy, rules: Rules) -> None:
        self.replicas: list[Replica] = []
        self._proxy, self._every_s = proxy, rules.ready_every_s
        self._routed: list[str] = []
        self._over, self._lock = threading.Event(), threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Probe all replicas beside the block."""

        def probe() -> None:
            while not self._over.wait(self._every_s):
                self.update()

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def update(self) -> None:
        """Look who is ready, and tell the proxy if that changed."""
        with self._lock:
            ready = [replica.url for replica in self.replicas if replica.is_ready()]
            if ready != self._routed:
                lines = "".join(f"server {url};\n" for url in ready)
                self._proxy.route(lines or NOBODY)
                self._routed = ready

    def has(self, replica: Replica) -> bool:
        """Whether calls are sent to it."""
        return replica.url in self._routed

    def remove(self, replica: Replica) -> int:
        """Delete a pod: it leaves the service at once, and ends in its own time; its exit code."""
        replica.terminating = True
        self.update()
        code = replica.stop()
        self.replicas.remove(replica)
        return code


class Rehearsal:
    """Two replicas, the proxy and the steps.

    Args:
        nginx: the program, and what goes before its own arguments.
        repository: what is served; an upgrade serves a copy of it.
        folder: an empty one.
        rules: of the manifests, maybe quicker.
    """

    def __init__(self, nginx: Sequence[str], repository: Path, folder: Path, rules: Rules) -> None:
        (folder / "proxy").mkdir()
        self._folder, self._rules, self._repository = folder, rules, repository
        self._proxy = Proxy(nginx, folder / "proxy", NOBODY)
        self._open = {
            "url": self._proxy.url, "ca_file": self._proxy.ca_file, "token": self._proxy.token, "lease_s": LEASE_S,
        }  # fmt: skip
        self._steps = {"quick 1": QUICK_STEPS, "quick 2": QUICK_STEPS}
        self.service = Service(self._proxy, rules)

    def run(self) -> list[Phase]:
        """Upgrade one after the other under callers who never try again; then kill one under callers who do."""
        new = self._folder / "new"
        shutil.copytree(self._repository, new)
        with ExitStack() as stack:
            stack.enter_context(self._proxy)
            stack.callback(self._end_all)
            stack.enter_context(self.service.watched())
            for replica in [self._begin("old-1", self._repository), self._begin("old-2", self._repository)]:  # fmt: skip
                self._wait_for(replica)
            with Client(**self._open) as client:
                self._steps["long"] = steps_that_take(
                    max(LONG_S, 2 * self._rules.wait_before_stop_s), client
                )
            phases = [
                self._phase(f"upgrade {k + 1} of 2", 0.0, lambda: self._upgrade(new))
                for k in range(2)
            ]
            return [*phases, self._kill()]

    def _begin(self, name: str, repository: Path) -> Replica:
        replica = Replica(name, repository, self._folder, self._rules, *OPTIONS)
        self.service.replicas.append(replica)
        return replica

    def _wait_for(self, replica: Replica) -> None:
        replica.wait_until_started()
        wait_for(lambda: self.service.has(replica), START_S, f"calls reach {replica.name}")

    def _upgrade(self, repository: Path) -> None:
        """Take the oldest away, then start a new one: as where no GPU is spare."""
        oldest = self.service.replicas[0]
        code = self.service.remove(oldest)
        if code:
            raise RuntimeError(f"{oldest.name} ended with {code}:\n{oldest.text()}")
        self._wait_for(self._begin(f"new-{oldest.name[-1]}", repository))

    def _phase(self, name: str, retry_for_s: float, do: Callable[[], object]) -> Phase:
        began = time.monotonic()
        with Callers(self._open, retry_for_s, self._steps) as callers:
            time.sleep(self._rules.ready_every_s)
            do()
        return Phase(name, time.monotonic() - began, tuple(callers.asked))

    def _kill(self) -> Phase:
        victim, killed = self.service.replicas[0], [0.0]

        def do() -> None:
            victim.kill()  # one process after the other; in between, it may still take a request
            killed[0] = time.monotonic()
            time.sleep(2 * self._rules.ready_every_s + 2)

        phase = self._phase("one is killed", 120.0, do)
        return Phase(phase.name, phase.seconds, phase.asked, killed[0])

    def _end_all(self) -> None:
        for replica in self.service.replicas:
            if replica.is_running():
                replica.kill()


def _record(phase: Phase, quicker: float) -> None:
    values: dict[str, object] = {
        "seconds": round(phase.seconds, 1), "requests": len(phase.asked), "sent_again": len(phase.retried),
        "failed": len(phase.failed), "pauses_shorter_by": quicker,
    }  # fmt: skip
    record(f"rehearsal: {phase.name}", "python -m deploy.rehearsal.rehearse", values)


def main() -> None:
    """Rehearse and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("repository", type=Path, help="of a preset that this machine serves quickly, such as the toy")  # fmt: skip
    parser.add_argument("--nginx", default="nginx", help="the program (%(default)s)")
    parser.add_argument("--quicker", type=float, default=1.0, help="shorten the manifests' pauses so many times")  # fmt: skip
    parser.add_argument("--record", action="store_true", help="append the result to benchmarks/results")  # fmt: skip
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        rules = read_rules().quicker(args.quicker)
        phases = Rehearsal([args.nginx], args.repository.resolve(), Path(folder), rules).run()
    print(table(phases))
    if args.record:
        for phase in phases:
            _record(phase, args.quicker)
    for phase in phases:
        for asked in phase.failed:
            print(f"{phase.name}: {asked.caller}: {asked.error}")


if __name__ == "__main__":
    main()
