"""WHAT is computed: metadata, the graph of kernels, its backward graph and its buffers. Pure."""
