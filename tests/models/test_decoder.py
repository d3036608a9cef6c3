"""The two streams against an independent reference: one sequence under the authors' explicit mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from git_scale.models.decoder import TextPlacement
from git_scale.models.decoder_layer import DecoderLayer
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
DrawInputs = Callable[..., tuple[Tensor, Tensor]]
EXACT = {"rtol": 0.0, "atol": 1e-10}

of_joint_attention = pytest.mark.parametrize("tiny_model", ["joint"], indirect=True)


def all_rows(tokens_BKT: Tensor) -> Tensor:
    return torch.arange(tokens_BKT.numel())


def seq2seq_mask(image_rows: int, text_rows: int) -> Tensor:
    """GIT's: image sees image; text sees image and the text up to itself."""
    mask = torch.full((image_rows + text_rows, image_rows + text_rows), -math.inf, dtype=torch.float64)
    mask[:, :image_rows] = 0
    for row in range(text_rows):
        mask[image_rows + row, image_rows : image_rows + row + 1] = 0
    return mask


def causal_mask(image_rows: int, text_rows: int) -> Tensor:
    size = image_rows + text_rows
    return torch.full((size, size), -math.inf, dtype=torch.float64).triu(1)


def blind_image_mask(image_rows: int, text_rows: int) -> Tensor:
    """The text does not see the image."""
    mask = seq2seq_mask(image_rows, text_rows)
    mask[image_rows:, :image_rows] = -math.inf
    return mask


def reference_layer(layer: DecoderLayer, rows: Tensor, mask: Tensor) -> Tensor:
    heads, head_width = layer.num_heads, rows.shape[-1] // layer.num_heads
    key_weight, value_weight = layer.key_value.weight.chunk(2)
    key_bias, value_bias = layer.key_value.bias.chunk(2)
    q = rows @ layer.query.weight.T + layer.query.bias
    k = rows @ key_weight.T + key_bias
    v = rows @ value_weight.T + value_bias
    parts = []
    for head in range(heads):
        at = slice(head * head_width, (head + 1) * head_width)
        scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(head_width) + mask
        parts.append(torch.softmax(scores, dim=-1) @ v[..., at])
    attended = torch.cat(parts, dim=-1) @ layer.out.weight.T + layer.out.bias
    rows = normalised(rows + attended, layer.attention_norm, 1e-12)
    hidden = rows @ layer.fc1.weight.T + layer.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return normalised(rows + hidden @ layer.fc2.weight.T + layer.fc2.bias, layer.ffn_norm, 1e-12)


def normalised(rows: Tensor, norm: nn.LayerNorm, eps: float) -> Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def reference_logits(
    model: GitModel, images: Tensor, tokens_BT: Tensor, make_mask: Callable[[int, int], Tensor] = seq2seq_mask
) -> Tensor:
    """[B, T, V]; one text per image."""
    frames = [model.encoder(images[:, frame]) for frame in range(images.shape[1])]
    if model.temporal is not None:
        frames = [features + model.temporal.frames[number] for number, features in enumerate(frames)]
    linear, norm = model.projection
    image = normalised(torch.cat(frames, dim=1) @ linear.weight.T + linear.bias, norm, 1e-5)
    embedding = model.decoder.embedding
    text = embedding.words.weight[tokens_BT] + embedding.positions.weight[: tokens_BT.shape[1]]
    text = normalised(text, embedding.norm, 1e-8)
    rows = torch.cat([image, text], dim=1)
    mask = make_mask(image.shape[1], text.shape[1])
    for layer in model.decoder.layers:
        rows = reference_layer(layer, rows, mask)
    return rows[:, image.shape[1] :] @ embedding.words.weight.T + model.decoder.head.bias


@of_joint_attention
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("texts", [1, 3])
def test_two_streams_equal_one_sequence_with_an_explicit_mask(
    tiny_model: BuildModel, draw_inputs: DrawInputs, texts: int, frames: int
) -> None:
    model = tiny_model(frames).eval()
    images, tokens = draw_inputs(F=frames, K=texts)
    logits = model(images, tokens, all_rows(tokens)).unflatten(0, tokens.shape)
    expected = torch.stack([reference_logits(model, images, tokens[:, k]) for k in range(texts)], dim=1)
    assert logits.std() > 0.5  # equal because both are right, not because both are flat
    torch.testing.assert_close(logits, expected, **EXACT)


def both_ways_mask(image_rows: int, text_rows: int) -> Tensor:
    """Text sees all of itself; the image sees no text."""
    mask = seq2seq_mask(image_rows, text_rows)
    mask[image_rows:] = 0
    return mask


