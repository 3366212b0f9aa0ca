"""Two processes that do several things together, one after the other: they are started once for all of them."""

import importlib
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

WORLD = 2


class _Stop(BaseException):
    pass


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(folder, cases, **options):
    """Start both processes on ``{name: [function of this module, arguments]}``; what they say goes into a folder."""
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    common = {"OMP_NUM_THREADS": "1", "NODE_RANK": "0", "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port()), "PYTHONPATH": path}  # fmt: skip
    processes = []
    for rank in range(WORLD):
        with (folder / f"{rank}.log").open("w") as log:
            environment = {**os.environ, **common, "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "tests.train.pair", str(folder)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, **options))
    return processes


def run(folder, cases):
    """Do it and give what each process returned, ``{name: [of the first, of the second]}``."""
    processes = begin(folder, cases)
    try:
        codes = [process.wait(timeout=1500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * WORLD, "\n".join((folder / f"{rank}.log").read_text()[-4000:] for rank in range(WORLD))
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    return {name: [result[name] for result in results] for name in cases}


def command(verb, words):
    """What the command line does."""
    assert importlib.import_module(f"vitrail.cli.{verb}").main(words) == 0


def interrupted(words, epoch, step):
    """Train until there and no further."""
    from vitrail.train.supervised import SupervisedModule

    original = SupervisedModule.training_step

    def stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, step):
            raise _Stop
        return original(self, batch, batch_idx)

    SupervisedModule.training_step = stop
    try:
        command("train", words)
    except _Stop:
        return
    finally:
        SupervisedModule.training_step = original
    raise AssertionError("it was not stopped")


def steps(family, task, settings=None, checkpointing=False):
    """Some steps on shards, beside the same on the whole model with the loss of all images.

    Returns:
        The largest difference of gradients and of weights, the share of the parameters that this process holds, and
        how many of them are whole between steps.
    """
    import copy

    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    import vitrail
    from vitrail.data.normalization import NormalizeStreams
    from vitrail.tasks.classification import ClassificationTask
    from vitrail.tasks.mae import MAETask
    from vitrail.tasks.simclr import SimCLRTask
    from vitrail.tasks.simmim import SimMIMTask
    from vitrail.train.sharding import shard, whole_state

    rank = torch.distributed.get_rank()
    torch.manual_seed(3)
    tiny = {**vitrail.models.list_families()[family].test_config, **(settings or {})}
    model = vitrail.create_model(family, **tiny)
    model.set_grad_checkpointing(checkpointing)
    normalize = NormalizeStreams({s.name: ((0.4,) * s.chans, (0.3,) * s.chans) for s in model.streams})
    sharded = {
        "classification": lambda: ClassificationTask(model, normalize),
        "simclr": lambda: SimCLRTask(model, normalize, torch.nn.Identity()),
        "mae": lambda: MAETask(model, normalize, decoder_depth=2),
        "simmim": lambda: SimMIMTask(model, normalize, mask_ratios={s.name: 0.5 for s in model.streams}),
    }[task]()
    whole = copy.deepcopy(sharded)
    number = sum(p.numel() for p in whole.parameters())
    shard(sharded, init_device_mesh("cpu", (WORLD,)))
    both = [(t, torch.optim.AdamW(t.parameters(), 0.01, fused=True)) for t in (whole, sharded)]
    worst = [0.0, 0.0]
    for step in range(3):
        torch.manual_seed(1000 + step)
        batch = {s.name: torch.rand(2 * WORLD, s.chans, *s.size) for s in model.streams}
        batch["target"] = torch.randint(model.num_classes, (2 * WORLD,))
        for t, optimizer in both:
            optimizer.zero_grad()
            # The whole model also sees the images of each process as a batch of their own, as BatchNorm does.
            for r in [rank] if t is sharded else range(WORLD):
                torch.manual_seed(100 * step + r)
                own = {name: x[2 * r : 2 * r + 2] for name, x in batch.items()}
                loss = t.loss(t(own), own)
                (loss if t is sharded else loss / WORLD).backward()
        wholes = {name: p.grad for name, p in whole.named_parameters()}
        for name, p in sharded.named_parameters():
            assert isinstance(p, DTensor), name
            assert (p.grad is None) == (wholes[name] is None), name
            if p.grad is not None:
                worst[0] = max(worst[0], float((p.grad.full_tensor() - wholes[name]).abs().max()))
                p.grad.copy_(torch.distributed.tensor.distribute_tensor(wholes[name], p.device_mesh, p.placements))
        for t, optimizer in both:
            torch.nn.utils.clip_grad_norm_(t.parameters(), 0.1)
            optimizer.step()
        found, wanted = whole_state(sharded), whole.state_dict()
        assert rank or list(found) == list(wanted)
        names = dict(whole.named_parameters()).keys() & found.keys()
        worst[1] = max([worst[1], *(float((found[name] - wanted[name]).abs().max()) for name in names)])
    held = sum(p.to_local().numel() for p in sharded.parameters())
    return {"gradients": worst[0], "weights": worst[1], "held": held / number}


def peak(strategy):
    """The most memory in MiB that two steps of a larger model take, beyond what the process had at the start."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    import vitrail
    from vitrail.data.normalization import NormalizeStreams
    from vitrail.machine import keep_large_buffers
    from vitrail.tasks.classification import ClassificationTask
    from vitrail.train.sharding import shard

    def resident(what):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

    keep_large_buffers()  # as the command line does
    before = resident("VmRSS")
    model = vitrail.create_model("vit_base_patch16_224", img_size=32)
    task = ClassificationTask(model, NormalizeStreams({"image": ((0.5,) * 3, (0.5,) * 3)}))
    if strategy == "fsdp":
        shard(task, init_device_mesh("cpu", (WORLD,)))
    else:
        task = torch.nn.parallel.DistributedDataParallel(task)
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)
    del model
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        optimizer.zero_grad()
        task({"image": torch.rand(1, 3, 32, 32)}).square().mean().backward()
        optimizer.step()
    return resident("VmHWM") - before


def _main(folder):
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=timedelta(minutes=10))
    results = {}
    for name, (function, arguments) in json.loads((folder / "cases.json").read_text()).items():
        results[name] = globals()[function](**arguments)
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
