"""The health check as nodes run it: two processes that take themselves for two nodes."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest

from distllm.cluster.health_report import bad_nodes, read_reports
from distllm.cluster.pairs import rounds
from distllm.config.compose import compose
from distllm.config.yaml import to_yaml

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def free_ports():
    """A port whose successor is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def check(tmp_path, nodes, *overrides, port=None, of=2):
    """Start the check on the nodes given; return the reports of all."""
    words = [f"cluster.nodes={of}", "cluster.health.min_free_bytes=1", "cluster.health.min_memory_bandwidth=1"]
    (tmp_path / "config.yaml").write_text(to_yaml(asdict(compose([*words, *overrides]))))
    port = str(port or free_ports())
    line = [sys.executable, "-m", "distllm.cluster.health", str(tmp_path / "config.yaml")]
    processes = [
        subprocess.Popen(
            [*line, str(tmp_path / "run"), "127.0.0.1", port],
            env={
                **os.environ,
                "SLURM_NODEID": str(node),
                "SLURM_STEP_NUM_NODES": str(of),
                "SLURMD_NODENAME": f"n{node}",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in nodes
    ]
    output = "".join(process.communicate(timeout=200)[0] for process in processes)
    return read_reports(output, [f"n{node}" for node in range(of)])


def test_two_good_nodes(tmp_path):
    reports = check(tmp_path, (0, 1))
    assert bad_nodes(reports) == {}
    assert all(report.figures["collective_bytes_per_second"] > 0 for report in reports)
    assert abs(reports[1].figures["clock_skew_seconds"]) < 5
    assert "good" in str(reports[0])


def test_a_node_without_a_partner_says_what_it_misses(tmp_path):
    first, second = check(tmp_path, (1,), "cluster.health.timeout_seconds=6")
    assert first.problems == ("did not finish the health check",)
    assert "cannot reach the first node" in second.together[0]
    assert any("a sum over all nodes fails" in sentence for sentence in second.together)
    assert set(bad_nodes([first, second])) == {"n0"}, "the silent one is to blame, not the one that waits"


def test_a_slow_network_is_told(tmp_path):
    more = ("cluster.health.collective=false", "cluster.health.min_network_bandwidth=900TiB")
    _, second = check(tmp_path, (0, 1), *more)
    assert "to the first node" in second.together[0]


@pytest.mark.parametrize("nodes", [3, 4, 5])
def test_in_a_round_no_node_waits_for_two_and_each_has_both_neighbours(nodes):
    for pairs in rounds(nodes):
        taken = [node for pair in pairs for node in pair]
        assert len(taken) == len(set(taken))
    found = {frozenset(pair) for pairs in rounds(nodes) for pair in pairs}
    assert found == {frozenset((node, (node + 1) % nodes)) for node in range(nodes)}


def test_a_slow_sum_is_looked_into_pair_by_pair(tmp_path):
    more = ("cluster.health.min_collective_bandwidth=900TiB", "cluster.health.min_network_bandwidth=0")
    for report in check(tmp_path, (0, 1, 2), *more, of=3):
        assert report.figures["pair_bytes_per_second"] > 0
        assert "with its better neighbour" in report.problems[0]
