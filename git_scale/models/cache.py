"""Keys and values that a generation keeps, so that the rows behind them never run again.

Shapes: B batch, I image tokens (all frames), K texts per image, S text tokens seen so far, N heads, H head width.
"""

from __future__ import annotations

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class GrowingRows:
    """Keeps text rows [B, K, N, S, H] in memory that doubles when it is full: a further one copies no earlier one."""

    def __init__(self) -> None:
        self.length = 0
        self._memory: Tensor | None = None

    def append(self, new: Tensor) -> Tensor:
        """All rows so far, a view."""
        start, self.length = self.length, self.length + new.shape[3]
        memory = self._memory
        if memory is None or memory.shape[3] < self.length:
            grown = new.new_empty(*new.shape[:3], 2 * self.length, new.shape[4])
            if memory is not None:
                grown[..., :start, :] = memory[..., :start, :]
            self._memory = memory = grown
        memory[..., start : self.length, :] = new
        return memory[..., : self.length, :]


class LayerCache:
    """Keeps keys and values of one layer: image [B, N, I, H] and text [B, K, N, S, H]."""

    def __init__(self) -> None:
        self.image: KeysValues | None = None
        self.text = GrowingRows(), GrowingRows()

    def extend(self, image: KeysValues | None, text: KeysValues) -> tuple[KeysValues, KeysValues]:
        """Takes the image's at the first call and adds the text's; all that it holds then."""
        if image is not None:
            # Views into a linear layer's output would be copied anew by the matrix products of every token.
            self.image = image[0].contiguous(), image[1].contiguous()
        if self.image is None:
            raise ValueError("the first call of a generation needs the image stream")
        keys, values = self.text
        return self.image, (keys.append(text[0]), values.append(text[1]))


def with_past(
    image: KeysValues | None, text: KeysValues, cache: LayerCache | None
) -> tuple[KeysValues, KeysValues]:
    """What the rows of this call see: with a cache, all that it holds with theirs; without one, theirs."""
    if cache is not None:
        return cache.extend(image, text)
    if image is None:
        raise ValueError("without the image stream a cache is needed")
    return image, text
