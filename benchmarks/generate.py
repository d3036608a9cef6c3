"""Captions and answers of git_base beside transformers' GitForCausalLM.generate, on the same random weights.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \\
        python tools/benchmark.py generate --json benchmarks/results/generate_cpu.json

Both sides search 8 images at 224 with 4 beams for exactly 20 new tokens (least = most), in fp32: one caption per
image, then the answers to 5 questions per image. transformers knows one text per image, so its images are
repeated for each question, as its users must. The four take turns within one run, so that other work on the
machine slows all alike; where it comes and goes, the CPU time says more than the wall clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from git_scale.checkpoint.names import cut, huggingface_rules
from git_scale.config import ModelConfig
from git_scale.errors import UserError
from git_scale.inference.generate import Decoding, Prefixes, generate
from git_scale.models.build import build_model
from git_scale.models.encoders import QuickGelu
from git_scale.models.git import GitModel
from git_scale.recipes import load_run

PAD, BEGIN, END = 0, 101, 102  # of the BERT vocabulary
AIMS = {"captions, ratio": ">= 4", "5 questions, ratio": ">= 10"}
CPU = torch.device("cpu")
Action = Callable[[int], list[list[int]]]  # number of images -> new tokens of each text


def run(
    recipe: str = "git_base",
    overrides: tuple[str, ...] = (),
    images: int = 8,
    questions: int = 5,
    question_tokens: int = 8,
    beams: int = 4,
    new_tokens: int = 20,
    threads: int = 2,
    budget_s: float = 300,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Images per second and ratios: medians over the rounds that fit `budget_s`, after an image to warm up.

    Raises UserError when transformers is missing.
    """
    torch.set_num_threads(threads)
    config = load_run(recipe, overrides).model
    prompts = draw_prompts(
        config, images, {"captions": (1, 0), f"{questions} questions": (questions, question_tokens)}
    )
    decoding = Decoding(new_tokens, new_tokens, beams=beams)
    times, texts = measure(build_actions(config, images, prompts, decoding, device), images, budget_s)
    return {
        "recipe": recipe,
        "images": images,
        "image_size": config.encoder.image_size,
        "beams": beams,
        "new_tokens": new_tokens,
        "tokens of a question": question_tokens,
        "precision": "fp32" if device.type == "cpu" else "bf16",
        "threads": threads,
        "torch": torch.__version__,
        "transformers": _transformers().__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "rounds": len(next(iter(times.values()))),
        "weights": "the same on both sides, random",
        **{
            f"{name}, same texts": _share(texts[f"{name}, git_scale"], texts[f"{name}, transformers"])
            for name in prompts
        },
        "by wall clock": summarise(list(prompts), images, times, 0),
        "by CPU time": summarise(list(prompts), images, times, 1),
        "aims": AIMS,
        "wall and CPU seconds of each round": {
            name: [[round(wall, 3), round(cpu, 3)] for wall, cpu in values] for name, values in times.items()
        },
    }


def draw_prompts(config: ModelConfig, images: int, shapes: dict[str, tuple[int, int]]) -> dict[str, Prefixes]:
    """By name: (texts per image, random words behind the begin token)."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: [
            [[BEGIN, *question] for question in row]
            for row in torch.randint(
                END + 1, config.vocab_size, (images, count, length), generator=generator
            ).tolist()
        ]
        for name, (count, length) in shapes.items()
    }


def build_actions(
    config: ModelConfig,
    images: int,
    prompts: dict[str, Prefixes],
    decoding: Decoding,
    device: torch.device = CPU,
) -> dict[str, Action]:
    """Both sides in fp32 on a CPU and in bf16 elsewhere."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    ours = build_model(config).eval()
    theirs = copy_to_transformers(ours, config).to(device, dtype)
    ours = ours.to(device, dtype)
    side = config.encoder.image_size
    pixels = torch.randn(images, 1, 3, side, side).to(device, dtype)
    actions: dict[str, Action] = {}
    for name, prefixes in prompts.items():
        actions[f"{name}, git_scale"] = _ours(ours, pixels, prefixes, decoding)
        actions[f"{name}, transformers"] = _theirs(theirs, pixels, prefixes, decoding)
    return actions


def summarise(
    names: list[str], images: int, times: dict[str, list[tuple[float, float]]], clock: int
) -> dict[str, float]:
    """Images per second from the medians of wall (clock 0) or CPU seconds, and how many times theirs is ours."""
    rates = {key: images / statistics.median(pair[clock] for pair in values) for key, values in times.items()}
    ratios = {name: rates[f"{name}, git_scale"] / rates[f"{name}, transformers"] for name in names}
    return {
        **{f"images/s, {key}": round(rate, 3) for key, rate in rates.items()},
        **{f"{name}, ratio": round(ratio, 2) for name, ratio in ratios.items()},
    }


def measure(
    actions: dict[str, Action], images: int, budget_s: float
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[list[int]]]]:
    """Wall and CPU seconds of each action, one of each per round, and the texts of the last round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    texts: dict[str, list[list[int]]] = {}
    for action in actions.values():
        action(1)
    deadline = time.perf_counter() + budget_s
    while not texts or time.perf_counter() < deadline:
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            texts[name] = action(images)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times, texts


def _ours(model: GitModel, pixels: Tensor, prefixes: Prefixes, decoding: Decoding) -> Action:
    def act(count: int) -> list[list[int]]:
        found = generate(model, pixels[:count], prefixes[:count], END, decoding)
        return [texts[0].tokens for row in found for texts in row]

    return act


def _theirs(model: Any, pixels: Tensor, prefixes: Prefixes, decoding: Decoding) -> Action:
    prompts = torch.tensor(prefixes, device=pixels.device)  # [B, K, T]: of equal lengths, without padding

    def act(count: int) -> list[list[int]]:
        tokens = prompts[:count].flatten(0, 1)
        found = model.generate(
            pixel_values=pixels[:count, 0].repeat_interleave(prompts.shape[1], dim=0),
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            num_beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            min_new_tokens=decoding.min_new_tokens,
            max_new_tokens=decoding.max_new_tokens,
        )
        return found[:, tokens.shape[1] :].tolist()

    return act


def _share(ours: list[list[int]], theirs: list[list[int]]) -> str:
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "this benchmark compares with transformers: install git_scale's extra for it"
        ) from error
    return transformers


def copy_to_transformers(model: GitModel, config: ModelConfig) -> Any:
    """A GitForCausalLM with the weights of `model`, whose encoder is a CLIP ViT."""
    transformers = _transformers()
    vit, decoder = model.encoder.backbone, config.decoder
    vision = {
        "hidden_size": vit.embed_dim,
        "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "image_size": config.encoder.image_size,
        "patch_size": vit.patch_embed.patch_size[0],
        "hidden_act": "quick_gelu" if isinstance(vit.blocks[0].mlp.act, QuickGelu) else "gelu",
    }
    settings = transformers.GitConfig(
        vision_config=vision,
        vocab_size=config.vocab_size,
        hidden_size=decoder.width,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        intermediate_size=decoder.ffn,
        max_position_embeddings=decoder.positions,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    theirs = transformers.GitForCausalLM(settings).eval()
    state = model.state_dict()
    rows = huggingface_rules(config, len(vit.blocks))
    weights = dict(pair for row in rows for pair in cut(row, state[row.ours]))
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    if unexpected or any(not name.endswith("position_ids") for name in missing):
        raise UserError(f"another GitForCausalLM than expected: missing {missing}, unexpected {unexpected}")
    return theirs
