"""Speed and memory of models, alone and in comparison with other libraries."""
