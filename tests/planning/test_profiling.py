"""The profile of a micro-batch: what must hold of it whatever the model; test_measured_peak.py has real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from git_scale.config import RunConfig
from git_scale.models.build import build_model
from git_scale.models.git import count_parameters
from git_scale.planning import profiling
from git_scale.planning.estimate import flops_per_sample
from git_scale.planning.kernels import DeviceKind, device_kernels, flops_of
from git_scale.planning.local_model import build_local
from git_scale.planning.profiling import MicroBatchProfile, profile_micro_batch
from git_scale.recipes import adjusted, load_run


def peak(profile: MicroBatchProfile) -> int:
    """Bytes of a large micro-batch, per sample."""
    return int(profile.per_sample.max())


def test_all_gradients_are_done_and_nothing_is_left_at_the_end(small_run: RunConfig) -> None:
    profile = profile_micro_batch(small_run, "cuda")
    with torch.device("meta"):
        model = build_model(small_run.model)
    assert int(profile.gradients_done[-1]) == count_parameters(model)
    assert bool((profile.gradients_done.diff() >= 0).all())
    assert int(profile.per_sample[-1]) < 0.1 * peak(profile)


def test_logits_are_as_many_as_targets_and_words(small_run: RunConfig) -> None:
    """fp32 copies of logits beside bf16 ones: at least log-probabilities and their gradient."""
    profile = profile_micro_batch(small_run, "cuda")
    numbers = (small_run.data.max_text_tokens - 1) * small_run.model.vocab_size
    assert 4 * numbers <= int(profile.logits.max()) <= 14 * numbers
    assert bool((profile.logits <= profile.per_sample).all())


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_peak_is_that_of_torchs_own_tracker(
    small_run: RunConfig, kind: DeviceKind, checkpointing: str
) -> None:
    """MemTracker runs a batch of one size, and keeps the gradients, which are bf16 here."""
    run, pictures = adjusted(small_run, [f"train.activation_checkpointing={checkpointing}"]), 7
    profile = profile_micro_batch(run, kind)
    model, tracker = build_local(run).model, MemTracker()
    tracker.track_external(model)
    with device_kernels(kind), tracker:
        profiling._forward(model, run, pictures, pictures).backward()
    (seen,) = tracker.get_tracker_snapshot("peak").values()
    before = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    moments = profile.fixed + pictures * profile.per_sample + 2 * profile.gradients_done
    assert seen["Total"] - before == int(moments.max())


def test_known_shapes_are_what_torch_would_have_worked_out(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adjusted(small_run, ["train.activation_checkpointing=true"])
    quick = profile_micro_batch(run, "cpu")
    profiling._profile.cache_clear()

    def anew(func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return result, flops_of(func, args, kwargs, result)

    monkeypatch.setattr(profiling, "run_cached", anew)
    slow = profile_micro_batch(run, "cpu")
    profiling._profile.cache_clear()
    for name in ("fixed", "per_sample", "logits", "gradients_done"):
        assert torch.equal(getattr(quick, name), getattr(slow, name))
    assert quick.flops == slow.flops


def test_checkpointing_trades_memory_for_a_forward_pass(small_run: RunConfig) -> None:
    run = adjusted(small_run, ["model.encoder.options={depth: 12}", "model.vocab_size=100"])
    plain = profile_micro_batch(run, "cuda")
    again = profile_micro_batch(adjusted(run, ["train.activation_checkpointing=true"]), "cuda")
    assert peak(again) < 0.3 * peak(plain)
    assert plain.flops * 1.2 < again.flops < plain.flops * 4 / 3


@pytest.mark.parametrize("recipe", ["git_base", "demo"])
def test_flops_are_three_forwards(recipe: str) -> None:
    """But that the first layer's input needs no gradient, and fused attention computes its scores again."""
    run = load_run(recipe)
    for kind in ("cpu", "cuda"):
        assert profile_micro_batch(run, kind).flops == pytest.approx(flops_per_sample(run), rel=0.02)


def test_flops_of_depth_wise_convolutions_too(small_run: RunConfig) -> None:
    options = ["model.encoder.name=davit_tiny", "model.encoder.options={depths: [1, 1, 1, 1]}"]
    run = adjusted(small_run, options)
    assert profile_micro_batch(run, "cuda").flops == pytest.approx(flops_per_sample(run), rel=0.03)


def test_a_frozen_encoder_keeps_nothing_and_costs_one_pass(small_run: RunConfig) -> None:
    run = adjusted(small_run, ["model.encoder.options={depth: 8}", "model.vocab_size=100"])
    frozen = profile_micro_batch(adjusted(run, ["train.freeze=['encoder.*']"]), "cuda")
    learning = profile_micro_batch(run, "cuda")
    assert peak(frozen) < 0.5 * peak(learning)
    assert frozen.flops < 0.6 * learning.flops
    assert int(frozen.gradients_done[-1]) == sum(p.numel for p in frozen.parameters if p.learns)


def test_a_group_of_two_shares_what_lies_between_split_layers(small_run: RunConfig) -> None:
    run = adjusted(small_run, ["model.encoder.options={num_heads: 4, depth: 8}"])
    one, two = profile_micro_batch(run, "cuda"), profile_micro_batch(adjusted(run, ["parallel.tp=2"]), "cuda")
    assert 0.5 * peak(one) < peak(two) < 0.85 * peak(one)
    assert 0.5 * one.flops <= two.flops < 0.6 * one.flops
    assert one.tp_bytes == one.tp_exchanges == 0
    # Four sums per block of the encoder (two forward, two backward), each of N x D numbers in bf16; twice as many per
    # layer of the decoder, which has two streams.
    assert two.tp_exchanges == 4 * 8 + 8 * 2
    encoder = 4 * 8 * 197 * 192 * 2
    assert encoder < two.tp_bytes < 2 * encoder


def test_sequence_parallelism_divides_what_lies_between_split_layers(small_run: RunConfig) -> None:
    """Of ten units that a block keeps, four become two; with checkpointing its input alone, which is halved."""
    run = adjusted(
        small_run,
        ["model.encoder.options={depth: 12, num_heads: 4}", "model.vocab_size=100", "parallel.tp=2"],
    )
    for checkpointing, least, most in (("false", 0.75, 0.85), ("true", 0.6, 0.75)):
        recipe = adjusted(run, [f"train.activation_checkpointing={checkpointing}"])
        plain, divided = (
            profile_micro_batch(adjusted(recipe, [f"parallel.sequence={switch}"]), "cuda")
            for switch in ("false", "true")
        )
        assert least < peak(divided) / peak(plain) < most
        assert 0.95 * plain.flops < divided.flops < plain.flops  # convolution and projection are divided
        assert 1.1 * plain.tp_bytes < divided.tp_bytes < 1.3 * plain.tp_bytes
