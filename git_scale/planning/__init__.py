"""Does a run fit, how long will it take, and what would be better: asked before it starts."""

from git_scale.planning.cluster import Cluster, accelerator_named, cluster_of, this_cluster
from git_scale.planning.options import Option, Setting
from git_scale.planning.plan import Plan, plan, refuse_if_too_large, with_dividing_batch

__all__ = [
    "Cluster",
    "Option",
    "Plan",
    "Setting",
    "accelerator_named",
    "cluster_of",
    "plan",
    "refuse_if_too_large",
    "this_cluster",
    "with_dividing_batch",
]
