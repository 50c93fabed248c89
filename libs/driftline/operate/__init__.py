"""What the commands of `driftline` do: one module a command, so that a command imports what it needs and nothing else."""
