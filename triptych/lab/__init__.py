"""Studies: variants of a run at the same data, order, tokenizer, evaluation, seeds and budget."""
