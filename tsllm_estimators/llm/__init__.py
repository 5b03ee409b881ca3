"""Floor 1: language models. Knows transformers, nothing of time series."""
