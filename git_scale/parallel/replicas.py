"""What several ranks hold alike is the same to the bit, or a device or a program is at fault.

    data-parallel ranks     ZeRO 0: weights and moments; ZeRO 1 and 2: the weights of the forward pass; ZeRO 3: the
                            small parameters that it keeps whole; below ZeRO 3 what is frozen; buffers
    tensor-parallel ranks   of everything a rank holds, what is not split

Neither ever exchanges these numbers again, so a difference would stay and grow.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from git_scale.parallel.comm import Group

# Numbers at a time: on a CPU what its caches hold (3.4 ms per million numbers instead of 14), on a GPU few kernels.
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}
ODD = 0x1E3779B97F4A7C15  # the golden ratio's digits: weights of neighbours have nothing in common
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(numbers: Tensor) -> Tensor:
    """int64 [] of the bits and their places, on the tensor's device.

    Bits are summed with odd weights modulo 2^64, another for each place, so that any single number that differs is
    noticed, and any two of up to 4 bytes that have changed places.
    """
    bits = numbers.detach().contiguous().view(-1)
    bits = bits.view(torch.uint8 if bits.dtype == torch.bool else BITS[bits.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), CHUNK[bits.device.type]):
        part = bits[start : start + CHUNK[bits.device.type]]
        weights = torch.arange(2 * start + 1, 2 * (start + part.numel()), 2, device=bits.device).mul_(ODD)
        total += weights.mul_(part).sum()
    return total


def check_alike(
    tensors: Iterable[tuple[str, Tensor]], ranks: str, group: Group, device: torch.device
) -> None:
    """Raises RuntimeError when the ranks of the group hold other numbers under a name than this one. Collective.

    `tensors` may lie on any device; the sums are exchanged on `device`. `ranks` says in the message who they are.
    """
    names, sums = [], []
    for name, tensor in tensors:
        names.append(name)
        sums.append(checksum(tensor).to(device))
    if not sums:
        return
    least, most = group.min_(torch.stack(sums)), group.max_(torch.stack(sums))
    if differing := [name for name, same in zip(names, (least == most).tolist(), strict=True) if not same]:
        raise RuntimeError(
            f"{ranks} hold different values of {differing[0]} and {len(differing) - 1} more: a fault of a device or"
            " of git_scale; go on from an older checkpoint"
        )
