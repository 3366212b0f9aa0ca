"""Speed and memory of models, alone and beside the same models of other libraries."""
