"""Shards, their order, pictures, captions, tokens and batches."""
