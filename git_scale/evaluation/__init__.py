"""Metrics of generated texts and images of them."""
