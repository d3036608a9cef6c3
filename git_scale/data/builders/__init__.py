"""Builders of shards: a format yields samples, `writer.write_shards` makes tars of them."""
