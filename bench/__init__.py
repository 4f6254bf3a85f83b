"""What the module costs, beside the baseline and beside what people would use instead. `scripts/bench` runs it."""
