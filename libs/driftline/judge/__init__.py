"""Pure statistics: counts and arrays in, numbers and verdicts out."""
