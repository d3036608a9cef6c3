"""The whole model: its size, its gradients, its loss, its frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.config import ModelConfig
from git_scale.models.build import build_model
from git_scale.models.git import GitModel, count_parameters
from git_scale.recipes import load_run

BuildModel = Callable[..., GitModel]
DrawInputs = Callable[..., tuple[Tensor, Tensor]]
EXACT = {"rtol": 0.0, "atol": 1e-10}


def build_on_meta(recipe: str) -> GitModel:
    with torch.device("meta"):
        return build_model(load_run(recipe).model)


def loss_and_gradients(
    model: GitModel, images: Tensor, tokens: Tensor
) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Teacher forcing on every token but the first of each text."""
    model.zero_grad(set_to_none=True)
    rows = torch.arange(tokens.numel()).view(tokens.shape)[..., :-1].flatten()
    logits = model(images, tokens, rows)
    loss = F.cross_entropy(logits, tokens[..., 1:].flatten(), reduction="sum")
    loss.backward()
    return logits.detach(), loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


def test_texts_at_once_equal_texts_one_by_one(tiny_model: BuildModel, draw_inputs: DrawInputs) -> None:
    model = tiny_model(frames=2)
    images, tokens = draw_inputs(F=2, K=3)
    logits, loss, gradients = loss_and_gradients(model, images, tokens)
    alone = [loss_and_gradients(model, images, tokens[:, k : k + 1]) for k in range(3)]
    expected = torch.stack([logits.view(2, 5, -1) for logits, _, _ in alone], dim=1)
    torch.testing.assert_close(logits, expected.flatten(0, 2), **EXACT)
    assert loss == pytest.approx(sum(loss for _, loss, _ in alone), rel=1e-12)
    for name, gradient in gradients.items():
        summed = sum(each[name] for _, _, each in alone)
        torch.testing.assert_close(gradient, summed, rtol=1e-9, atol=1e-9, msg=name)


def test_every_parameter_learns(tiny_model: BuildModel, draw_inputs: DrawInputs) -> None:
    model = tiny_model(frames=2)
    _, _, gradients = loss_and_gradients(model, *draw_inputs(F=2, K=2))
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_the_word_table_and_the_head_are_one_parameter(tiny_model: BuildModel) -> None:
    model = tiny_model()
    table = model.decoder.embedding.words.weight
    assert model.decoder.head.weight is table
    assert sum(parameter is table for parameter in model.parameters()) == 1
    names = [name for name, value in model.state_dict(keep_vars=True).items() if value is table]
    assert names == ["decoder.embedding.words.weight", "decoder.head.weight"]
    others = sum(parameter.numel() for parameter in model.parameters() if parameter is not table)
    assert count_parameters(model) == table.numel() + others


def test_an_untied_head_has_weights_of_its_own(tiny_model: BuildModel, draw_inputs: DrawInputs) -> None:
    model = tiny_model(tied=False)
    table, head = model.decoder.embedding.words.weight, model.decoder.head.weight
    assert head is not table and head.shape == table.shape
    assert count_parameters(model) == count_parameters(tiny_model()) + table.numel()
    assert model.state_dict().keys() == tiny_model().state_dict().keys()
    _, _, gradients = loss_and_gradients(model, *draw_inputs())
    assert gradients["decoder.embedding.words.weight"].any() and gradients["decoder.head.weight"].any()
    images, tokens = draw_inputs()
    before = model(images, tokens, torch.tensor([3]))
    with torch.no_grad():
        head += 0.5
    assert not torch.allclose(model(images, tokens, torch.tensor([3])), before)
    assert not torch.equal(head, table)


@pytest.mark.parametrize(
    ("recipe", "encoder", "whole"),
    [("git_base", 85_799_424, 153_178_170), ("git_large", 303_179_776, 370_755_130)],
)
def test_parameters_are_as_many_as_the_authors_code_has(recipe: str, encoder: int, whole: int) -> None:
    """Counted in microsoft/GenerativeImage2Text, without CLIP's output projection, which GIT never uses."""
    model = build_on_meta(recipe)
    assert count_parameters(model.encoder) == encoder
    assert count_parameters(model) == whole


