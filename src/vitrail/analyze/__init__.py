"""Tables and arrays computed from runs: feature spaces, examples, mistakes, explanations."""
