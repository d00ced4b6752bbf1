# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from benchmarks.engines import bench_batching
from benchmarks.engines.random_networks import random_network
from benchmarks.headline import Workload
from predict2_export.networks.dit import Dit
from predict2_runtime.torch_networks.dit import dit_weights

torch.set_num_threads(1)


@pytest.mark.parametrize("task", ["text2image", "video2world"])
def test_both_ways_are_timed_and_compute_the_same(task, monkeypatch):
    of, lines = Workload("toy", task, 0), {}
    monkeypatch.setattr(
        bench_batching, "record", lambda name, _, values: lines.update({name: values})
    )
    bench_batching.main([of], torch.empty(()), runs=2)
    assert [name.rpartition("rows ")[2] for name in lines] == list(bench_batching.WAYS)
    assert all(values["n"] == 2 and values["median_s"] > 0 for values in lines.values())
    dit = random_network(lambda: Dit(of.preset.dit(task)), torch.empty(()))
    weights = dit_weights(dit.spec, dit.state_dict().__getitem__)
    together, apart = (
        bench_batching.step_of(of, weights, savings)() for savings in bench_batching.WAYS.values()
    )
    # sums in another order, of values of about 10
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
