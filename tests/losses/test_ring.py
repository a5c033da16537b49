"""In what order the ring sends, waits and computes; its values are tested among processes."""

import torch

from modeling_siglip_ext.losses.communicators import Communicator
from modeling_siglip_ext.losses.distribution import Sums, sweep


class Recorder(Communicator):
    """One of five ranks, whose neighbours' rows are as its own, and who writes down what is done when."""

    rank, world_size = 0, 5

    def __init__(self):
        self.log = []

    def shift(self, tensors, hops):
        kind = "texts" if tensors[0].dtype == torch.int64 else "sums"
        self.log.append(("send", kind, hops))

        def wait():
            self.log.append(("wait", kind, hops))
            return [tensor.clone() for tensor in tensors]

        return wait


def test_the_next_texts_travel_while_the_present_ones_are_looked_at():
    comm = Recorder()

    def visit(first, block, totals):
        comm.log.append(("look", first))

    sweep(comm, "ring", [3] * 5, [torch.arange(3)], [Sums(torch.zeros(()), 2)], visit)
    looks = [event[1] // 3 for event in comm.log if event[0] == "look"]
    assert looks == [0, 4, 1, 3, 2]  # our own, the neighbours', theirs
    for direction in (1, -1):
        sent = [i for i, event in enumerate(comm.log) if event == ("send", "texts", direction)]
        awaited = [i for i, event in enumerate(comm.log) if event == ("wait", "texts", direction)]
        assert len(sent) == len(awaited) == 2
        for start, end in zip(sent, awaited):
            assert any(event[0] == "look" for event in comm.log[start:end])
    # the sums of a block travel in one direction while the other's is looked at, the last ones straight home
    sums = [event for event in comm.log if event[0] == "send" and event[1] == "sums"]
    assert sums == [("send", "sums", 1), ("send", "sums", -1), ("send", "sums", -2), ("send", "sums", 2)]
    first = comm.log.index(("wait", "sums", 1))
    assert ("look", 3) in comm.log[comm.log.index(("send", "sums", 1)) : first]
