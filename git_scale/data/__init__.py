"""Shards, their order, images, captions, tokens and batches."""
