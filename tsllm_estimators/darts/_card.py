"""The model card that goes with shared weights."""

from typing import Any


def model_card(config: dict[str, Any], n_weights: int, class_name: str) -> str:
    """Return a model card in the format of the Hugging Face hub, from ``config.json``."""
    arguments, training = config["arguments"], config["training"]
    backbone = arguments["backbone"]
    forecaster = class_name.replace("Model", "Forecaster")
    settings = "\n".join(f"| `{k}` | `{v!r}` |" for k, v in sorted(arguments.items()))
    shapes = "\n".join(
        f"| {name.replace('_', ' ')} | {' x '.join(map(str, shape))} |"
        for name, shape in config["sample_shapes"].items()
        if shape
    )
    metrics = "\n".join(
        f"| `{k}` | {v:.6g} |" for k, v in sorted(training.get("metrics", {}).items())
    )
    likelihood = config["likelihood"]["class"] if config["likelihood"] else "none"
    prompts = (
        "\n".join(f"* {p}" for p in training.get("prompts", [])) or "The method uses no prompts."
    )
    return f"""---
library_name: tsllm-estimators
tags: [time-series-forecasting, {config["method"]}]
base_model: {backbone}
---

# {class_name} on {backbone}

{n_weights:,} trained or measured numbers beside the adapters; the frozen weights of the language
model are not part of this directory and are compared with a fingerprint when it is loaded.

```python
from tsllm_estimators import {class_name}, {forecaster}

model = {class_name}.from_pretrained("this/directory")  # darts: model.predict(n, series=...)
forecaster = {forecaster}.from_pretrained("this/directory")  # sktime: .fit(y).predict(fh)
```

## Data

{_data(config)} One window (steps x components):

| part | shape |
|---|---|
{shapes}

## Training

{_effort(training)} Likelihood {likelihood}. Metrics of training and validation (not of a test):

| metric | value |
|---|---|
{metrics}

## Prompts

{prompts}

## Settings

| argument | value |
|---|---|
{settings}
"""


def _data(config: dict[str, Any]) -> str:
    training = config["training"]
    if "data" not in training:
        return "Trained from a dataset of windows, or elsewhere: the series are not known."
    data = training["data"]
    components = ", ".join(f"`{name}`" for name in config.get("columns", data["components"]))
    return (
        f"{data['n_series']} series, {data['n_points']} points in all, components {components}; "
        f"{training['n_windows']} training windows."
    )


def _effort(training: dict[str, Any]) -> str:
    if "n_steps" not in training:
        return "Trained elsewhere, the weights were loaded."
    steps, epochs, seconds = (training[name] for name in ("n_steps", "n_epochs", "seconds"))
    return f"{steps} steps in {epochs} epochs and {seconds:.1f} s."
