"""Two nodes that share nothing but a network between them and the run's storage."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from indextts_job.demo.world import World
from tests.distributed.ranks import KEYS, ended, same_samples, trained, weights
from tests.support.networks import ADDRESSES, CABLE, inside, two_networks
from tests.support.parts import demand_as_root
from tests.support.runs import config_for, newest, samples
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY

PORT = "29517"


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[str, str]]:
    demand_as_root(("ip",), "iproute2")
    with two_networks(f"job{os.getpid() % 10000}") as both:
        yield both


def on_each(networks: tuple[str, str], *commands: list[str], **environment: str) -> "list[subprocess.Popen[str]]":
    own = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE, **environment}
    return [
        subprocess.Popen(
            inside(network, *command),
            env={**own, "INDEXTTS_NODE_INDEX": str(index)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, (network, command) in enumerate(zip(networks, commands, strict=True))
    ]


def test_nodes_stop_together_and_torchrun_goes_on(
    networks: tuple[str, str], world: World, undisturbed: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tmp_path / "run.yaml"
    document = config_for(world, run, hardware__processes=1, **KEYS).to_json()
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    train = ["-m", "indextts_job", "train", str(config), "--grace-seconds", "60"]
    meeting = f"{ADDRESSES[0]}:{PORT}"
    ours = [sys.executable, *train]
    nodes = on_each(networks, ours, ours, INDEXTTS_NODES="2", INDEXTTS_MEETING=meeting)
    wait_until(lambda: trained(run, 1), "some steps")
    nodes[1].send_signal(signal.SIGTERM)
    for node in nodes:
        code, output = ended(node)
        assert code == 75, output
    assert newest(run).name.step == max(samples(run))

    def torchrun(rank: int) -> list[str]:
        where = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", ADDRESSES[0], "--master-port", PORT]
        return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", "1", *train]

    for node in on_each(networks, torchrun(0), torchrun(1)):
        code, output = ended(node)
        assert code == 0, output
    assert same_samples(run, undisturbed)
    assert torch.allclose(weights(run), weights(undisturbed), rtol=1e-4, atol=2e-5)
