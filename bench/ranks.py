"""Exchanges of gradients compared: bytes on the wire and time of a step, taking turns in one run.

Ranks share a namespace of their own, so that its interface counts their traffic only; or, with `--rate`, each of two
ranks has one, and the cable between them has that rate and delay. As root, because of the namespaces.

    python -m bench.ranks [--ranks 3] [--rounds 9] [--rate 1gbit] [--delay-ms 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.network import limited_networks
from tests.support.networks import ADDRESSES, inside, two_networks
from tests.support.servers import free_ports
from tests.support.warm_parent import REPOSITORY

EXCHANGES = ("each parameter", "DDP", "DDP, unused", "buckets", "each parameter, sharded", "buckets, sharded", "FSDP2")
INTERFACE_VARIABLE = "BENCH_INTERFACE"
Found = dict[str, dict[str, list[float]]]
"""Seconds and bytes of every exchange on one rank."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rate", default="")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(EXCHANGES), choices=EXCHANGES)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        _worker(given)
        return
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _places(given) as (namespaces, interface, meeting):
        given.worker = f"{folder}/found"
        flags = [text for name, value in vars(given).items() if name != "only" for text in (_flag(name), str(value))]
        command = [sys.executable, "-m", "bench.ranks", *flags, "--only", *given.only]
        ranks = [
            subprocess.Popen(
                inside(namespace, *command),
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(given.ranks),
                    "INDEXTTS_RENDEZVOUS": meeting,
                    "GLOO_SOCKET_IFNAME": interface,
                    INTERFACE_VARIABLE: interface,
                    "OMP_NUM_THREADS": "1",
                },
            )
            for rank, namespace in enumerate(namespaces)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            sys.exit("a rank has failed")
        found = [json.loads(Path(f"{given.worker}-{rank}").read_text("utf-8")) for rank in range(given.ranks)]
    _print(given, found)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def _places(given: argparse.Namespace) -> Iterator[tuple[list[str], str, str]]:
    """The namespace of each rank, the interface between them, and where they meet."""
    name = f"rk{os.getpid() % 100000}"
    (port,) = free_ports(1)
    if given.rate:
        if given.ranks != 2:
            sys.exit("--rate is for two ranks")
        with limited_networks(name, given.rate, given.delay_ms) as (both, interface):
            yield list(both), interface, f"tcp://{ADDRESSES[0]}:{port}"
        return
    # Also without a cable a namespace of their own, whose loopback nobody else uses.
    with two_networks(name) as (namespace, _):
        yield [namespace] * given.ranks, "lo", f"tcp://127.0.0.1:{port}"


def _worker(given: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415  # the parent only starts processes

    from bench.exchanges import exchange, micro_batches  # noqa: PLC0415
    from bench.workload import model_config  # noqa: PLC0415
    from indextts_job.model.unified_voice import UnifiedVoice  # noqa: PLC0415
    from indextts_job.model.vocabulary import Vocabulary  # noqa: PLC0415
    from indextts_job.training.distributed import joined, read_world  # noqa: PLC0415

    torch.set_num_threads(1)
    world = read_world(os.environ)
    model = UnifiedVoice(model_config(given.width, given.layers), Vocabulary(2400, 2400), 0.0)
    found: Found = {"gradient": {"bytes": [sum(parameter.nbytes for parameter in model.parameters())]}}
    batches = micro_batches(world.rank, given.width, given.layers, given.micro_batches)
    with joined(world, "cpu") as group:

        def timed(work: Callable[[], None]) -> tuple[float, int]:
            group.any_rank(False)  # noqa: FBT003  # all begin together
            began_s, began_bytes = time.perf_counter(), _sent_bytes()
            work()
            seconds = time.perf_counter() - began_s
            group.any_rank(False)  # noqa: FBT003  # nothing is on its way any more
            return seconds, _sent_bytes() - began_bytes

        steps = {name: exchange(name, group, given.width, given.layers) for name in given.only}
        for name in given.only:
            found[name] = {"start_bytes": [], "seconds": [], "bytes": []}
        for turn in range(given.rounds + 2):
            for name, step in steps.items():
                seconds, sent = timed(partial(step, batches))
                row = found[name]
                # The first two are not those of a long run: buckets are laid out, memory is touched.
                if turn < 2:
                    row["start_bytes"].append(sent)
                else:
                    row["seconds"].append(seconds)
                    row["bytes"].append(sent)
    Path(f"{given.worker}-{world.rank}").write_text(json.dumps(found), "utf-8")


def _sent_bytes() -> int:
    return int(Path(f"/sys/class/net/{os.environ[INTERFACE_VARIABLE]}/statistics/tx_bytes").read_text("utf-8"))


def _print(given: argparse.Namespace, found: Sequence[Found]) -> None:
    (gradient_bytes,) = found[0]["gradient"]["bytes"]
    # One namespace counts for all ranks in it; otherwise each has its own.
    counters = found if given.rate else found[:1]
    unit = gradient_bytes * (given.ranks - 1)
    where = f"{given.rate}, {given.delay_ms:g} ms" if given.rate else "loopback"
    print(f"{given.ranks} ranks, {where}, gradients of {gradient_bytes / 2**20:.0f} MiB, {given.rounds} rounds")
    print("bytes sent by all ranks, in (ranks - 1) x gradients: one all-reduce is 2")
    print("ratio: to the first exchange in the same round, median and quartiles")
    print(f"{'exchange':<26}{'step, s':>8}{'from':>7}{'to':>7}{'ratio':>8}{'':>14}{'bytes':>7}{'first two':>11}")
    for name in given.only:
        seconds = found[0][name]["seconds"]
        ratios = [own / first for own, first in zip(seconds, found[0][given.only[0]]["seconds"], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        sent = sum(statistics.median(rank[name]["bytes"]) for rank in counters) / unit
        start = sum(sum(rank[name]["start_bytes"]) for rank in counters) / unit
        print(
            f"{name:<26}{statistics.median(seconds):>8.2f}{min(seconds):>7.2f}{max(seconds):>7.2f}{ratio:>8.2f}"
            f" ({low:.2f} … {high:.2f}){sent:>7.2f}{start:>11.2f}"
        )


if __name__ == "__main__":
    main()
