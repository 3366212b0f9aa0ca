"""Structure of a model: patches, groups, positions, features."""
