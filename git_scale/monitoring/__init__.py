"""Meters, throughput, model FLOPs utilisation and the writers that show them."""
