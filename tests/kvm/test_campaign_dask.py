# SPDX-License-Identifier: Apache-2.0
"""A campaign on a Dask cluster, whose workers are killed on the way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import campaign_guest
import dask
import distributed
import pytest
from campaign_guest import OPTIONS, setup

import pyvmm

pytestmark = [
    pytest.mark.usefixtures("kvm"),
    # Theirs: of sockets, of the loop, of what is old.
    pytest.mark.filterwarnings("default"),
]

WORKERS = 3


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    """A scheduler and three worker processes, each with a nanny."""
    with (
        # How often a task is tried elsewhere before it is blamed: each time
        # costs a worker, and making one takes seconds.
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS, timeout=60)
        yield client


def test_a_worker_is_killed(client: distributed.Client, tmp_path: Path) -> None:
    """Nothing is lost, and nothing there twice."""
    path, log = tmp_path / "guest.snap", tmp_path / "log"
    campaign_guest.save(path)
    inputs = [bytes([ord("A") + i % 20]) for i in range(6000)]
    inputs[3000] = b"!"
    pids = client.run(os.getpid)
    assert len(set(pids.values())) == WORKERS
    victims = list(pids.values())
    seen = []
    c = pyvmm.campaign(
        path, inputs, setup=setup, timeout=20, batch=50, workers=WORKERS,
        executor=client.get_executor(), log=log, **OPTIONS,
    )  # fmt: skip
    for result in c:
        seen.append(result.index)
        assert result.index == 3000 or result.status == inputs[result.index][0]
        if len(seen) in (500, 2500):
            os.kill(victims.pop(), signal.SIGKILL)
    assert sorted(seen) == list(range(6000))
    assert c.counts == {"exit": 5999, "unclaimed access": 1} and not c.aside
    assert [r.index for r in pyvmm.campaigns.read_log(log)] == list(range(6000))
    client.wait_for_workers(WORKERS, timeout=60)
    assert not set(client.run(os.getpid).values()) & {
        pid for pid in pids.values() if pid not in victims
    }


def test_an_input_that_kills_workers(
    client: distributed.Client, tmp_path: Path
) -> None:
    path = tmp_path / "guest.snap"
    campaign_guest.save(path)
    inputs = [b"A", b"B", b"k", b"C", b"D"]
    c = pyvmm.campaign(
        path, inputs, setup=setup, timeout=20, workers=WORKERS, ordered=True,
        executor=client.get_executor(), tries=1, **OPTIONS,
    )  # fmt: skip
    results = list(c)
    assert [r.index for r in results] == [0, 1, 2, 3, 4]
    assert [r.reason for r in results] == ["exit"] * 2 + ["lost"] + ["exit"] * 2
    assert c.aside == [2]
