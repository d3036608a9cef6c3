"""Metrics of generated texts and pictures of them."""
