"""Blocks of neurons: a graph cut for the ranks of a node, none of which waits for a layer to end."""
