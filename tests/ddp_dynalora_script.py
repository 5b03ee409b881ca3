"""Train D-LoRA on two processes of a CPU; arguments: a model's folder, a folder for the results."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

from tsllm_estimators.adapters import DynaLoraConfig, record_routing


def work(rank, folder, results, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = get_peft_model(AutoModel.from_pretrained(folder), DynaLoraConfig(r=2, top_n=1)).eval()
    for name, weight in model.named_parameters():
        if "dynalora_B" in name:
            torch.nn.init.normal_(weight)
    model = DistributedDataParallel(model)  # find_unused_parameters is False
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trains, lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        tokens = torch.randint(1, 64, (2, 7), generator=generator)
        optimizer.zero_grad()
        with record_routing() as record:
            loss = model(tokens).last_hidden_state.square().mean()
        (loss + 0.01 * record.load_balancing_loss()).backward()
        optimizer.step()
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {
        "grads": {name: p.grad for name, p in names.items()},
        "weights": {name: p.detach() for name, p in names.items()},
        "loss": loss.item(),
        "never": any(not on.any(0).all() for on in record.active().values()),
    }
    torch.save(found, Path(results) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        mp.spawn(work, (*sys.argv[1:], f"{temporary}/meeting"), nprocs=2)
