"""Bytes on the wire and the fields inside them."""
