"""The benchmark programs on tiny models: the arithmetic of what they report, and that every path runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import train_step, weight_average
from benchmarks.products import ProductReplay, count_flops, record_products
from benchmarks.synthetic import synthetic_batch
from git_scale.recipes import load_run

TINY = (
    "model.encoder.name=convnext_atto",
    "model.encoder.options={patch_size: 4, depths: [1, 1, 1, 1], dims: [8, 16, 24, 32]}",
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_products_of_a_linear_layer_are_found_forward_and_backward() -> None:
    layer = torch.nn.Linear(7, 5)
    rows = torch.rand(3, 7, requires_grad=True)
    found = record_products(lambda: layer(rows).sum().backward())
    assert found == {(1, 3, 7, 5): 1, (1, 3, 5, 7): 1, (1, 5, 3, 7): 1}
    assert count_flops(found) == 3 * 2 * 3 * 7 * 5


def test_the_products_of_attention_are_batched() -> None:
    q = torch.rand(2, 3, 4, 8)  # 2 x 3 heads
    found = record_products(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert found == {(6, 4, 8, 4): 1, (6, 4, 4, 8): 1}


def test_a_replay_runs_each_product_as_often_as_it_was_recorded() -> None:
    products = Counter({(1, 3, 7, 5): 2, (6, 4, 8, 4): 3})
    assert record_products(ProductReplay(products).run) == products


def test_the_step_of_git_base_is_its_products() -> None:
    """All but the image's patches (a convolution), and the gradient of the pixels that nobody asks for."""
    config = load_run("git_base")
    batch = synthetic_batch(config.model, 4, 1, 20, torch.Generator())
    flops = train_step.ModelFlops(config.model).of_step([batch])
    share = count_flops(train_step.step_products(config, batch)) / flops
    assert 0.98 < share <= 1


def test_synthetic_batches_repeat_and_have_every_token_but_the_first_as_target() -> None:
    model = load_run("demo").model
    first, second = (synthetic_batch(model, 2, 3, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.tokens, second.tokens)
    assert first.num_targets == 2 * 3 * 4
    assert not torch.equal(first.images, synthetic_batch(model, 2, 3, 5, torch.Generator()).images)


def test_a_summary_is_made_of_medians() -> None:
    flops = {"step with 1": 8_000_000_000, "products": 6_000_000_000, "step with 5": 9_000_000_000}
    times = {"step with 1": [2.0, 99.0, 1.0], "products": [1.0, 0.5, 1.0], "step with 5": [3.0, 3.0, 0.1]}
    summary = train_step.summarise(flops, times)
    assert summary["GFLOP/s, step with 1"] == 4
    assert summary["attained with 1 text"] == round(4 / 6, 3)
    assert summary["attained with 5 texts"] == 0.5
    assert summary["step with 5 / step with 1"] == 1.5


def test_train_step_measures_each_action_in_each_round(one_thread: None) -> None:
    result = train_step.run("demo", TINY, images=2, text_tokens=6, threads=1, budget_s=0)
    times = result["wall and CPU seconds of each round"]
    assert {name: len(values) for name, values in times.items()} == {
        "step with 1": 1,
        "products": 1,
        "step with 5": 1,
    }
    assert 0 < result["products' share of the step's FLOPs"] < 1
    assert result["by wall clock"]["attained with 1 text"] > 0


def test_the_share_of_an_average_is_of_the_medians() -> None:
    times = [(2.0, 0.5, 4.0, 0.4), (1.0, 0.1, 2.0, 0.1), (4.0, 0.2, 8.0, 0.2)]
    summary = weight_average.summarise(times)
    assert summary["share of a step"] == 0.2 / 2.0
    assert summary["share of a step by CPU time"] == 0.2 / 4.0


@pytest.mark.distributed
def test_the_cost_of_an_average_is_measured_under_both_stages() -> None:
    result = weight_average.run("demo", TINY, images=8, micro_batch=2, text_tokens=6, steps=2)
    for stage in ("ZeRO 1", "ZeRO 3"):
        assert len(result[stage]["of each step"]) == 2
        assert 0 < result[stage]["share of a step"] < 1
