"""Everything that runs on the synthetic world: demo, comparison, ablation and the tiny models that they start from."""
