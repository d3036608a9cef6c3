"""Which parameters of a model do not learn: train.freeze."""

from __future__ import annotations

import fnmatch

from torch import nn

from git_scale.errors import ConfigError


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Parameters that match a pattern do not learn. Raises ConfigError for a pattern that matches none."""
    named = dict(model.named_parameters())
    idle = [pattern for pattern in patterns if not fnmatch.filter(named, pattern)]
    if idle:
        raise ConfigError(
            [
                f"train.freeze: {pattern!r} matches no parameter; names are like {', '.join(list(named)[:2])}"
                for pattern in idle
            ]
        )
    for pattern in patterns:
        for name in fnmatch.filter(named, pattern):
            named[name].requires_grad_(False)
    for module in model.modules():
        learns = [parameter.requires_grad for parameter in module.parameters()]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and learns and not any(learns):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
            module.training = False  # its statistics stay as well
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError([f"train.freeze={list(patterns)} leaves nothing to learn"])
