"""Models of any kind: their tasks, inputs, outputs, hooks and sharded weights."""
