"""Fine-tune a language model with the two adapters of this package, through PEFT alone.

LORA_AMR trains one small matrix per linear map and is merged at the end. DYNALORA chooses for each
sentence which of a layer's adapters are on. Neither knows of time series: any causal language
model of Hugging Face will do, by default a tiny one with random weights: nothing is downloaded.
"""

import argparse
import logging
import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tsllm_estimators.adapters import DynaLoraConfig, LoraAmrConfig, record_routing

logging.getLogger("transformers").setLevel(logging.ERROR)

SENTENCES = [
    "The tide comes in twice a day.",
    "Demand peaks in the early evening.",
    "It rains more in autumn than in spring.",
    "Traffic is light on Sundays.",
]


def language_model(name: str | None):
    """Return a model; without a name, a tiny GPT-2 with random weights that reads bytes."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name)
    torch.manual_seed(0)  # the same model again, as if it came from a file
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **shape))


def batch_of(name: str | None) -> dict[str, torch.Tensor]:
    """Return the sentences as a model wants them; padding, -100, counts for no loss."""
    if name is None:
        tokens = [list(sentence.encode()) for sentence in SENTENCES]
    else:
        tokens = AutoTokenizer.from_pretrained(name)(SENTENCES)["input_ids"]
    length = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def train(model, batch, steps: int, balance: float = 0.0) -> tuple[float, float]:
    """Train what the adapter left trainable; return the loss before and after."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        with record_routing() as routing:  # of DYNALORA; LORA_AMR has no routers
            loss = model(**batch).loss
        losses.append(loss.item())
        if balance:
            loss = loss + balance * routing.load_balancing_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return losses[0], losses[-1]


def show(title: str, model, losses: tuple[float, float]) -> None:
    trains, everything = model.get_nb_trainable_parameters()
    print(f"\n{title}: trains {trains:,} of {everything:,} numbers")
    print(f"  loss {losses[0]:.2f} -> {losses[1]:.2f}")


@torch.no_grad()
def same(one, other, batch) -> str:
    """Say whether two models give the same answer."""
    difference = (one(**batch).logits - other(**batch).logits).abs().max().item()
    return f"largest difference {difference:.0e}"


def lora_amr(name: str | None, steps: int) -> tuple[float, float]:
    batch = batch_of(name)
    model = get_peft_model(language_model(name), LoraAmrConfig(r=16, lora_alpha=32))
    losses = train(model, batch, steps)
    show("LORA_AMR", model, losses)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(language_model(name), folder).eval()
    print(f"  saved and loaded: {same(model, loaded, batch)}")
    merged = loaded.merge_and_unload()  # a plain model again, as fast as before
    print(f"  merged into a {type(merged).__name__}: {same(model, merged, batch)}")
    return losses


def dynalora(name: str | None, steps: int) -> tuple[float, float]:
    batch = batch_of(name)
    model = get_peft_model(language_model(name), DynaLoraConfig(r=8, lora_alpha=16, top_n=2))
    losses = train(model, batch, steps, balance=0.01)
    show("DYNALORA, 2 modules on in each layer", model, losses)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(language_model(name), folder).eval()
    print(f"  saved and loaded: {same(model, loaded, batch)}")
    with record_routing() as routing, torch.no_grad():
        loaded(**batch)
    print("  share of the sentences for which each module is on:")
    for layer, active in routing.active().items():
        shares = zip(routing.modules()[layer], active.float().mean(0).tolist(), strict=True)
        print(f"  {layer}: " + ", ".join(f"{module} {share:.0%}" for module, share in shares))
    return losses


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Run both; print what happens and return the losses before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a directory or Hugging Face id of a causal model")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    return {
        "LORA_AMR": lora_amr(options.model, options.steps),
        "DYNALORA": dynalora(options.model, options.steps),
    }


if __name__ == "__main__":
    main()
