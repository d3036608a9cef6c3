"""How likely a model finds given texts: teacher-forced, K texts of an image in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.inference.generate import AutoregressiveModel

TextToScore = tuple[list[int], list[int]]
"""What is given (the begin token first), and the tokens after it that are judged."""


@torch.no_grad()
def log_likelihoods(
    model: AutoregressiveModel, images_BFCHW: Tensor, texts: list[list[TextToScore]], end_token: int
) -> list[list[float]]:
    """[B][K]: the sum of the natural logarithms of each text's token probabilities, the end token's included.

    `texts[b][k]` of any lengths; every b has the same K.
    """
    flat = [text for row in texts for text in row]
    length = max(len(given) + len(judged) for given, judged in flat)
    tokens = torch.full((len(flat), length), end_token)
    rows: list[int] = []
    for number, (given, judged) in enumerate(flat):
        tokens[number, : len(given) + len(judged)] = torch.tensor(given + judged)
        last_given = number * length + len(given) - 1
        rows += range(last_given, last_given + len(judged) + 1)
    labels = torch.tensor([token for _, judged in flat for token in (*judged, end_token)])
    device = images_BFCHW.device
    logits = model(
        images_BFCHW, tokens.view(len(texts), -1, length).to(device), torch.tensor(rows, device=device)
    )
    found = -F.cross_entropy(logits.float(), labels.to(device), reduction="none").double()
    sums = [float(part.sum()) for part in found.cpu().split([len(judged) + 1 for _, judged in flat])]
    count = len(texts[0])
    return [sums[first : first + count] for first in range(0, len(sums), count)]
