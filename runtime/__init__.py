"""Weft's runtime: the graph, the messages, the work, the exchange, training and what is seen of them."""
