"""Does a run fit, how long will it take, and what would be better: asked before it starts."""

from git_scale.planning.cluster import Cluster, accelerator_named, cluster_of, this_cluster
from git_scale.planning.estimate import SettingEstimate, TunableSetting
from git_scale.planning.plan import Plan, plan, refuse_if_memory_too_small, with_dividing_micro_batch

__all__ = [
    "Cluster",
    "Plan",
    "SettingEstimate",
    "TunableSetting",
    "accelerator_named",
    "cluster_of",
    "plan",
    "refuse_if_memory_too_small",
    "this_cluster",
    "with_dividing_micro_batch",
]
