"""The decoder with cross-attention against torch's own TransformerDecoderLayer and against BERT of transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from git_scale.models.cross_attention import CrossLayer
from git_scale.models.decoder import TextPlacement
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
DrawInputs = Callable[..., tuple[Tensor, Tensor]]
EXACT = {"rtol": 0.0, "atol": 1e-10}

pytestmark = pytest.mark.parametrize("tiny_model", ["cross"], indirect=True)


def all_rows(tokens_BKT: Tensor) -> Tensor:
    return torch.arange(tokens_BKT.numel())


def pair(name: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {f"{name}weight": weight, f"{name}bias": bias}


def torchs_weights(layer: CrossLayer) -> dict[str, Tensor]:
    """Ours by the names of torch's layer; gradients of these are gradients of ours."""
    weights: dict[str, Tensor] = {}
    for theirs, query, key_value in (
        ("self_attn.in_proj_", layer.query, layer.key_value),
        ("multihead_attn.in_proj_", layer.cross_query, layer.cross_key_value),
    ):
        both = ((query.weight, key_value.weight), (query.bias, key_value.bias))
        weights |= pair(theirs, *(torch.cat(parts) for parts in both))
    for theirs, ours in {
        "self_attn.out_proj.": layer.out,
        "norm1.": layer.attention_norm,
        "multihead_attn.out_proj.": layer.cross_out,
        "norm2.": layer.cross_norm,
        "linear1.": layer.fc1,
        "linear2.": layer.fc2,
        "norm3.": layer.ffn_norm,
    }.items():
        weights |= pair(theirs, ours.weight, ours.bias)
    return weights


def torchs_layer(layer: CrossLayer) -> nn.TransformerDecoderLayer:
    width, ffn = layer.fc1.in_features, layer.fc1.out_features
    return nn.TransformerDecoderLayer(
        width, layer.num_heads, ffn, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, dtype=torch.float64
    )


