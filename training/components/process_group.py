"""Leaving the process group, so that no thread of gloo is left when the interpreter goes down.

gloo's threads let go of a collective's tensors a moment after its caller goes on, and may need the interpreter's lock
for it. Where they come too late, they are ended in the middle, which aborts the process: under load a run ends with
SIGABRT when all its work is done (pytorch/pytorch issue 190489). `destroy_process_group` waits for the threads only
where it drops the last reference to the group, and DTensor's caches keep meshes, which keep their groups.
"""

import gc

import torch.distributed as dist


def leave_group() -> None:
    """Destroy the default process group and all others, if there are any, and wait for their threads.

    Whoever holds a group, a DDP wrapper or an FSDP module must have let go of it.
    """
    if not dist.is_available():
        return
    if dist.is_initialized():
        dist.destroy_process_group()
    from torch.distributed.device_mesh import DeviceMesh

    gc.collect()  # sharded modules are in reference circles with their meshes
    for thing in gc.get_objects():
        if type(thing) is DeviceMesh:
            getattr(thing, "_pg_registry", {}).clear()