@of_joint_attention
def test_texts_that_see_ahead_stand_beside_causal_ones(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    """One text of each kind per image; of the one that sees ahead the last two of six tokens are padding."""
    model = tiny_model().eval()
    images, tokens = draw_inputs(K=2)
    visible = torch.ones(6, 6, dtype=torch.bool).tril().repeat(2, 2, 1, 1)
    visible[:, 1, :, :4] = True
    placement = TextPlacement(torch.arange(6).expand(2, 2, 6), visible)
    logits = model(images, tokens, all_rows(tokens), placement).unflatten(0, tokens.shape)
    torch.testing.assert_close(logits[:, 0], reference_logits(model, images, tokens[:, 0]), **EXACT)
    short = tokens[:, 1, :4]
    torch.testing.assert_close(
        logits[:, 1, :4], reference_logits(model, images, short, both_ways_mask), **EXACT
    )
    assert (logits[:, 1, :4] - reference_logits(model, images, short)).abs().max() > 1e-2
    padded = reference_logits(model, images, tokens[:, 1], both_ways_mask)
    assert (logits[:, 1, :4] - padded[:, :4]).abs().max() > 1e-2, "padding must not be seen"


@of_joint_attention
def test_texts_without_an_image_stand_beside_those_with_one(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    """Two images for three samples, of which the second image is seen by none."""
    model = tiny_model().eval()
    images, tokens = draw_inputs(B=3, K=2)
    visible = torch.ones(6, 6, dtype=torch.bool).tril().expand(3, 2, 6, 6)
    placement = TextPlacement(torch.arange(6), visible, has_image=torch.tensor([True, False, False]))
    logits = model(images[:2], tokens, all_rows(tokens), placement).unflatten(0, tokens.shape)
    for k in range(2):
        expected = reference_logits(model, images, tokens[:, k])
        alone = reference_logits(model, images, tokens[:, k], blind_image_mask)
        torch.testing.assert_close(logits[0, k], expected[0], **EXACT)
        torch.testing.assert_close(logits[1:, k], alone[1:], **EXACT)
        assert (alone - expected).abs().max() > 1e-2


@of_joint_attention
@pytest.mark.parametrize("wrong_mask", [causal_mask, blind_image_mask])
def test_another_mask_gives_other_logits(
    tiny_model: BuildModel, draw_inputs: DrawInputs, wrong_mask: Callable[[int, int], Tensor]
) -> None:
    model = tiny_model().eval()
    images, tokens = draw_inputs()
    logits = model(images, tokens, all_rows(tokens)).unflatten(0, (2, -1))
    assert (logits - reference_logits(model, images, tokens[:, 0], wrong_mask)).abs().max() > 1e-2


def test_a_text_row_depends_on_no_later_token_and_on_no_other_text(
    tiny_model: BuildModel, draw_inputs: DrawInputs, vocabulary: int
) -> None:
    model = tiny_model().eval()
    images, tokens = draw_inputs(K=2)
    before = model(images, tokens, all_rows(tokens)).view(2, 2, 6, -1)
    changed = tokens.clone()
    changed[:, 0, 3] = (changed[:, 0, 3] + 1) % vocabulary
    after = model(images, changed, all_rows(tokens)).view(2, 2, 6, -1)
    torch.testing.assert_close(after[:, 0, :3], before[:, 0, :3], **EXACT)
    torch.testing.assert_close(after[:, 1], before[:, 1], **EXACT)
    assert ((after - before)[:, 0, 3:].abs().amax((0, 2)) > 1e-3).all()


@of_joint_attention
def test_the_image_stream_does_not_depend_on_the_text(
    tiny_model: BuildModel, draw_inputs: DrawInputs, vocabulary: int
) -> None:
    model = tiny_model().eval()
    streams: list[Tensor | None] = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, outputs: streams.append(outputs[0]))
    images, tokens = draw_inputs()
    for text in (tokens, (tokens + 1) % vocabulary):
        model(images, text, all_rows(text))
    first, second = streams[:3], streams[3:]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    assert first[2] is second[2] is None  # the last block computes no image rows


def test_only_the_rows_asked_for_meet_the_vocabulary(
    tiny_model: BuildModel, draw_inputs: DrawInputs, vocabulary: int
) -> None:
    model = tiny_model().eval()
    seen: list[tuple[int, ...]] = []
    model.decoder.head.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    images, tokens = draw_inputs(K=2)
    rows = torch.tensor([17, 3, 3])
    some, every = model(images, tokens, rows), model(images, tokens, all_rows(tokens))
    assert seen == [(3, 32), (24, 32)]
    torch.testing.assert_close(some, every[rows], **EXACT)
    assert model(images, tokens, rows[:0]).shape == (0, vocabulary)
