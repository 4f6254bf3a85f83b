"""What the module costs, beside the floor and beside what people would use instead. `scripts/bench` runs it."""