def in_torchs_order(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    theirs = torchs_layer(layer)
    return functional_call(theirs, torchs_weights(layer), (text, image), {"tgt_mask": hidden})


def norms_before(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    theirs = torchs_layer(layer)
    theirs.norm_first = True
    return functional_call(theirs, torchs_weights(layer), (text, image), {"tgt_mask": hidden})


def without_the_cross_norm(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    theirs = torchs_layer(layer)
    theirs.norm2 = nn.Identity()
    weights = {name: t for name, t in torchs_weights(layer).items() if not name.startswith("norm2")}
    return functional_call(theirs, weights, (text, image), {"tgt_mask": hidden})


def without_the_image(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    return in_torchs_order(layer, text, torch.zeros_like(image), hidden)


def one_softmax_over_both(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """The text's own attention sees [image; text], as in GIT, and the attention to the image comes after it."""
    theirs = torchs_layer(layer)
    theirs.load_state_dict({name: t.detach() for name, t in torchs_weights(layer).items()})
    both = torch.cat([image, text], dim=1)
    mask = torch.cat([hidden.new_zeros(len(hidden), image.shape[1]), hidden], dim=1)
    text = theirs.norm1(text + theirs.self_attn(text, both, both, attn_mask=mask)[0])
    text = theirs.norm2(text + theirs.multihead_attn(text, image, image)[0])
    return theirs.norm3(text + theirs.linear2(theirs.activation(theirs.linear1(text))))


Reference = Callable[[CrossLayer, Tensor, Tensor, Tensor], Tensor]


def reference_logits(
    model: GitModel,
    image: Tensor,
    tokens_BT: Tensor,
    apply: Reference = in_torchs_order,
    hidden: Tensor | None = None,
) -> Tensor:
    """[B, T, V]; one text per image. `hidden`: [T, T], by default what comes later; or [B*N, T, T]."""
    length = tokens_BT.shape[1]
    if hidden is None:
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    text = model.decoder.embedding(tokens_BT, torch.arange(length))
    for layer in model.decoder.layers:
        text = apply(layer, text, image, hidden)
    return text @ model.decoder.embedding.words.weight.T + model.decoder.head.bias


def gradients(model: GitModel, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("texts", [1, 3])
def test_logits_and_gradients_are_those_of_torchs_own_layers(
    tiny_model: BuildModel, draw_inputs: DrawInputs, texts: int, frames: int
) -> None:
    model = tiny_model(frames)
    images, tokens = draw_inputs(F=frames, K=texts)
    logits = model(images, tokens, all_rows(tokens)).unflatten(0, tokens.shape)
    image = model.encode(images)
    expected = torch.stack([reference_logits(model, image, tokens[:, k]) for k in range(texts)], dim=1)
    assert logits.std() > 0.5  # equal because both are right, not because both are flat
    torch.testing.assert_close(logits, expected, **EXACT)
    found, wanted = gradients(model, logits), gradients(model, expected)
    assert all(gradient.any() for gradient in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "wrong", [norms_before, without_the_cross_norm, without_the_image, one_softmax_over_both]
)
def test_another_layer_gives_other_logits(
    tiny_model: BuildModel, draw_inputs: DrawInputs, wrong: Reference
) -> None:
    model = tiny_model().eval()
    images, tokens = draw_inputs()
    logits = model(images, tokens, all_rows(tokens)).unflatten(0, (2, -1))
    other = reference_logits(model, model.encode(images), tokens[:, 0], wrong)
    assert (logits - other).abs().max() > 1e-2


def no_image(layer: CrossLayer, text: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """What the heads would give is zero, so that the output layer adds its bias alone."""
    theirs = torchs_layer(layer)
    theirs.load_state_dict({name: t.detach() for name, t in torchs_weights(layer).items()})
    text = theirs.norm1(text + theirs.self_attn(text, text, text, attn_mask=hidden)[0])
    text = theirs.norm2(text + layer.cross_out.bias)
    return theirs.norm3(text + theirs.linear2(theirs.activation(theirs.linear1(text))))


def test_texts_without_an_image_stand_beside_those_with_one(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    """Two images for three samples, of which the second image is seen by none."""
    model = tiny_model().eval()
    images, tokens = draw_inputs(B=3, K=2)
    visible = torch.ones(6, 6, dtype=torch.bool).tril().expand(3, 2, 6, 6)
    placement = TextPlacement(torch.arange(6), visible, has_image=torch.tensor([True, False, False]))
    logits = model(images[:2], tokens, all_rows(tokens), placement).unflatten(0, tokens.shape)
    image = model.encode(images)
    for k in range(2):
        expected = reference_logits(model, image, tokens[:, k])
        alone = reference_logits(model, image, tokens[:, k], no_image)
        torch.testing.assert_close(logits[0, k], expected[0], **EXACT)
        torch.testing.assert_close(logits[1:, k], alone[1:], **EXACT)
        assert (alone - expected).abs().max() > 1e-2


def berts_weights(model: GitModel) -> dict[str, Tensor]:
    """Ours by the names of transformers' BertModel, which adds an embedding of segments: zero."""
    embedding = model.decoder.embedding
    weights = {
        "embeddings.word_embeddings.weight": embedding.words.weight,
        "embeddings.position_embeddings.weight": embedding.positions.weight,
        "embeddings.token_type_embeddings.weight": torch.zeros(2, embedding.words.embedding_dim),
        **pair("embeddings.LayerNorm.", embedding.norm.weight, embedding.norm.bias),
    }
    for number, layer in enumerate(model.decoder.layers):
        at = f"encoder.layer.{number}."
        for theirs, query, key_value, out, norm in (
            ("attention", layer.query, layer.key_value, layer.out, layer.attention_norm),
            ("crossattention", layer.cross_query, layer.cross_key_value, layer.cross_out, layer.cross_norm),
        ):
            key, value = zip(key_value.weight.chunk(2), key_value.bias.chunk(2), strict=True)
            weights |= pair(f"{at}{theirs}.self.query.", query.weight, query.bias)
            weights |= pair(f"{at}{theirs}.self.key.", *key) | pair(f"{at}{theirs}.self.value.", *value)
            weights |= pair(f"{at}{theirs}.output.dense.", out.weight, out.bias)
            weights |= pair(f"{at}{theirs}.output.LayerNorm.", norm.weight, norm.bias)
        weights |= pair(f"{at}intermediate.dense.", layer.fc1.weight, layer.fc1.bias)
        weights |= pair(f"{at}output.dense.", layer.fc2.weight, layer.fc2.bias)
        weights |= pair(f"{at}output.LayerNorm.", layer.ffn_norm.weight, layer.ffn_norm.bias)
    return weights


@torch.no_grad()
def test_logits_are_those_of_bert_with_cross_attention(
    tiny_model: BuildModel, draw_inputs: DrawInputs, vocabulary: int
) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_model().eval()
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        layer_norm_eps=1e-12,
        is_decoder=True,
        add_cross_attention=True,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    bert.load_state_dict(berts_weights(model))
    bert.embeddings.LayerNorm.eps = 1e-8
    images, tokens = draw_inputs(K=3)
    logits = model(images, tokens, all_rows(tokens)).unflatten(0, tokens.shape)
    image = model.encode(images).repeat_interleave(3, dim=0)
    rows = bert(tokens.flatten(0, 1), encoder_hidden_states=image, use_cache=False).last_hidden_state
    expected = rows @ model.decoder.embedding.words.weight.T + model.decoder.head.bias
    torch.testing.assert_close(logits, expected.unflatten(0, (2, 3)), **EXACT)


def test_rows_that_see_more_than_what_came_before_do_so_in_training(
    tiny_model: BuildModel, draw_inputs: DrawInputs
) -> None:
    model = tiny_model().train()
    images, tokens = draw_inputs()
    B, K, T = tokens.shape
    visible = torch.rand(B, K, T, T, generator=torch.Generator().manual_seed(0)) < 0.5
    visible |= torch.eye(T, dtype=torch.bool)
    placement = TextPlacement(torch.arange(T).expand(B, K, T), visible)
    logits = model(images, tokens, all_rows(tokens), placement=placement).unflatten(0, (B, T))
    hidden = ~visible[:, 0].repeat_interleave(model.decoder.layers[0].num_heads, dim=0)
    image = model.encode(images)
    torch.testing.assert_close(logits, reference_logits(model, image, tokens[:, 0], hidden=hidden), **EXACT)
    assert (logits - reference_logits(model, image, tokens[:, 0])).abs().max() > 1e-2


@torch.no_grad()
def test_no_layer_changes_the_image_tokens_and_each_image_has_its_own_texts(
    tiny_model: BuildModel, draw_inputs: DrawInputs, vocabulary: int
) -> None:
    model = tiny_model().eval()
    streams: list[Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, outputs: streams.append(outputs[0]))
    images, tokens = draw_inputs()
    tokens = tokens[:1].expand(2, -1, -1)
    logits = model(images, tokens, all_rows(tokens)).view(2, 6, -1)
    other_text = model(images, (tokens + 1) % vocabulary, all_rows(tokens)).view(2, 6, -1)
    assert (logits - other_text).abs().max() > 1e-2
    projected = model.encode(images)
    assert len(streams) == 6 and all(torch.equal(stream, projected) for stream in streams)
    swapped = model(images.flip(0), tokens, all_rows(tokens)).view(2, 6, -1)
    torch.testing.assert_close(swapped, logits.flip(0), **EXACT)
    assert (swapped - logits).abs().max() > 1e-2