def test_the_base_decoder_is_made_of_the_authors_parts() -> None:
    model = build_on_meta("git_base")
    decoder = model.decoder
    assert [count_parameters(layer) for layer in decoder.layers] == [42_527_232 // 6] * 6
    assert count_parameters(decoder.embedding) == 24_228_864
    assert count_parameters(model.projection) == 592_128
    assert decoder.head.bias.shape == (30_522,)


def test_git2_has_the_papers_size() -> None:
    """5.1B, of which the encoder has 4.8B and the decoder 0.3B."""
    model = build_on_meta("git2")
    assert 5.0e9 <= count_parameters(model) <= 5.2e9
    assert 4.75e9 <= count_parameters(model.encoder) <= 4.85e9
    assert 0.3e9 <= count_parameters(model.decoder) < 0.35e9


@pytest.mark.parametrize("tied", [True, False])
def test_the_initial_weights_are_berts(tied: bool) -> None:
    config = ModelConfig.model_validate(
        {
            "encoder": load_run("demo").model.encoder,
            "decoder": {"layers": 2, "tied": tied},
            "vocab_size": 1000,
        }
    )
    torch.manual_seed(0)
    model = build_model(config)
    for part in (model.projection, model.decoder):
        for name, parameter in part.named_parameters():
            if parameter.ndim == 2:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
                assert abs(parameter.mean().item()) < 1e-3, name
            else:
                expected = 1.0 if "norm" in name or name == "1.weight" else 0.0
                assert (parameter == (0.0 if name.endswith("bias") else expected)).all(), name


# The loss.


# Activation checkpointing.


def test_checkpointing_recomputes_and_changes_nothing(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    model = tiny_model(frames=2, dropout=0.2).train()
    images, tokens = draw_inputs(F=2, K=2)
    calls: list[str] = []
    for tower, block in (("encoder", model.encoder.backbone.blocks[0]), ("decoder", model.decoder.layers[0])):
        block.register_forward_pre_hook(lambda _module, _inputs, tower=tower: calls.append(tower))

    def run(enable: bool, seed: int) -> tuple[float, dict[str, Tensor]]:
        model.set_activation_checkpointing(enable)
        torch.manual_seed(seed)
        calls.clear()
        _, loss, gradients = loss_and_gradients(model, images, tokens)
        return loss, gradients

    kept_loss, kept = run(enable=False, seed=5)
    assert calls == ["encoder", "decoder"]
    loss, recomputed = run(enable=True, seed=5)
    assert sorted(calls) == ["decoder", "decoder", "encoder", "encoder"]
    assert loss == kept_loss
    for name, gradient in recomputed.items():
        torch.testing.assert_close(gradient, kept[name], rtol=1e-12, atol=1e-12, msg=name)
    assert run(enable=True, seed=6)[0] != kept_loss  # dropout was really on


# Video.


def test_frames_are_told_apart_by_their_embedding_only(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    model = tiny_model(frames=3).eval()
    images, _ = draw_inputs()
    still = images.expand(-1, 3, -1, -1, -1)
    image_tokens = 5
    with torch.no_grad():
        model.temporal.frames.zero_()
        frames = model.encode(still).split(image_tokens, dim=1)
        assert torch.equal(frames[0], frames[1])
        model.temporal.frames[1] = 1.0
        other = model.encode(still).split(image_tokens, dim=1)
    assert torch.equal(other[0], frames[0])
    assert torch.equal(other[2], frames[2])
    assert not torch.allclose(other[1], frames[1])


def test_the_temporal_embedding_starts_at_zero_and_images_have_none() -> None:
    demo = load_run("demo", ["model.frames=6"]).model
    model = build_model(demo)
    assert model.temporal.frames.shape == (6, model.encoder.width)
    assert not model.temporal.frames.any()
    assert build_model(load_run("demo").model).temporal is None


def test_fewer_frames_take_the_first_embeddings(tiny_model: BuildModel, draw_inputs: DrawInputs) -> None:
    model = tiny_model(frames=3).eval()
    images, _ = draw_inputs(F=3)
    torch.testing.assert_close(model.encode(images[:, :2]), model.encode(images)[:, :10], **EXACT)
