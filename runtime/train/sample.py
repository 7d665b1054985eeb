"""Text from a trained byte-level model, one byte after the other."""

from __future__ import annotations

from unicodedata import category

import numpy as np

from ..graph import Memory, Program
from .model import BYTES, without_loss
from .replica import Replica
from .schema import Sample


def write_text(replica: Replica, sample: Sample, seed: int) -> str:
    """`sample.length` bytes that follow the prompt, drawn at `sample.temperature` (lower is safer).

    The model always sees its whole context: what comes behind the last byte cannot reach the prediction at
    that byte, since attention is causal.
    """
    graph = without_loss(replica.graph)
    memory = Memory(graph, replica.layout, replica.device, 1, training=False)
    program = Program(graph, replica.layout, memory, 1, replica.parameters)
    context = graph.inputs["x"].shape[0]
    random = np.random.Generator(np.random.Philox(seed))
    text = bytearray(sample.prompt.encode())
    for _ in range(sample.length):
        window = np.frombuffer(bytes(text[-context:]), np.uint8)
        tokens = np.zeros((1, context), graph.inputs["x"].dtype)
        tokens[0, : len(window)] = window
        program.inputs["x"][...] = replica.device.to_device(tokens)
        for call in program.forward:
            call.run()
        logits = replica.device.to_host(program.outputs[0])[0, len(window) - 1, :BYTES].astype(np.float64)
        weights = np.exp((logits - logits.max()) / sample.temperature)
        text.append(int(random.choice(len(weights), p=weights / weights.sum())))
    return text.decode("utf-8", errors="replace")


def shown(text: str) -> str:
    """The text as a terminal is given it: control characters but ends of lines and tabs are question marks.

    A model that has learned little writes any byte. One of 256 bytes that are equally likely mostly has an
    escape or a shift among them, which hid what the run said behind it, or left the terminal in line drawing.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if category(letter) == "Cc" and letter not in "\n\t" else letter
        for letter in text
    )
