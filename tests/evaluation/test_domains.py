"""Scores by domain: against pycocoevalcap, and out of shards to the files of an evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from pycocoevalcap.cider.cider import Cider

from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.errors import DataError
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.evaluation.results import write_results
from git_scale.metrics.metric import DOMAINS, Prediction
from git_scale.metrics.scores import score
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOURS, describe, draw_square

WORDS = "a man dog kid red ball riding on in with two cats sitting near street".split()  # noqa: SIM905
NAMES = ("exact_match", "bleu_4", "cider", "distinct")
TAGS = ("in_domain", "near_domain", "out_domain")


def said() -> list[Prediction]:
    rng = random.Random(2205)

    def caption() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))

    domains = [*DOMAINS[:1] * 5, *DOMAINS[1:2] * 20, *DOMAINS[2:] * 9]
    return [
        Prediction(number, str(number), number, "", caption(), [caption() for _ in range(5)], domain=domain)
        for number, domain in enumerate(rng.sample(domains, len(domains)))
    ]


def published(items: list[Prediction]) -> list[float]:
    truths = dict(enumerate(item.references for item in items))
    return list(map(float, Cider().compute_score(truths, {n: [i.generated] for n, i in enumerate(items)})[1]))


def test_cider_of_a_domain_weighs_phrases_by_all_references() -> None:
    items = said()
    found, of_each = score(NAMES, items), published(items)
    for domain, tag in zip(DOMAINS, TAGS, strict=True):
        part = [value for item, value in zip(items, of_each, strict=True) if item.domain == domain]
        assert found[f"cider_{tag}"] == pytest.approx(sum(part) / len(part), abs=1e-12)
        alone = published([item for item in items if item.domain == domain])
        assert abs(sum(alone) / len(alone) - found[f"cider_{tag}"]) > 0.01  # other weights are another score
    by_size = 5 * found["cider_in_domain"] + 20 * found["cider_near_domain"] + 9 * found["cider_out_domain"]
    assert by_size / 34 == pytest.approx(found["cider"])


def test_what_is_no_mean_or_judges_nothing_has_no_domains() -> None:
    with_domains = {name for name in score(NAMES, said()) if name.endswith("_domain")}
    assert with_domains == {f"{name}_{tag}" for name in ("exact_match", "cider") for tag in TAGS}
    assert not [name for name in score(NAMES, [Prediction(0, "a", 0, "", "a", ["a"])]) if "domain" in name]


def evaluated(topology: Topology, device: torch.device, model: Path, data: Path, out: Path) -> str:
    given = ["eval.max_new_tokens=8", "data.workers=0", "eval.submission=coco"]
    try:
        write_results(out, evaluate_checkpoint(model, data, None, None, given, {}, topology))
    except DataError as error:
        return str(error)
    return ""


def write_data(folder: Path, ids: list[int | str]) -> Path:
    domains = ["in-domain", "out-domain", "flickr.com", ["in-domain"]]  # the last two are none of nocaps'
    samples = [
        SampleToWrite(
            draw_square(colour, "big"),
            "png",
            {"captions": [describe(colour, "big")], "image_id": number, "domain": domain},
        )
        for colour, domain, number in zip(COLOURS, domains, ids, strict=True)
    ]
    write_shards(samples, folder, 4)
    return folder


@pytest.mark.distributed
def test_domains_and_submission_come_out_of_the_shards(tmp_path: Path) -> None:
    model, out = write_taught(tmp_path / "taught"), tmp_path / "out"
    data = write_data(tmp_path / "val", [4, 3, 2, 1])
    assert run_distributed(evaluated, 1, model, data, out) == [""]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("domain") for line in lines] == ["in-domain", "out-domain", None, None]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval/cider_out_domain"] == lines[1]["values"]["cider"]
    assert "eval/cider_near_domain" not in metrics
    (file,) = out.glob("captions_val_*_results.json")
    assert json.loads(file.read_text()) == [
        {"image_id": line["identity"], "caption": line["generated"]} for line in lines
    ]
    wrong = write_data(tmp_path / "wrong", ["4", 3, 2, 1])
    (refused,) = run_distributed(evaluated, 1, model, wrong, tmp_path / "none")
    assert 'its image_id is "4"' in refused and not (tmp_path / "none").exists()
