"""What a plan assumes of a machine that nobody has measured: numbers alone, so that --help can show them at once."""

EFFICIENCY = 0.33  # of the peak, while computing: git_large in bf16 on an H200 (benchmarks/results/gpu.json)
MARGIN = 0.1  # share of the memory that a good setting leaves: fragmentation, evaluation, other kernels than foreseen
UNKNOWN_LINKS = (32e9, 12.5e9)  # bytes/s within and between nodes: PCIe 4 and 100 Gbit/s
CPU_LINK = 1e9  # bytes/s of gloo's collectives on one machine
